"""Weights files: the original's layout, both ways, and Keras 3's `.weights.h5`, read only.

The original's is Keras-2 HDF5: the root's attribute `layer_names` lists the layers in order of depth, and each layer's group lists its
arrays in `weight_names`. Layers are numbered by kind in order of creation (`conv2d`, `conv2d_1`, ...), from wherever the process that
wrote the file had got to. Keras 3 keeps the arrays of a layer as `layers/LAYER/vars/0`, ..., where LAYER is the class in snake case,
numbered in order of depth.

python -m mat.models.weights --download weights/
"""

import argparse
import contextlib
import hashlib
import math
import mmap
import os
import pathlib
import re
import struct
import sys

import h5py
import numpy as np

from mat.cli.command import run_command
from mat.cli.console import console
from mat.cli.download import download
from mat.cli.errors import UserError
from mat.cli.files import expand_path, replace_file
from mat.cli.text import format_value, single_line
from mat.models.other_files import refuse_other_files, refuse_whole_model

BACKEND = "tensorflow"
KERAS_VERSION = "2.2.4-tf"  # the Keras of TensorFlow 1.14

MAX_OVERHEAD = 1 << 26  # bytes of a file beside its arrays
MAX_COPIES = 8  # of the arrays: in double precision, with an optimizer's state
MAX_ATTRIBUTE = 1 << 20  # bytes of a list of names
MAX_ENTRIES = 20_000  # layers or arrays; the deepest network of the config has 16,000
MAX_PARTS = 8  # of a name; each is a step through the file
FLOAT_BYTES = (2, 4, 8)

RELEASED = "tiny_imagenet_weights_074.h5"
RELEASED_URL = f"https://github.com/boschresearch/meta-adversarial-training/raw/HEAD/weights/{RELEASED}"
RELEASED_BLOB = "5bfac62e2ebd95dffde92ba7ebb485ecffc59b0f"  # git's SHA-1


def load_weights(model, path):
    """Set the model's weights from a file in the original's layout or in Keras 3's.

    The file's k-th layer of a kind is the model's k-th, whatever their numbers. Everything is checked before the model is changed, and
    names, shapes and types before anything of the size that the file claims is read.

    Args:
        model: a model of `mat.models.create_model`.
        path: the HDF5 file, of `save_weights`, of the original, or of `model.save_weights("NAME.weights.h5")`.

    Raises:
        UserError: the file cannot be read, is not such a file, or holds other layers or shapes than the model.
    """
    layers = [layer for layer in model.layers if layer.weights]
    with _opened(path, MAX_OVERHEAD + MAX_COPIES * 4 * model.count_params()) as file:
        if "layer_names" in file.attrs or "layers" not in file:
            names, file_layers = [layer.name for layer in layers], _original_layers(file)
        else:
            names, file_layers = _class_names(layers), _keras_3_layers(file)
        model_layers = _by_creation(zip(names, layers, strict=True))
        file_layers = _by_creation(file_layers)
        difference = _difference(
            [(name, [tuple(w.shape) for w in layer.weights]) for name, layer in model_layers],
            [(name, [dataset.shape for dataset in datasets]) for name, datasets in file_layers],
        )
        if difference:
            raise UserError(
                f"{path}: these weights are not of this network: {difference}. "
                "Give the config the depth, width, n_stacks, n_classes, image_size and normalization that the file was trained with"
            )
        arrays = [[dataset[()] for dataset in datasets] for _, datasets in file_layers]
    for (_, layer), layer_arrays in zip(model_layers, arrays, strict=True):
        layer.set_weights(layer_arrays)


def save_weights(model, path):
    """Write the model's weights in the original's layout, as a whole file or not at all.

    Raises:
        OSError: the file cannot be written; what was there stays.
    """
    # In memory first: HDF5 holds on to a file that it cannot flush, and fails again whenever it next tries.
    with h5py.File("weights", "w", driver="core", backing_store=False) as file:
        file.attrs["layer_names"] = np.array([layer.name.encode() for layer in model.layers])
        file.attrs["backend"] = BACKEND.encode()
        file.attrs["keras_version"] = KERAS_VERSION.encode()
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{weight.name}:0" for weight in layer.weights]
            group.attrs["weight_names"] = np.array([name.encode() for name in names]) if names else np.zeros(0)
            for name, weight in zip(names, layer.weights, strict=True):
                group.create_dataset(name, data=weight.numpy())
        file.flush()
        content = file.id.get_file_image()
    replace_file(path, content)


@contextlib.contextmanager
def _opened(path, max_bytes):
    """The HDF5 file at a path; whatever fails in reading it becomes a `UserError`."""
    try:
        refuse_other_files(path)
        if (size := os.path.getsize(path)) > max_bytes:
            raise UserError(f"{path}: {size:,} bytes, and weights of this network have at most {max_bytes:,}. Give such a file")
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _check_heaps(content)
        with h5py.File(path, "r") as file:
            if file.id.get_create_plist().get_sizes() != (8, 8):
                raise ValueError("its addresses are not of 8 bytes")
            refuse_whole_model(path, file)
            yield file
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError, MemoryError) as error:
        raise UserError(
            f"{path}: not a weights file in the original's HDF5 layout or Keras 3's ({single_line(str(error))}). "
            "Give a file that save_weights wrote"
        ) from None


def _check_heaps(content):
    """Refuse the heaps on which HDF5's library, when it only opens a group or array, goes round in circles, crashes or inflates at will.

    Those are damaged global heaps, which hold strings of variable length, and fractal heaps, which hold names, that are compressed.
    """
    if re.search(rb"FRHP\x00..(?!\x00\x00)", content, re.DOTALL):
        raise ValueError("its names are compressed")
    start, end = content.find(b"GCOL\x01"), 0
    while start >= 0:
        position, sound = start + 16, start >= end
        end = start + int.from_bytes(content[start + 8 : start + 16], "little")
        sound = sound and position <= end <= len(content)
        while sound and position + 16 <= end:
            index, size = struct.unpack_from("<H6xQ", content, position)
            step = 16 + -(-size // 8) * 8 if index else size  # free space counts its own header
            position += step
            sound = step >= 16 and position <= end
        if not sound:
            raise ValueError("a heap of its strings is damaged")
        start = content.find(b"GCOL\x01", start + 1)


def _original_layers(file):
    """(name, datasets) of every layer with weights in a file of the original's layout."""
    layers, n_arrays = [], 0
    for name in _names(file, "layer_names"):
        group = _member(file, name, h5py.Group)
        weight_names = _names(group, "weight_names")
        n_arrays += len(weight_names)
        _check_number(n_arrays)
        if weight_names:
            layers.append((name, [_dataset(group, weight_name) for weight_name in weight_names]))
    return layers


def _keras_3_layers(file):
    """(class name, datasets) of every layer with weights in a file of Keras 3.

    The layers' own names, which newer versions note, are not read: they are strings of variable length, which the library does not read
    safely from a damaged file, and the layers' order tells as much.
    """
    group = _member(file, "layers", h5py.Group)
    _check_number(len(group))
    layers, n_arrays = [], 0
    for name in group:
        variables = _member(group, f"{name}/vars", h5py.Group)
        n_arrays += len(variables)
        _check_number(n_arrays)
        if len(variables):
            layers.append((name, [_dataset(variables, str(i)) for i in range(len(variables))]))
    return layers


def _check_number(n_entries):
    if n_entries > MAX_ENTRIES:
        raise ValueError(f"more than {MAX_ENTRIES:,} layers or arrays")


def _names(group, key):
    """The strings of an attribute that lists names."""
    attribute = h5py.h5a.open(group.id, key.encode())
    n_names = attribute.get_space().get_simple_extent_npoints()
    if n_names == 0:
        return []
    kind = attribute.get_type()
    if kind.get_class() != h5py.h5t.STRING or kind.is_variable_str() or n_names * kind.get_size() > MAX_ATTRIBUTE:
        raise ValueError(f"{key} is not a list of names of fixed length")
    _check_number(n_names)
    return [name.decode() for name in np.ravel(group.attrs[key])]


def _member(group, name, kind):
    """The group or dataset of a name such as `conv2d/kernel:0`, reached without links, which may lead into other files."""
    item, parts = group, name.split("/")
    if len(parts) > MAX_PARTS:
        raise ValueError("a name of too many parts")
    for part in parts:
        if not isinstance(item, h5py.Group) or not isinstance(item.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"{name} is missing, or a link")
        item = item[part]
    if not isinstance(item, kind):
        raise ValueError(f"{name} is not a {kind.__name__.lower()}")
    return item


def _dataset(group, name):
    """The array of a name, yet to be read: numbers that lie in the file as they are, so that reading takes no more than their size."""
    dataset = _member(group, name, h5py.Dataset)
    kind, storage = dataset.id.get_type(), dataset.id.get_create_plist()
    if kind.get_class() != h5py.h5t.FLOAT or kind.get_size() not in FLOAT_BYTES:
        raise ValueError(f"{name} is not of floating-point numbers")
    if storage.get_layout() not in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT) or storage.get_external_count():
        raise ValueError(f"{name} is in chunks, compressed or in another file")
    if dataset.id.get_storage_size() != math.prod(dataset.shape) * kind.get_size():
        raise ValueError(f"{name} does not have the values of its shape")
    return dataset


def _class_names(layers):
    """The names that Keras 3 gives layers in its files: the class in snake case, numbered in the order of `model.layers`."""
    counts, names = {}, []
    for layer in layers:
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(layer).__name__).lower()
        count = counts[kind] = counts.get(kind, -1) + 1
        names.append(f"{kind}_{count}" if count else kind)
    return names


def _kind_and_number(name):
    """`conv2d_12` -> (`conv2d`, 12); a name without a number is the first of its kind."""
    kind, number = re.fullmatch(r"(.*?)(?:_(\d+))?", name, re.DOTALL).groups()
    return kind, int(number or 0)


def _by_creation(named):
    """(name, value) pairs sorted by kind and, within a kind, by number."""
    return sorted(named, key=lambda pair: _kind_and_number(pair[0]))


def _difference(expected, found):
    """What first differs between two lists of (layer name, shapes) sorted by creation, in words; None if nothing does."""
    for (name, shapes), (file_name, file_shapes) in zip(expected, found, strict=False):
        kind, file_kind = _kind_and_number(name)[0], _kind_and_number(file_name)[0]
        if kind != file_kind:
            return f"the network has a layer {name} where the file has {format_value(file_name)}"
        if shapes != file_shapes:
            return f"{name} has the shapes {shapes} in the network and {format_value(file_shapes)} in the file ({format_value(file_name)})"
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


def parse_arguments(arguments):
    """The parsed command line; `--help` and wrong usage end the process."""
    parser = argparse.ArgumentParser(prog="python -m mat.models.weights", description="Fetch the released weights and check them.")
    parser.add_argument("--download", metavar="DIRECTORY", required=True, type=expand_path, help="where the file goes, such as weights/")
    parser.add_argument("--url", default=RELEASED_URL, help="where it comes from (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the command; returns the exit status."""
    again = "interrupted; run the same command again"
    return run_command("mat.models.weights", parse_arguments, _download, arguments, interrupted=again)


def _download(arguments):
    """What the command line asks for."""
    path = download_released(arguments.download, arguments.url)
    console.print(f"{path}: the released file, git blob {RELEASED_BLOB}")


if __name__ == "__main__":
    sys.exit(main())
