"""The directory of an evaluation: what is written, and how an interrupted evaluation is continued.

While an evaluation runs, it holds `protocol.json` and the patches fitted so far, in `restarts/`; the report comes last, `report.json`
as the very last file, so that no unfinished evaluation looks complete.
"""

import itertools
import json
import pathlib
import zipfile
import zlib

import numpy as np

from mat.cli.console import console
from mat.cli.errors import UserError
from mat.cli.files import check_writable, is_occupied, npz, replace_file

REPORT = "report.json"
PROTOCOL = "protocol.json"
RESTARTS = "restarts"
PATCHES = "universal_patches.npz"
SUFFIX = "_evaluation"
UNREADABLE = (  # what NumPy and its zip reader raise on other files
    *(OSError, ValueError, TypeError, AttributeError, EOFError, LookupError, RuntimeError, ArithmeticError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)


def report_path(weights, *, quick):
    """Where the evaluation of a weights file goes unless the user says otherwise: beside it, a quick one apart from the full one."""
    weights = pathlib.Path(weights)
    return weights.with_name(weights.name.removesuffix(".h5").removesuffix(".weights") + ("_quick" if quick else "") + SUFFIX)


def read_report(path):
    """The report of a finished evaluation in a directory, a dict; None where there is none that can be read."""
    try:
        report = json.loads((pathlib.Path(path) / REPORT).read_bytes())
        return report if report["subject"]["weights_git_blob"] and "headline" in report else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


class ReportDirectory:
    """The directory of one evaluation. Nothing is written before `create`.

    Args:
        path: the directory. It may exist if it is empty, but for logs.
        protocol: dict of plain values: all that the results depend on.
        resume: whether to continue the evaluation that is in the directory.
        or_next: where something else is in the directory, take `path_2`, `path_3`, ... instead of refusing.

    Raises:
        UserError: the directory exists and `resume` is not set, cannot be made, or holds another evaluation or something else.
    """

    def __init__(self, path, protocol, *, resume=False, or_next=False):
        self._protocol = protocol
        for number in itertools.count(1):
            self.path = pathlib.Path(path) if number == 1 else pathlib.Path(f"{path}_{number}")
            try:
                self._check(resume=resume)
                return
            except OSError as error:
                raise UserError(f"{self.path}: cannot be used: {error.strerror}. Choose another --output") from None
            except UserError:
                if not or_next or not self.path.is_dir():
                    raise
                console.print(f"{self.path}: holds another evaluation, or something else; that does not count")

    def _check(self, *, resume):
        """Refuse a directory that cannot be used."""
        begun = is_occupied(self.path)
        if begun and not resume:
            raise UserError(f"{self.path}: exists already. Choose another --output, or continue the evaluation in it with --resume")
        check_writable(self.path, "Choose another --output")
        if begun:
            self._check_same()

    def _check_same(self):
        """Refuse to continue another evaluation."""
        try:
            saved = json.loads((self.path / PROTOCOL).read_bytes())
            different = [key for key in {**saved, **self._protocol} if saved.get(key) != self._protocol.get(key)]
        except (OSError, ValueError, AttributeError, TypeError, RecursionError):
            raise UserError(f"{self.path}: holds no evaluation to continue ({PROTOCOL}). Choose another --output") from None
        if different:
            key = different[0]
            raise UserError(
                f"{self.path}: the evaluation in it has {key}: {saved.get(key)}, and this one has {key}: {self._protocol.get(key)}. "
                "Give what it was begun with, or choose another --output"
            )

    def finished(self):
        """The report of the evaluation, a dict, if it is finished; else None."""
        return read_report(self.path) if (self.path / PROTOCOL).exists() else None

    def create(self):
        """Make the directory, with the protocol in it."""
        self.path.mkdir(parents=True, exist_ok=True)
        replace_file(self.path / PROTOCOL, (json.dumps(self._protocol, indent=2) + "\n").encode())
        (self.path / RESTARTS).mkdir(exist_ok=True)

    def save(self, name, **arrays):
        """Keep the arrays of a restart."""
        replace_file(self.path / RESTARTS / f"{name}.npz", npz(**arrays))

    def load(self, name):
        """The arrays of a restart, a dict; None where it is not kept or cannot be read, and is to be made again."""
        try:
            with np.load(self.path / RESTARTS / f"{name}.npz", allow_pickle=False) as arrays:
                return dict(arrays)
        except UNREADABLE:
            return None

    def write(self, files):
        """Write the report's files, name -> bytes, in their order."""
        for name, content in files.items():
            replace_file(self.path / name, content)


def find_patches(run, *, but_not):
    """The patches file of a finished evaluation (`--patches-from`).

    Args:
        run: directory of the evaluation, or the result directory of a training run with one in it.
        but_not: directory of the evaluation that asks, which is none to take patches from.

    Returns:
        The file's path.

    Raises:
        UserError: there is no finished evaluation, or there are several.
    """
    run = pathlib.Path(run)
    try:
        directories = [run] if (run / PATCHES).is_file() else sorted(run.glob(f"*{SUFFIX}*"))
        found = [
            d for d in directories if (d / PATCHES).is_file() and (d / REPORT).is_file() and d.resolve() != pathlib.Path(but_not).resolve()
        ]
    except OSError as error:
        raise UserError(f"{run}: cannot be read (--patches-from): {error.strerror}") from None
    if len(found) > 1:
        raise UserError(f"{run}: several evaluations to take patches from. Give --patches-from one of {', '.join(map(str, found))}")
    if not found:
        raise UserError(
            f"{run}: no patches to transfer (--patches-from): no finished evaluation in it or in *{SUFFIX}*. Evaluate that network first: "
            "python mat/evaluate.py CONFIG --weights FILE"
        )
    return found[0] / PATCHES


def read_patches(path):
    """The patches that an evaluation fitted, from its `universal_patches.npz`.

    Returns:
        list of (name, patch float32 [h, w, 3] in [0, 1]).

    Raises:
        UserError: the file cannot be read or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names, patches = arrays["names"], np.asarray(arrays["patches"], np.float32)
    except UNREADABLE as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())}). Evaluate that network again") from None
    if not _are_patches(patches) or names.shape != patches.shape[:1]:
        raise UserError(f"{path}: not patches [R, h, w, 3] in [0, 1] with their names. Evaluate that network again")
    return [(str(name), patch) for name, patch in zip(names, patches, strict=True)]


def _are_patches(array):
    """Whether an array is [n, h, w, 3] in [0, 1], n >= 1."""
    return array.ndim == 4 and array.shape[-1] == 3 and array.size > 0 and bool(array.min() >= 0 and array.max() <= 1)


def read_bank(path, n_classes):
    """The bank of `patches.npz`: patches float32 [P, h, w, 3] in [0, 1] and targets int64 [P].

    Raises:
        UserError: the file cannot be read or is no bank for this number of classes.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            patches, targets = np.asarray(arrays["patches"], np.float32), np.asarray(arrays["targets"], np.int64)
    except FileNotFoundError:
        raise UserError(f"{path}: no such bank (--bank). Give the patches.npz of a training run") from None
    except UNREADABLE as error:
        raise UserError(
            f"{path}: not a bank ({' '.join(str(error).split())}). Give the patches.npz of a training run with --bank"
        ) from None
    usable = _are_patches(patches) and targets.shape == patches.shape[:1]
    if not usable or targets.min() < 0 or targets.max() >= n_classes:
        raise UserError(f"{path}: not a bank for {n_classes} classes. Give the patches.npz of a training run of this config with --bank")
    return patches, targets
