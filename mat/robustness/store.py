"""The directory of an evaluation.

While an evaluation runs, it holds `protocol.json` and the patches fitted so far, in `restarts/`. `report.json` is written as the very
last file, so that no unfinished evaluation looks complete.
"""

import itertools
import json
import os
import pathlib
import zipfile
import zlib

import numpy as np
from numpy.lib.npyio import NpzFile

from mat.cli.console import console
from mat.cli.errors import UserError
from mat.cli.files import check_writable, is_occupied, npz, replace_file
from mat.cli.text import single_line

REPORT_FILE = "report.json"
FITTED_PATCHES_FILE = "universal_patches.npz"
EVALUATION_SUFFIX = "_evaluation"
_PROTOCOL_FILE = "protocol.json"
_REMEDY = "Choose another --output"
# Of the protocol, what may be added to a finished evaluation, and may change in an unfinished one, as no fitted patch depends on it.
_MAY_GROW = ("patches_from_git_blob", "patches_git_blob", "evaluation.attacks", "evaluation.curves")


def report_path(weights: str | os.PathLike[str], *, quick: bool) -> pathlib.Path:
    """Where the evaluation of a weights file goes by default: beside it, a quick one apart from the full one."""
    weights = pathlib.Path(weights)
    stem = weights.name.removesuffix(".keras").removesuffix(".h5").removesuffix(".weights")
    return weights.with_name(f"{stem}{'_quick' if quick else ''}{EVALUATION_SUFFIX}")


def read_report(path: str | os.PathLike[str]) -> dict | None:
    """The report of the finished evaluation in a directory; None where there is none that can be read."""
    report = _read_json(pathlib.Path(path) / REPORT_FILE)
    return report if {"headline", "subject"} <= report.keys() else None


def _read_json(path: pathlib.Path) -> dict:
    """The object in a JSON file; an empty one where the file is missing, damaged or another one."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` file; a ValueError says why it cannot be read: missing, damaged or another kind of file."""
    try:
        with open(path, "rb") as file, NpzFile(file) as arrays:  # `np.load` would take other files for pickles
            return dict(arrays)
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(getattr(error, "strerror", None) or single_line(str(error))) from None


class ReportDirectory:
    """The directory of one evaluation. Nothing is written before `create`.

    Args:
        path: may exist if it is empty, but for logs.
        protocol: all that the results depend on, plain values. It may have more attacks and patches than the directory's, and curves.
        numbered: where something else is in the directory, take `path_2`, `path_3`, ... instead of refusing.
        writes: False for workers other than the chief, which only read.

    Raises:
        UserError: the directory exists and `resume` is not set, cannot be made, or holds another evaluation or something else.
    """

    def __init__(
        self, path: str | os.PathLike[str], protocol: dict, *, resume: bool = False, numbered: bool = False, writes: bool = True
    ) -> None:
        self.path, self._protocol, self._writes = pathlib.Path(path), protocol, writes
        self.report: dict | None = None  # of the finished evaluation in it, which has all that the protocol asks for
        for number in itertools.count(2):
            try:
                self._check(resume)
                return
            except OSError as error:
                raise UserError(f"{self.path}: cannot be used: {error.strerror}. {_REMEDY}") from None
            except UserError:
                if not numbered or not self.path.is_dir():
                    raise
            console.print(f"{self.path}: holds another evaluation, or something else; that does not count")
            self.path = pathlib.Path(f"{path}_{number}")

    def _check(self, resume: bool) -> None:
        """Refuse a directory that cannot be used."""
        occupied = is_occupied(self.path)
        if occupied and not resume:
            raise UserError(f"{self.path}: exists already. {_REMEDY}, or continue the evaluation in it with --resume")
        if self._writes:
            check_writable(self.path, _REMEDY)
        report = read_report(self.path) if occupied else None
        if report and has_all(report, self._protocol):
            self.report = report
            return
        saved = _read_json(self.path / _PROTOCOL_FILE) if occupied else self._protocol
        if not saved:
            raise UserError(f"{self.path}: holds no evaluation to continue ({_PROTOCOL_FILE}). {_REMEDY}")
        tried = _report_protocol(report) if report else {}  # which must stay, while what was only begun may be given up
        for key in saved | self._protocol:
            then, now = (tried if key in _MAY_GROW else saved).get(key), self._protocol.get(key)
            if then != now and not (key in _MAY_GROW and _is_part_of(then, now)):
                difference = f"the evaluation in it has {key}: {single_line(str(then))}, and this one has {key}: {single_line(str(now))}"
                raise UserError(f"{self.path}: {difference}. Give what it was begun with, or choose another --output")

    def create(self) -> None:
        """Make the directory, with the protocol in it."""
        if not self._writes:
            return
        (self.path / "restarts").mkdir(parents=True, exist_ok=True)
        self.write({_PROTOCOL_FILE: (json.dumps(self._protocol, indent=2) + "\n").encode()})

    def write_report(self, files: dict[str, bytes]) -> None:
        """Write what a finished evaluation leaves, the report last, in place of an earlier one's."""
        if not self._writes:
            return
        (self.path / REPORT_FILE).unlink(missing_ok=True)
        self.write(files)

    def write(self, files: dict[str, bytes]) -> None:
        """Write files, name -> content, in their order."""
        for name, content in files.items():
            replace_file(self.path / name, content)

    def save(self, name: str, **arrays: np.ndarray) -> None:
        """Keep the arrays of a fitted patch."""
        if not self._writes:
            return
        self.write({f"restarts/{name}.npz": npz(**arrays)})

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays of a fitted patch; None where they are not kept or cannot be read, and the patch is to be fitted again."""
        try:
            return read_arrays(self.path / "restarts" / f"{name}.npz")
        except ValueError:
            return None


def has_all(report: dict, protocol: dict) -> bool:
    """Whether a finished evaluation has all that a protocol, or a part of one, asks for."""
    done = _report_protocol(report)
    return all(now == done.get(key) or (key in _MAY_GROW and _is_part_of(now, done.get(key))) for key, now in protocol.items())


def _report_protocol(report: dict) -> dict:
    """What the results of a report depend on, under the keys of a protocol."""
    subject = report["subject"]
    return subject | {f"evaluation.{key}": value for key, value in subject.get("protocol", {}).items()}


def _is_part_of(one: list | bool | None, other: list | bool | None) -> bool:
    """Whether a list is in another, or a switch is off or both are on."""
    if isinstance(one, bool) or isinstance(other, bool):
        return not one or bool(other)
    return set(one or ()) <= set(other or ())
