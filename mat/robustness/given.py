"""Patches that an evaluation is given as files: a printed patch, a published collection, another program's output."""

import collections
import itertools
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from mat.cli.errors import UserError
from mat.cli.file_kinds import ZIP, kind_of_file
from mat.cli.text import single_line
from mat.robustness.inputs import unit_floats
from mat.robustness.patch_pictures import CONTACT_SHEET, decode_patch, is_enlarged, resample
from mat.robustness.plan import NamedPatches, Shape
from mat.robustness.store import read_arrays

_NUMPY_MAGIC = b"\x93NUMPY"
_KINDS = "Give a PNG or another picture, an .npz of this program, or an .npy [R, h, w, 3] in [0, 1] or uint8"


def read_given(paths: Sequence[str | os.PathLike[str]], patch_shape: Shape, *, option: str = "--patches") -> tuple[NamedPatches, str]:
    """Read patches and bring them to one size.

    A picture of pixels that were enlarged is taken back to these pixels exactly; others are shrunk with anti-aliasing or enlarged, bicubic.

    Args:
        paths: pictures; `.npz` files of a bank or of an evaluation; `.npy` files [R, h, w, 3] or [h, w, 3], float in [0, 1] or uint8.
        patch_shape: (h, w, 3) of the evaluation.
        option: of the command that names the files, for messages.

    Returns:
        Names, all different, with patches float32 [h, w, 3] in [0, 1], and a line on what was done with them.

    Raises:
        UserError: a file cannot be read, or holds no patches of these proportions and in [0, 1].
    """
    patches: dict[str, np.ndarray] = {}
    ways: collections.Counter[str] = collections.Counter()
    for path in map(pathlib.Path, paths):
        if path.name == CONTACT_SHEET:  # DIR/*.png names it too
            ways["contact sheet, passed over"] += 1
            continue
        try:
            found, origin = _read(path)
        except OSError as error:
            remedy = "Name the files in it, as in DIR/*.png" if path.is_dir() else _KINDS
            raise UserError(f"{path}: cannot be read ({option}): {error.strerror or error}. {remedy}") from None
        except (ValueError, MemoryError) as error:  # the second of an array that is larger than the machine's memory, if only by its header
            raise UserError(f"{path}: no patches ({option}): {single_line(str(error))}. {_KINDS}") from None
        for name, patch in found:
            fitted, way = _bring_to_size(patch, patch_shape, f"{path}: of {_size(patch)} pixels ({option})")
            ways[f"of {_size(patch)}{origin}{way}"] += 1
            names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
            patches[next(candidate for candidate in names if candidate not in patches)] = fitted
    return list(patches.items()), ", ".join(f"{count} {way}" for way, count in ways.items())


def _read(path: pathlib.Path) -> tuple[list[tuple[str, np.ndarray]], str]:
    """The names and patches float32 [h, w, 3] in a file, and where they come from, in words; a ValueError says why there are none."""
    with open(path, "rb") as file:
        head = file.read(len(_NUMPY_MAGIC))
    origin, names = "", np.zeros(0)
    if kind_of_file(head) == ZIP:
        arrays = read_arrays(path)
        if "patches" not in arrays:
            raise ValueError("it has no array patches")
        patches, names = _checked(arrays["patches"]), arrays.get("names", names)
    elif head == _NUMPY_MAGIC:
        patches = _checked(np.load(path, allow_pickle=False))
    else:
        picture, is_exact = decode_patch(path)
        patches, origin = picture[np.newaxis], " as exported" if is_exact else ""
    if names.shape != patches.shape[:1]:
        names = np.array([path.stem if len(patches) == 1 else f"{path.stem}-{number}" for number in range(len(patches))])
    return [(f"given-{single_line(str(name))}", patch) for name, patch in zip(names, patches, strict=True)], origin


def _checked(array: np.ndarray) -> np.ndarray:
    """An array of patches as float32 [R, h, w, 3] in [0, 1]; a ValueError says why it is none."""
    patches = array[np.newaxis] if array.ndim == 3 else array
    if patches.ndim != 4 or patches.shape[-1] != 3 or not patches.size:
        remedy = "; numpy.moveaxis(array, -3, -1) moves the channels to the end" if 3 in patches.shape[1:2] else ""
        raise ValueError(f"the array has the shape {list(array.shape)}{remedy}")
    return unit_floats(patches)


def _bring_to_size(patch: np.ndarray, patch_shape: Shape, which: str) -> tuple[np.ndarray, str]:
    """A patch at the size of the evaluation, and what was done to it, in words; `which` is for messages."""
    (height, width, _), (new_height, new_width, _) = patch.shape, patch_shape
    if patch.shape == patch_shape:
        return patch, ""
    if 2 * abs(height * new_width - width * new_height) > max(new_height, new_width):  # more than rounding of the sides makes
        raise UserError(
            f"{which}, which are not the proportions of patch_shape: {list(patch_shape)}. Crop it "
            f"to {new_height}:{new_width}, height to width, or set patch_shape"
        )
    if height >= new_height:
        cells = resample(patch, new_height, new_width)
        if is_enlarged(patch, cells):
            return cells, f" taken back to its {new_height}x{new_width} cells"
    resized = tf.image.resize(patch, [new_height, new_width], method="bicubic", antialias=True).numpy()
    way = "shrunk with anti-aliasing" if height > new_height else "enlarged, bicubic,"
    return np.clip(resized, 0, 1), f" {way} to {new_height}x{new_width}"


def _size(patch: np.ndarray) -> str:
    return "x".join(map(str, patch.shape[:2]))
