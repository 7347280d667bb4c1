"""Checkpoints: all that a run goes on from, written so that there is always a whole one, and read so that a damaged one costs little."""

import contextlib
import errno
import json
import os
import pathlib
import re
import shutil

import tensorflow as tf

from mat import __version__
from mat.cli.console import console
from mat.cli.errors import UserError
from mat.cli.files import replace_file, sync, write_error

RECORD_KEY = "record/.ATTRIBUTES/py_state"
FILES = re.compile(r"ckpt-(\d+)(\.index|\.data-\d+-of-\d+|_temp)")
# What TensorFlow raises on damaged files.
UNREADABLE = (tf.errors.OpError, ValueError, RuntimeError, LookupError, TypeError, AttributeError)


class RunRecord(tf.train.experimental.PythonState):
    """What a checkpoint holds beside tensors.

    Args:
        config: the run's config as plain values.
        data_sha256: the fingerprint of its data.

    `rows` are the complete epochs, a dict each: what the log says of them. `versions` are those of this program and of TensorFlow.
    """

    def __init__(self, config, data_sha256):
        super().__init__()
        self.config = config
        self.data_sha256 = data_sha256
        self.versions = {"mat": __version__, "tensorflow": tf.__version__}
        self.rows = []

    def serialize(self):
        """The record as JSON."""
        names = ("config", "data_sha256", "versions", "rows")
        return json.dumps({name: getattr(self, name) for name in names})

    def deserialize(self, string_value):
        """Take over the epochs of a record; config, data and versions are this run's own."""
        self.rows = json.loads(string_value)["rows"]


class Checkpoints:
    """The newest checkpoints of a run. Nothing is written before `save`.

    Args:
        directory: where they are.
        keep: how many are kept.
        n_bytes: about how large one is, for messages.
    """

    def __init__(self, directory, *, keep, n_bytes=0):
        self.directory = pathlib.Path(directory)
        self.n_bytes = n_bytes
        self._keep = keep
        self._manager = None
        self._damaged = set()  # path prefixes

    def paths(self):
        """The path prefixes of all checkpoints, damaged ones too, the newest first.

        Raises:
            OSError: the directory cannot be read.
        """
        numbers = [int(match[1]) for path in self._files() if (match := FILES.fullmatch(path.name)) and match[2] == ".index"]
        return [str(self.directory / f"ckpt-{number}") for number in sorted(numbers, reverse=True)]

    def read_record(self):
        """The values of the newest readable `RunRecord`, a dict; None where there is none.

        Raises:
            UserError: it is of another version of this program.
            OSError: the directory or a file in it cannot be read.
        """
        for path in self.paths():
            self._check_reach(path)
            try:
                reader = tf.train.load_checkpoint(path)
                if not reader.has_tensor(RECORD_KEY):
                    raise _other_version(path)
                return json.loads(reader.get_tensor(RECORD_KEY))
            except UNREADABLE as error:
                self._pass_over(path, error)
        return None

    def restore(self, state):
        """Set a `tf.train.Checkpoint` to the newest checkpoint that is whole; damaged ones are reported and passed over.

        Returns:
            Its path prefix.

        Raises:
            UserError: none is whole, or one holds other variables than `state`.
            OSError: the directory or a file in it cannot be read.
        """
        for path in self.paths():
            if path in self._damaged:
                continue
            self._check_reach(path)
            try:
                status = state.restore(path)
                status.expect_partial()  # what does not fit is told here, not in warnings at the end
                status.assert_consumed()
                return path
            except (AssertionError, ValueError):  # other variables, or of other shapes
                raise _other_version(path) from None
            except UNREADABLE as error:
                self._pass_over(path, error)
        raise UserError(
            f"{self.directory}: no checkpoint is whole. Start afresh under another unique_name, from the run's newest weights file with "
            "initial_weights"
        )

    def _check_reach(self, path):
        """Let the system say what keeps a checkpoint from being read: TensorFlow says of all of them that the file is damaged."""
        for file in self.directory.glob(f"{pathlib.Path(path).name}.*"):
            with open(file, "rb") as content:
                content.read(1)

    def _pass_over(self, path, error):
        """Report a damaged checkpoint."""
        console.print(f"{path}: damaged, passed over ({_reason(error)})")
        self._damaged.add(path)

    def save(self, state):
        """Write a `tf.train.Checkpoint` as the newest checkpoint, and let all but the `keep` newest go.

        Returns:
            Its path prefix.

        Raises:
            OSError: it cannot be written; those that were there stay.
        """
        whole = []

        def sync_all(path):  # before the manager removes an older one
            for file in self.directory.glob(f"{pathlib.Path(path).name}.*"):
                sync(file)
            whole.append(pathlib.Path(path).name)

        number = int(state.save_counter) + 1
        path = str(self.directory / f"ckpt-{number}")
        if not self.directory.is_dir():  # TensorFlow would make it again, where a file system was unmounted on the disk below
            raise write_error(path, self.n_bytes, os.strerror(errno.ENOENT), errno.ENOENT)
        try:
            if self._manager is None:
                self._manager = self._make_manager(state)
            self._manager.save(checkpoint_number=number, options=tf.train.CheckpointOptions(experimental_write_callbacks=[sync_all]))
        except (tf.errors.OpError, OSError) as error:
            self._manager = None  # it counts what it did not write
            with contextlib.suppress(OSError):
                self._remove(lambda name: name == f"ckpt-{number}" and name not in whole)
            raise write_error(path, self.n_bytes, _reason(error), getattr(error, "errno", None)) from None
        self._damaged.discard(path)
        kept = {pathlib.Path(kept).name for kept in self._manager.checkpoints}
        with contextlib.suppress(OSError):
            self._remove(lambda name: name not in kept)
        return path

    def _make_manager(self, state):
        """TensorFlow's manager, told which checkpoints are whole: its own list of them may be older than the last crash."""
        names = [pathlib.Path(path).name for path in reversed(self.paths()) if path not in self._damaged]
        if names:
            lines = [f'model_checkpoint_path: "{names[-1]}"']
            for i, name in enumerate(names, start=1):  # the manager forgets what has no time; the order is all that counts
                lines += [f'all_model_checkpoint_paths: "{name}"', f"all_model_checkpoint_timestamps: {i}.0"]
            replace_file(self.directory / "checkpoint", "\n".join([*lines, ""]).encode())
        return tf.train.CheckpointManager(state, str(self.directory), max_to_keep=self._keep)

    def _files(self):
        return list(self.directory.iterdir()) if self.directory.is_dir() else []

    def _remove(self, unwanted):
        """Remove what a write that broke off left, and the files of checkpoints whose name is unwanted."""
        for path in self._files():
            match = FILES.fullmatch(path.name)
            half_written = path.name.startswith("checkpoint.tmp") or (match and match[2] == "_temp")
            if half_written or (match and unwanted(f"ckpt-{match[1]}")):
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _reason(error):
    """Why a file could not be read or written: what TensorFlow says without its node names, or the system's words."""
    text = getattr(error, "message", None) or getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = re.sub(r"\{\{.*?\}\}|\[Op:\w+\]", "", text.splitlines()[0]).strip()
    return text.rpartition("; ")[2]  # FILE; reason


def _other_version(path):
    return UserError(
        f"{path}: was written by another version of this program. Start afresh under another unique_name, or go on from its weights with "
        "initial_weights"
    )
