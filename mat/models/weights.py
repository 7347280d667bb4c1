"""Weights files in the original's layout: Keras-2 HDF5.

The root's attribute `layer_names` lists the layers in order of depth; each layer's group lists its arrays in `weight_names`. Layers are
numbered by kind in order of creation (`conv2d`, `conv2d_1`, ...), from wherever the process that wrote the file had got to.
"""

import os
import pathlib
import re

import h5py
import numpy as np

from mat.errors import UserError

BACKEND = "tensorflow"
KERAS_VERSION = "2.2.4-tf"  # the Keras of TensorFlow 1.14


def load_weights(model, path):
    """Set the model's weights from a file in the original's layout.

    The file's k-th layer of a kind is the model's k-th, whatever their numbers. Everything is checked before the model is changed.

    Args:
        model: a model of `mat.models.create_model`.
        path: the HDF5 file.

    Raises:
        UserError: the file cannot be read, is not such a file, or holds other layers or shapes than the model.
    """
    model_layers = _by_creation((layer.name, layer) for layer in model.layers if layer.weights)
    file_layers = _by_creation(_read_layers(path))
    difference = _difference(
        [(name, [tuple(w.shape) for w in layer.weights]) for name, layer in model_layers],
        [(name, [array.shape for array in arrays]) for name, arrays in file_layers],
    )
    if difference:
        raise UserError(
            f"{path}: these weights are not of this network: {difference}. "
            "Give the config the depth, width, n_stacks, n_classes, image_size and normalization that the file was trained with"
        )
    for (_, layer), (_, arrays) in zip(model_layers, file_layers, strict=True):
        layer.set_weights(arrays)


def save_weights(model, path):
    """Write the model's weights in the original's layout, under a temporary name that replaces `path` when complete."""
    path = pathlib.Path(path)
    temporary = path.with_name(path.name + ".part")
    with h5py.File(temporary, "w") as file:
        file.attrs["layer_names"] = np.array([layer.name.encode() for layer in model.layers])
        file.attrs["backend"] = BACKEND.encode()
        file.attrs["keras_version"] = KERAS_VERSION.encode()
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{weight.name}:0" for weight in layer.weights]
            group.attrs["weight_names"] = np.array([name.encode() for name in names]) if names else np.zeros(0)
            for name, weight in zip(names, layer.weights, strict=True):
                group.create_dataset(name, data=weight.numpy())
    os.replace(temporary, path)


def _read_layers(path):
    """(name, arrays) of every layer with weights in a file, in the file's order."""
    try:
        with h5py.File(path, "r") as file:
            layers = []
            for layer_name in _names(file.attrs["layer_names"]):
                group = file[layer_name]
                arrays = [np.asarray(group[name]) for name in _names(group.attrs["weight_names"])]
                if arrays:
                    layers.append((layer_name, arrays))
            return layers
    except FileNotFoundError:
        raise UserError(f"{path}: no such weights file. Give initial_weights the path of an .h5 file, or null") from None
    except (OSError, KeyError, TypeError, ValueError, AttributeError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: not a weights file in the original's HDF5 layout ({reason}). Give a file that save_weights wrote"
        ) from None


def _names(attribute):
    return [name.decode() if isinstance(name, bytes) else str(name) for name in attribute]


def _kind_and_number(name):
    """`conv2d_12` -> (`conv2d`, 12); a name without a number is the first of its kind."""
    kind, number = re.fullmatch(r"(.*?)(?:_(\d+))?", name).groups()
    return kind, int(number or 0)


def _by_creation(named):
    """(name, value) pairs sorted by kind and, within a kind, by number."""
    return sorted(named, key=lambda pair: _kind_and_number(pair[0]))


def _difference(expected, found):
    """What first differs between two lists of (layer name, shapes) sorted by creation, in words; None if nothing does."""
    for (name, shapes), (file_name, file_shapes) in zip(expected, found, strict=False):
        kind, file_kind = _kind_and_number(name)[0], _kind_and_number(file_name)[0]
        if kind != file_kind:
            return f"the network has a layer {name} where the file has {file_name}"
        if shapes != file_shapes:
            return f"{name} has the shapes {shapes} in the network and {file_shapes} in the file ({file_name})"
    if len(expected) != len(found):
        return f"the network has {len(expected)} layers with weights, the file {len(found)}"
    return None
