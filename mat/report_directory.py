"""The directory of an evaluation: what is written, and how an interrupted evaluation is continued.

While an evaluation runs, it holds `protocol.json` and the patches fitted so far, in `restarts/`; the report comes last, `report.json`
as the very last file, so that no unfinished evaluation looks complete.
"""

import io
import json
import pathlib
import zipfile

import numpy as np

from mat.errors import UserError
from mat.files import check_writable, replace_file

REPORT = "report.json"
PROTOCOL = "protocol.json"
RESTARTS = "restarts"
PATCHES = "universal_patches.npz"
SUFFIX = "_evaluation"


def beside(weights):
    """Where the evaluation of a weights file goes unless the user says otherwise: beside it."""
    weights = pathlib.Path(weights)
    return weights.with_name(weights.name.removesuffix(".h5").removesuffix(".weights") + SUFFIX)


def read_report(path):
    """The report of a finished evaluation in a directory, a dict; None where there is none."""
    try:
        return json.loads((pathlib.Path(path) / REPORT).read_text())
    except (OSError, ValueError):
        return None


class ReportDirectory:
    """The directory of one evaluation. Nothing is written before `create`.

    Args:
        path: the directory.
        protocol: dict of plain values: all that the results depend on.
        resume: whether to continue the evaluation that is in the directory.

    Raises:
        UserError: the directory exists and `resume` is not set, cannot be made, or holds another evaluation or something else.
    """

    def __init__(self, path, protocol, *, resume=False):
        self.path = pathlib.Path(path)
        self._protocol = protocol
        if self.path.exists() and not resume:
            raise UserError(f"{self.path}: exists already. Choose another --output, remove it, or continue what is in it with --resume")
        check_writable(self.path, "Choose another --output")
        if self.path.exists() and any(self.path.iterdir()):
            self._check_same()

    def _check_same(self):
        """Refuse to continue another evaluation."""
        try:
            saved = json.loads((self.path / PROTOCOL).read_text())
            different = [key for key in {**saved, **self._protocol} if saved.get(key) != self._protocol.get(key)]
        except (OSError, ValueError, AttributeError, TypeError):
            raise UserError(f"{self.path}: holds no evaluation to continue ({PROTOCOL}). Choose another --output") from None
        if different:
            key = different[0]
            raise UserError(
                f"{self.path}: the evaluation in it has {key}: {saved.get(key)}, and --resume was given {key}: {self._protocol.get(key)}. "
                "Give what it was begun with, or choose another --output"
            )

    def create(self):
        """Make the directory, with the protocol in it, and take back a report that was there: it is written again at the end."""
        (self.path / RESTARTS).mkdir(parents=True, exist_ok=True)
        (self.path / REPORT).unlink(missing_ok=True)
        replace_file(self.path / PROTOCOL, (json.dumps(self._protocol, indent=2) + "\n").encode())

    def save(self, name, **arrays):
        """Keep the arrays of a restart."""
        content = io.BytesIO()
        np.savez(content, **arrays)
        replace_file(self.path / RESTARTS / f"{name}.npz", content.getvalue())

    def load(self, name):
        """The arrays of a restart, a dict; None where it is not kept or cannot be read, and is to be made again."""
        try:
            with np.load(self.path / RESTARTS / f"{name}.npz", allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            return None

    def write(self, files):
        """Write the report's files, name -> bytes, in their order."""
        for name, content in files.items():
            replace_file(self.path / name, content)


def patches_file(names, patches, accuracies):
    """`universal_patches.npz`, bytes: names [R], patches float32 [R, h, w, 3] and the accuracy that each left [R]."""
    content = io.BytesIO()
    np.savez(content, names=np.array(names), patches=np.stack(patches), accuracies=np.array(accuracies))
    return content.getvalue()


def read_patches(run):
    """The patches that an evaluation fitted.

    Args:
        run: directory of an evaluation, or the result directory of a training run with one in it; the last of several is taken.

    Returns:
        list of (name, patch float32 [h, w, 3]).

    Raises:
        UserError: there is no finished evaluation.
    """
    run = pathlib.Path(run)
    found = [path for directory in (run, *sorted(run.glob(f"*{SUFFIX}"))) if (path := directory / PATCHES).is_file()]
    if not found:
        raise UserError(
            f"{run}: no patches to transfer (--patches-from): no {PATCHES} of a finished evaluation in it or in *{SUFFIX}. Evaluate that "
            "network first: python mat/evaluate.py CONFIG --weights FILE"
        )
    try:
        with np.load(found[-1], allow_pickle=False) as arrays:
            names, patches = arrays["names"], np.asarray(arrays["patches"], np.float32)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{found[-1]}: cannot be read ({' '.join(str(error).split())}). Evaluate that network again") from None
    if patches.ndim != 4 or patches.shape[-1] != 3 or len(names) != len(patches):
        raise UserError(f"{found[-1]}: not patches [R, h, w, 3] with their names. Evaluate that network again")
    return [(str(name), patch) for name, patch in zip(names, patches, strict=True)]


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
    except (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: not a bank ({' '.join(str(error).split())}). Give the patches.npz of a training run with --bank"
        ) from None
    usable = patches.ndim == 4 and patches.shape[-1] == 3 and targets.shape == patches.shape[:1] and patches.size
    if not usable or targets.min() < 0 or targets.max() >= n_classes or not (patches.min() >= 0 and patches.max() <= 1):
        raise UserError(f"{path}: not a bank for {n_classes} classes. Give the patches.npz of a training run of this config with --bank")
    return patches, targets
