"""Arrays of patches: the trained bank, patches that were fitted on another network, and the range of pixels."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from mat.cli.errors import UserError
from mat.robustness.store import EVALUATION_SUFFIX, FITTED_PATCHES_FILE, REPORT_FILE, read_arrays


def find_transferred(run: str | os.PathLike[str], *, exclude: str | os.PathLike[str]) -> pathlib.Path:
    """The patches file of the one finished evaluation in `run`: its own directory, or a training run's (`--patches-from`).

    The evaluation in `exclude`, which asks for patches, does not count.
    """
    run, own = pathlib.Path(run), pathlib.Path(exclude).resolve()
    try:
        directories = [run] if (run / FITTED_PATCHES_FILE).is_file() else sorted(run.glob(f"*{EVALUATION_SUFFIX}*"))
        found = [d for d in directories if (d / FITTED_PATCHES_FILE).is_file() and (d / REPORT_FILE).is_file() and d.resolve() != own]
    except OSError as error:
        raise UserError(f"{run}: cannot be read (--patches-from): {error.strerror}") from None
    if len(found) > 1:
        raise UserError(f"{run}: several evaluations to take patches from. Give --patches-from one of {', '.join(map(str, found))}")
    if not found:
        raise UserError(
            f"{run}: no patches to transfer (--patches-from): no finished evaluation in it or in *{EVALUATION_SUFFIX}*. Evaluate that "
            "network first: python mat/evaluate.py CONFIG --weights FILE"
        )
    return found[0] / FITTED_PATCHES_FILE


def read_transferred(paths: Sequence[str | os.PathLike[str]]) -> list[tuple[str, np.ndarray]]:
    """The (name, patch float32 [h, w, 3] in [0, 1]) that evaluations fitted, from their `universal_patches.npz`.

    Names of several files begin with the file's number: `2-white_box-target3-grey-step0.02-0`.
    """
    transferred: list[tuple[str, np.ndarray]] = []
    for number, path in enumerate(paths, start=1):
        try:
            patches, names = read_labeled(path, "names")
        except ValueError as error:
            raise UserError(f"{path}: cannot be read ({error}). Evaluate that network again") from None
        prefix = f"{number}-" if len(paths) > 1 else ""
        transferred += [(f"{prefix}{name}", patch) for name, patch in zip(names.tolist(), patches, strict=True)]
    return transferred


def read_bank(path: str | os.PathLike[str], n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The bank of `patches.npz`: patches float32 [P, h, w, 3] in [0, 1] and targets int64 [P] of 0 .. `n_classes` - 1."""
    try:
        patches, targets = read_labeled(path, "targets")
        if not np.isin(targets, range(n_classes)).all():
            raise ValueError(f"its targets go from {targets.min()} to {targets.max()}")
    except ValueError as error:
        raise UserError(
            f"{path}: not a bank for {n_classes} classes ({error}). Give the patches.npz of a training run of this config with --bank"
        ) from None
    return patches, targets.astype(np.int64)


def read_labeled(path: str | os.PathLike[str], label: str) -> tuple[np.ndarray, np.ndarray]:
    """`patches` float32 [n, h, w, 3] in [0, 1], n >= 1, and the array `label` [n] of an `.npz` file; a ValueError where it has none."""
    arrays = read_arrays(path)
    patches, labels = arrays.get("patches", np.zeros(0)), arrays.get(label, np.zeros(0))
    if patches.ndim != 4 or patches.shape[-1] != 3 or not patches.size or labels.shape != patches.shape[:1]:
        raise ValueError(f"no patches [n, h, w, 3] with their {label}")
    return unit_floats(patches), labels


def unit_floats(array: np.ndarray) -> np.ndarray:
    """Pixels of uint8, or of floats in [0, 1], as float32 in [0, 1]; a ValueError says what else they are."""
    if array.dtype == np.uint8:
        return array.astype(np.float32) / 255
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"the values are of {array.dtype}, neither uint8 nor float")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"the values go from {float(low)} to {float(high)}, not from 0 to 1")
    return array.astype(np.float32)
