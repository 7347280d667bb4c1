"""Whether an own network gets the range of pixels that it wants."""

import keras
import numpy as np
import tensorflow as tf

from mat.cli.console import console
from mat.cli.errors import UserError
from mat.config import PatchTrainingConfig
from mat.data.reading import Records
from mat.models.own_network import INPUT_RANGES, SMALLEST_PROBABILITY, inner_model
from mat.robustness.universal import load_images
from mat.seeds import generator

RANGE_IMAGES = 200  # validation images on which the ranges are compared
_BATCH = 50
_GAIN = 0.1  # of accuracy by another range, that is refused if it is also more than three standard errors, and
_LOWER_LOSS = 0.8  # the loss is that much lower: with more contrast, a network that has learned little knows more images, but errs worse


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
