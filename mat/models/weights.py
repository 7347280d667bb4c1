"""Weights files: the original's layout, both ways, and Keras 3's `.weights.h5`, read only.

The original's is Keras-2 HDF5: the root's attribute `layer_names` lists the layers in order of depth, and each layer's group lists its
arrays in `weight_names`. Layers are numbered by kind in order of creation (`conv2d`, `conv2d_1`, ...), from wherever the process that
wrote the file had got to. Keras 3 keeps the arrays of a layer as `layers/LAYER/vars/0`, ..., where LAYER is the class in snake case,
numbered in order of depth; newer versions note the layer's own name too.

python -m mat.models.weights --download weights/
"""

import argparse
import hashlib
import os
import pathlib
import re
import sys

import h5py
import numpy as np

from mat.commands import run_command
from mat.download import download
from mat.errors import UserError
from mat.terminal import console

BACKEND = "tensorflow"
KERAS_VERSION = "2.2.4-tf"  # the Keras of TensorFlow 1.14

RELEASED = "tiny_imagenet_weights_074.h5"
RELEASED_URL = f"https://github.com/boschresearch/meta-adversarial-training/raw/HEAD/weights/{RELEASED}"
RELEASED_BLOB = "5bfac62e2ebd95dffde92ba7ebb485ecffc59b0f"  # git's SHA-1


def load_weights(model, path):
    """Set the model's weights from a file in the original's layout or in Keras 3's.

    The file's k-th layer of a kind is the model's k-th, whatever their numbers. Everything is checked before the model is changed.

    Args:
        model: a model of `mat.models.create_model`.
        path: the HDF5 file, of `save_weights`, of the original, or of `model.save_weights("NAME.weights.h5")`.

    Raises:
        UserError: the file cannot be read, is not such a file, or holds other layers or shapes than the model.
    """
    file_layers, named = _read_layers(path)
    layers = [layer for layer in model.layers if layer.weights]
    model_layers = _by_creation(zip([layer.name for layer in layers] if named else _class_names(layers), layers, strict=True))
    file_layers = _by_creation(file_layers)
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
    """(name, arrays) of every layer with weights in a file, and whether the names are those of layers rather than of their classes."""
    try:
        with h5py.File(path, "r") as file:
            if "layer_names" in file.attrs or "layers" not in file:
                groups = [(name, file[name]) for name in _names(file.attrs["layer_names"])]
                layers = [(name, [np.asarray(group[array]) for array in _names(group.attrs["weight_names"])]) for name, group in groups]
                named = True
            else:
                groups = [(name, group["vars"]) for name, group in file["layers"].items() if group["vars"]]
                named = all("name" in group.attrs for _, group in groups)
                layers = [
                    (str(group.attrs["name"]) if named else name, [np.asarray(group[str(i)]) for i in range(len(group))])
                    for name, group in groups
                ]
            return [(name, arrays) for name, arrays in layers if arrays], named
    except FileNotFoundError:
        raise UserError(f"{path}: no such weights file. Give the path of an .h5 file") from None
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: not a weights file in the original's HDF5 layout or Keras 3's ({reason}). Give a file that save_weights wrote"
        ) from None


def _class_names(layers):
    """The names that Keras 3 gives layers in its files: the class in snake case, numbered in the order of `model.layers`."""
    counts, names = {}, []
    for layer in layers:
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(layer).__name__).lower()
        count = counts[kind] = counts.get(kind, -1) + 1
        names.append(f"{kind}_{count}" if count else kind)
    return names


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


def download_released(directory, url=RELEASED_URL, blob=RELEASED_BLOB):
    """Fetch the authors' released weights into a directory, and check them.

    Args:
        directory: where the file goes, under its own name; made if missing.
        url: where it comes from.
        blob: the git blob SHA-1 that it must have.

    Returns:
        The file's path.

    Raises:
        UserError: the download failed, or the file is another one; a wrong file that was there before stays.
    """
    path = pathlib.Path(directory) / RELEASED

    def check(file):
        if (found := git_blob(file)) != blob:
            raise UserError(
                f"{file}: not the released file: its git blob hash is {found}, not {blob}. Remove it if it is there, and fetch again"
            )

    download(url, path, check=check)
    return path


def git_blob(path):
    """The SHA-1 that git gives a file's content, 40 hex digits: what `git hash-object` prints."""
    content = pathlib.Path(path).read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def main(arguments=None):
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mat.models.weights", description="Fetch the released weights and check them.")
    parser.add_argument("--download", metavar="DIRECTORY", required=True, help="where the file goes, such as weights/")
    parser.add_argument("--url", default=RELEASED_URL, help="where it comes from (default: %(default)s)")
    arguments = parser.parse_args(arguments)
    return run_command("mat.models.weights", _download, arguments, interrupted="interrupted; run the same command again")


def _download(arguments):
    """What the command line asks for."""
    path = download_released(arguments.download, arguments.url)
    console.print(f"{path}: the released file, git blob {RELEASED_BLOB}")


if __name__ == "__main__":
    sys.exit(main())
