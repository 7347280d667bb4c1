"""Evaluations of own networks: a config made of a saved classifier and its data, and whether it gets the pixel range that it wants."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mat.cli.console import console
from mat.cli.errors import UserError
from mat.config import OWN_NETWORK_KEYS, PatchTrainingConfig
from mat.data.metadata import read_metadata
from mat.data.reading import Records
from mat.models.network import INPUT_RANGES, SMALLEST_PROBABILITY, inner_model
from mat.models.network_source import load_file, seeded
from mat.robustness.universal import load_images
from mat.seeds import generator

RANGE_IMAGES = 200  # validation images on which the ranges are compared
_BATCH = 50
_GAIN = 0.1  # of accuracy by another range, that is refused if it is also more than three standard errors, and
_LOWER_LOSS = 0.8  # the loss is that much lower: with more contrast, a network that has learned little knows more images, but errs worse
_PATCH_SIDE = 3 / 8  # of the image's, as in the published setting


def read_classifier(values: dict[str, Any]) -> PatchTrainingConfig:
    """The config that evaluates the saved classifier `values["network"]`, a `.keras` file, with the `values` of some keys.

    Raises:
        UserError: the file cannot be loaded, or a key has a wrong value.
    """
    known = PatchTrainingConfig(**{key: values[key] for key in ("network", *OWN_NETWORK_KEYS) if key in values})
    with seeded("shapes"):  # making layers draws
        model = load_file(known.network, safe_mode=known.safe_mode)
    return PatchTrainingConfig.from_values(fill_values(model, values))


def fill_values(model: keras.Model, values: dict[str, Any]) -> dict[str, Any]:
    """The values of config keys, and where they have none, `image_size`, `n_classes` and `patch_shape` as a classifier and its data are."""
    metadata = read_metadata(values["data_dir"]) if "data_dir" in values else None
    inputs, outputs = _shape(model, "input_shape"), _shape(model, "output_shape")
    sizes = [inputs[1] if len(inputs) == 4 else None, metadata and metadata.image_size]
    classes = [outputs[1] if len(outputs) == 2 else None, metadata and len(metadata.classes)]
    found = {"image_size": next(filter(None, sizes), None), "n_classes": next(filter(None, classes), None)}
    values = {key: value for key, value in found.items() if value} | values
    size = values.get("image_size", PatchTrainingConfig().image_size)
    if isinstance(size, int):  # else it is refused with the other values
        values = {"patch_shape": [max(1, round(_PATCH_SIDE * size))] * 2 + [3]} | values
    return values


def _shape(model, name):
    """The input or output shape of a model; an empty one where it has several or does not know it."""
    try:
        shape = getattr(model, name)
    except (AttributeError, ValueError):
        return ()
    return shape if isinstance(shape, tuple) else ()


def check_input_range(config: PatchTrainingConfig, model: keras.Model, validation: Records, *, sure: bool = False) -> None:
    """Refuse, in a `UserError`, an own network that knows far more images in another pixel range than in `config.input_range`.

    In the wrong range a classifier answers as ever, and its robustness would be that of a network that nobody uses.

    Args:
        model: of `create_model`; of the ResNet nothing is checked.
        validation: records, of which a random 200 are looked at.
        sure: the user named the range in so many words: a warning is printed instead.
    """
    if (inner := inner_model(model)) is None:
        return
    chosen = generator(config.seed, "evaluation/input_range").permutation(len(validation.labels))[:RANGE_IMAGES]
    images, labels, _ = load_images(validation.take(np.sort(chosen)), n_classes=config.n_classes, image_size=config.image_size)

    @tf.function(autograph=False)
    def score(images, labels):
        outputs = tf.cast(inner(images, training=False), tf.float32)
        logits = outputs if config.logits else tf.math.log(tf.maximum(outputs, SMALLEST_PROBABILITY))
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        return tf.argmax(logits, axis=-1) == labels, losses

    correct, losses = {}, {}
    for name, scaling in INPUT_RANGES.items():
        scaled = images * tf.constant(scaling.get("scale", 1.0)) + tf.constant(scaling.get("offset", 0.0))
        batches = [score(scaled[i : i + _BATCH], labels[i : i + _BATCH]) for i in range(0, len(labels), _BATCH)]
        correct[name], losses[name] = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    given, best = correct[config.input_range], max(correct, key=lambda name: correct[name].sum())
    constant = np.bincount(labels).max()  # correct answers of a network that always gives one class
    gain = correct[best].sum() - max(given.sum(), constant)
    certain = gain > _GAIN * len(labels) and gain > 3 * np.sqrt(np.sum(correct[best] != given))
    if certain and np.mean(losses[best]) < _LOWER_LOSS * np.mean(losses[config.input_range]):
        found = (
            f"{config.network}: with input_range: {config.input_range} it classifies {given.mean():.1%} of {len(labels)} validation images "
            f"correctly, and with {best} {correct[best].mean():.1%}"
        )
        if not sure:
            raise UserError(
                f"{found}. Set input_range: {best} (--input-range {best}), or say --input-range {config.input_range} if that is what it "
                "was trained on"
            )
        console.print(f"WARNING: {found}")
