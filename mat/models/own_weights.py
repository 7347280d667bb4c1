"""Files of an own network: Keras' `.weights.h5`, and `.keras`, the whole of it."""

import collections
import io
import os
import pathlib
import tempfile
import warnings
import zipfile
from collections.abc import Callable

import h5py
import keras

from mat.cli.errors import UserError
from mat.cli.files import replace_file
from mat.models.other_files import refuse_other_files
from mat.models.own_network_source import reason

Path = str | os.PathLike[str]


def save_own_weights(model: keras.Model, path: Path) -> None:
    """Write a network's weights as `.weights.h5`, as a whole file or not at all; an OSError tells that they cannot be written."""
    replace_file(path, _content(model.save_weights, ".weights.h5"))


def save_network(model: keras.Model, path: Path) -> None:
    """Write a whole network as `.keras`, as a whole file or not at all; Keras' own errors tell of layers that it cannot save."""
    replace_file(path, _content(model.save, ".keras"))


def _content(save: Callable[[str], None], ending: str) -> bytes:
    """The bytes that `save` writes into a file of this ending."""
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, f"network{ending}")
        save(path)
        return pathlib.Path(path).read_bytes()


def load_own_weights(model: keras.Model, path: Path) -> None:
    """Set a network's weights from a `.weights.h5` file, or from those in a `.keras` file; all of them or none.

    Raises:
        UserError: the file cannot be read, is another one, or has other weights than the network.
    """
    path = str(path)
    if not path.endswith(".keras") or not zipfile.is_zipfile(path):
        refuse_other_files(path)
    before = model.get_weights()
    try:
        # Keras passes over what a file has beyond the network's layers.
        if difference := _difference(model, _shapes(path)):
            remedy = "Give the network that the file was trained with"
            raise UserError(f"{path}: these weights are not of this network: {difference}. {remedy}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.load_weights(path)
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, MemoryError, zipfile.BadZipFile) as error:
        model.set_weights(before)
        expected = f"not the weights of this network ({reason(error)})"
        raise UserError(f"{path}: {expected}. Give a .weights.h5 or .keras file of the network") from None


def _shapes(path):
    """The shapes of all weights in a `.weights.h5` or `.keras` file, but for an optimizer's."""
    shapes = []

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer"):
            shapes.append(tuple(item.shape))

    if path.endswith(".keras"):
        with zipfile.ZipFile(path) as archive:
            path = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return shapes


def _difference(model, shapes):
    """What the weights of a model have beyond those of these shapes, or these beyond them, in words; None if nothing."""
    if len(model.weights) != len(shapes):
        return f"the network has {len(model.weights)} arrays, the file {len(shapes)}"
    one, other = collections.Counter(tuple(weight.shape) for weight in model.weights), collections.Counter(shapes)
    if one == other:
        return None
    return f"an array of the network is {list(next(iter(one - other)))}, where the file has {list(next(iter(other - one)))}"
