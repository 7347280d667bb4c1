"""The config that evaluates a saved classifier, or a model in memory, made of the model and its data."""

from typing import Any

import keras

from mat.config import OWN_NETWORK_KEYS, PatchTrainingConfig
from mat.data.metadata import read_metadata
from mat.models.own_network_source import load_file, seeded

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
