"""Weights files: the original's layout, read and written, and Keras 3's `.weights.h5`, read; the download of the released weights.

The original's is Keras-2 HDF5: the root's attribute `layer_names` lists the layers in order of depth, and each layer's group lists its
arrays in `weight_names`. Layers are numbered by kind in order of creation (`conv2d`, `conv2d_1`, ...), starting from any
number. Keras 3 keeps the arrays of a layer as `layers/LAYER/vars/0`, ..., where LAYER is the class in snake case, numbered by depth.

python -m mat.models.weights --download weights/
"""

import argparse
import collections
import hashlib
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import h5py
import numpy as np

from mat.cli.command import run_command
from mat.cli.console import console
from mat.cli.download import download
from mat.cli.errors import UserError
from mat.cli.files import replace_file
from mat.cli.paths import expand_path
from mat.cli.text import format_value, single_line
from mat.models.other_files import WHOLE_MODEL, refuse_other_files

if TYPE_CHECKING:
    import keras

RELEASED = "tiny_imagenet_weights_074.h5"
RELEASED_URL = f"https://github.com/boschresearch/meta-adversarial-training/raw/HEAD/weights/{RELEASED}"
RELEASED_BLOB = "5bfac62e2ebd95dffde92ba7ebb485ecffc59b0f"  # git's SHA-1


def load_weights(model: "keras.Model", path: str | os.PathLike[str]) -> None:
    """Set the weights of a model of `mat.models.create_model` from a file in the original's layout or in Keras 3's.

    The file's k-th layer of a kind is the model's k-th, whatever their numbers. The model is changed once everything is read.
    Own networks take files of Keras alone, see `mat.models.own_weights`.

    Raises:
        UserError: the file cannot be read, is not such a file, or holds other layers or shapes than the model.
    """
    if (inner := _own_network(model)) is not None:
        from mat.models.own_weights import load_own_weights

        load_own_weights(inner, path)
        return
    refuse_other_files(path)
    layers = [layer for layer in model.layers if layer.weights]
    try:
        with h5py.File(path, "r") as file:
            if "model_config" in file.attrs:
                raise UserError(f"{path}: not a weights file, but {WHOLE_MODEL}")
            keras_3 = "layers" in file and "layer_names" not in file.attrs
            names = _class_names(layers) if keras_3 else [layer.name for layer in layers]
            model_layers = sorted(zip(names, layers, strict=True), key=_by_creation)
            file_layers = sorted(_file_layers(file, keras_3), key=_by_creation)
            if difference := _difference(model_layers, file_layers):
                keys = "depth, width, n_stacks, n_classes, image_size and normalization"
                remedy = f"Give the config the {keys} that the file was trained with"
                raise UserError(f"{path}: these weights are not of this network: {difference}. {remedy}")
            arrays = [[np.asarray(dataset, np.float32) for dataset in datasets] for _, datasets in file_layers]
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, MemoryError) as error:
        expected = f"not a weights file in the original's HDF5 layout or Keras 3's ({single_line(str(error))})"
        raise UserError(f"{path}: {expected}. Give a file that save_weights wrote") from None
    for (_, layer), layer_arrays in zip(model_layers, arrays, strict=True):
        layer.set_weights(layer_arrays)


def save_weights(model: "keras.Model", path: str | os.PathLike[str]) -> None:
    """Write the model's weights in the original's layout, those of an own network as Keras' `.weights.h5`, as a whole file or not at all.

    Raises:
        OSError: the file cannot be written; what was there stays.
    """
    if (inner := _own_network(model)) is not None:
        from mat.models.own_weights import save_own_weights

        save_own_weights(inner, path)
        return
    # In memory first: HDF5 holds on to a file that it cannot flush, and fails again whenever it next tries.
    with h5py.File("weights", "w", driver="core", backing_store=False) as file:
        file.attrs["layer_names"] = np.array([layer.name.encode() for layer in model.layers])
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = b"2.2.4-tf"  # of TensorFlow 1.14
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{weight.name}:0" for weight in layer.weights]
            group.attrs["weight_names"] = np.array([name.encode() for name in names]) if names else np.zeros(0)
            for name, weight in zip(names, layer.weights, strict=True):
                group.create_dataset(name, data=weight.numpy())
        file.flush()
        content = file.id.get_file_image()
    replace_file(path, content)


def _own_network(model):
    from mat.models.own_network import inner_model  # late: a download needs no Keras

    return inner_model(model)


def _file_layers(file, keras_3):
    """(name, datasets) of every layer with weights in a file."""
    if keras_3:
        layers = [(name, [group[f"vars/{i}"] for i in range(len(group["vars"]))]) for name, group in file["layers"].items()]
    else:
        groups = [(name.decode(), file[name]) for name in file.attrs["layer_names"]]
        layers = [(name, [group[weight] for weight in group.attrs["weight_names"]]) for name, group in groups]
    return [(name, datasets) for name, datasets in layers if datasets]


def _class_names(layers):
    """The names that Keras 3 gives layers in its files: the class in snake case, numbered in the order of `model.layers`."""
    counts = collections.Counter()
    for layer in layers:
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(layer).__name__).lower()
        yield f"{kind}_{counts[kind]}" if counts[kind] else kind
        counts[kind] += 1


def _by_creation(named):
    """The key that sorts (layer name, value) pairs: ("conv2d_12", value) -> ("conv2d", 12); the first of a kind may have no number."""
    kind, number = re.fullmatch(r"(.*?)(?:_(\d+))?", named[0], re.DOTALL).groups()
    return kind, int(number or 0)


def _difference(model_layers, file_layers):
    """What first differs between (name, layer) pairs and (name, datasets) pairs sorted by creation, in words; None if nothing does."""
    for (name, layer), (file_name, datasets) in zip(model_layers, file_layers, strict=False):
        if _by_creation((name,))[0] != _by_creation((file_name,))[0]:
            return f"the network has a layer {name} where the file has {format_value(file_name)}"
        shapes, file_shapes = [tuple(weight.shape) for weight in layer.weights], [dataset.shape for dataset in datasets]
        if shapes != file_shapes:
            return f"{name} has the shapes {shapes} in the network and {format_value(file_shapes)} in the file ({format_value(file_name)})"
    if len(model_layers) != len(file_layers):
        return f"the network has {len(model_layers)} layers with weights, the file {len(file_layers)}"
    return None


def git_blob(path: str | os.PathLike[str]) -> str:
    """The SHA-1 that git gives a file's content, 40 hex digits: what `git hash-object` prints."""
    content = pathlib.Path(path).read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def weights_sha256(model: "keras.Model") -> str:
    """The SHA-256 of a model's weights, hexadecimal."""
    return hashlib.sha256(b"".join(array.tobytes() for array in model.get_weights())).hexdigest()


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line; `--help` and wrong usage end the process."""
    parser = argparse.ArgumentParser(prog="python -m mat.models.weights", description="Fetch the released weights and check them.")
    parser.add_argument("--download", metavar="DIRECTORY", required=True, type=expand_path, help="where the file goes, such as weights/")
    parser.add_argument("--url", default=RELEASED_URL, help="where it comes from (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch the released weights; returns the exit status."""
    return run_command("mat.models.weights", parse_arguments, _download, arguments)


def _download(arguments):
    path = pathlib.Path(arguments.download) / RELEASED
    download(arguments.url, path, check=_check_released)
    console.print(f"{path}: the released file, git blob {RELEASED_BLOB}")


def _check_released(path):
    if (blob := git_blob(path)) != RELEASED_BLOB:
        remedy = "Remove it if it is there, and fetch again"
        raise UserError(f"{path}: not the released file: its git blob hash is {blob}, not {RELEASED_BLOB}. {remedy}")


if __name__ == "__main__":
    sys.exit(main())
