"""Checkpoints of a run: written atomically, and damaged ones passed over when they are read."""

import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from mat import __version__
from mat.cli.console import console
from mat.cli.errors import UserError
from mat.cli.files import sync, write_error

_RECORDED = ("config", "data_sha256", "network_git_blob", "versions", "rows", "extensions")
RECORD_KEY = "record/.ATTRIBUTES/py_state"
CHECKPOINT_FILE = re.compile(r"ckpt-(\d+)(\.index|\.data-\d+-of-\d+|_temp)")
# What TensorFlow raises on damaged files.
_DAMAGED = (tf.errors.OpError, ValueError, RuntimeError, LookupError, TypeError, AttributeError)


class RunRecord(tf.train.experimental.PythonState):
    """What a checkpoint holds beside tensors.

    These are the config's plain values, fingerprints of data and network, versions, the log's rows, and how the run was extended.
    """

    def __init__(self, config: dict[str, Any], data_sha256: str, network_git_blob: str | None = None):
        super().__init__()
        self.config = config
        self.data_sha256 = data_sha256
        self.network_git_blob = network_git_blob  # of the file of an own network
        self.versions = {"mat": __version__, "tensorflow": tf.__version__}
        self.rows: list[dict[str, float]] = []  # of the complete epochs
        self.extensions: list[list[int]] = []  # of each: the epochs begun before it, and n_epochs until then
        self.restored_n_epochs = 0  # of the checkpoint that it was restored from, 0 for none

    def serialize(self) -> str:
        """The record as JSON."""
        return json.dumps({name: getattr(self, name) for name in _RECORDED})

    def deserialize(self, string_value: str) -> None:
        """Take over the epochs and the extensions of a record; config, data and versions are this run's own."""
        values = json.loads(string_value)
        self.rows, self.extensions = values["rows"], values.get("extensions", [])  # which versions before 0.5 had not
        self.restored_n_epochs = values["config"].get("n_epochs", 0)


class Checkpoints:
    """The newest checkpoints of a run, `keep` of them. Nothing is written before `save`."""

    def __init__(self, directory: str | os.PathLike, *, keep: int):
        self.directory = pathlib.Path(directory)
        self._keep = keep
        self._damaged: set[str] = set()  # path prefixes

    def paths(self) -> list[str]:
        """Path prefixes of all checkpoints, damaged ones too, the newest first; an OSError if the directory cannot be read."""
        matches = [CHECKPOINT_FILE.fullmatch(path.name) for path in self._files()]
        numbers = sorted((int(match[1]) for match in matches if match and match[2] == ".index"), reverse=True)
        return [str(self.directory / f"ckpt-{number}") for number in numbers]

    def read_record(self) -> dict[str, Any] | None:
        """The values of the newest readable `RunRecord`; None where there is none.

        Raises:
            UserError: it is of another version of this program.
            OSError: the directory or a file in it cannot be read.
        """
        for path in self.paths():
            self._check_access(path)
            try:
                reader = tf.train.load_checkpoint(path)
                if not reader.has_tensor(RECORD_KEY):
                    raise _other_version(path)
                return json.loads(reader.get_tensor(RECORD_KEY))
            except _DAMAGED as error:
                self._pass_over(path, error)
        return None

    def restore(self, state: tf.train.Checkpoint) -> str:
        """Set `state` to the newest checkpoint that is whole, and return its path prefix; damaged ones are reported and passed over.

        Raises:
            UserError: none is whole, or one holds other variables than `state`.
            OSError: the directory or a file in it cannot be read.
        """
        for path in self.paths():
            if path in self._damaged:
                continue
            self._check_access(path)
            try:
                status = state.restore(path)
                status.expect_partial()  # what does not fit is told here, not in warnings at the end
                status.assert_consumed()
                return path
            except (AssertionError, ValueError):  # other variables, or of other shapes
                raise _other_version(path) from None
            except _DAMAGED as error:
                self._pass_over(path, error)
        raise UserError(
            f"{self.directory}: no checkpoint is whole. Start afresh under another unique_name, from the run's newest weights file with "
            "initial_weights"
        )

    def save(self, state: tf.train.Checkpoint, *, n_bytes: int = 0) -> str:
        """Write `state`, of about `n_bytes`, as the newest checkpoint, and return its path prefix; all but the `keep` newest are removed.

        Raises:
            OSError: it cannot be written; those that were there stay.
        """
        path = str(self.directory / f"ckpt-{int(state.save_counter.numpy()) + 1}")
        whole = []

        def sync_all(prefix: str) -> None:
            for file in self.directory.glob(f"{pathlib.Path(prefix).name}.*"):
                sync(file)
            whole.append(path)

        try:
            if not self.directory.is_dir():  # TensorFlow would make it again, where a file system was unmounted
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            state.save(str(self.directory / "ckpt"), options=tf.train.CheckpointOptions(experimental_write_callbacks=[sync_all]))
        except (tf.errors.OpError, OSError) as error:
            self._remove(lambda prefix: prefix == path and not whole)
            raise write_error(path, n_bytes, _reason(error), getattr(error, "errno", None)) from None
        self._damaged.discard(path)
        kept = [each for each in self.paths() if each not in self._damaged][: self._keep]
        self._remove(lambda prefix: prefix not in kept)
        return path

    def _check_access(self, path: str) -> None:
        """Raise the system's own error where a file cannot be read: TensorFlow takes it for damaged."""
        for file in self.directory.glob(f"{pathlib.Path(path).name}.*"):
            with open(file, "rb") as content:
                content.read(1)

    def _pass_over(self, path: str, error: Exception) -> None:
        """Report a damaged checkpoint."""
        console.print(f"{path}: damaged, passed over ({_reason(error)})")
        self._damaged.add(path)

    def _files(self) -> list[pathlib.Path]:
        return list(self.directory.iterdir()) if self.directory.is_dir() else []

    def _remove(self, unwanted: Callable[[str], bool]) -> None:
        """Remove half-written files, and those of checkpoints whose path prefix is unwanted."""
        files: list[pathlib.Path] = []
        with contextlib.suppress(OSError):
            files = self._files()
        for path in files:
            match = CHECKPOINT_FILE.fullmatch(path.name)
            half_written = path.name.startswith("checkpoint.tmp") or (match and match[2] == "_temp")
            if half_written or (match and unwanted(str(self.directory / f"ckpt-{match[1]}"))):
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _reason(error: Exception) -> str:
    """Why a file could not be read or written: what TensorFlow says without its node names, or the system's words."""
    text = getattr(error, "message", None) or getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = re.sub(r"\{\{.*?\}\}|\[Op:\w+\]", "", text.splitlines()[0]).strip()
    return text.rpartition("; ")[2]  # FILE; reason


def _other_version(path: str) -> UserError:
    return UserError(
        f"{path}: was written by another version of this program. Start afresh under another unique_name, or go on from its weights with "
        "initial_weights"
    )
