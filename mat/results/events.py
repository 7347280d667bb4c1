"""TensorBoard events of a run: scalars and pictures by epoch or step, each written once however often the run was interrupted."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from mat.cli.files import sync, write_error

_SCALAR_BYTES = 70  # of a scalar in an event file, about


class Events:
    """The event files in a directory. A new file is opened at the first `write`.

    Every process writes a file of its own. What earlier ones hold is not written again, as training an epoch again gives the same values.
    """

    def __init__(self, directory: str | os.PathLike):
        self._directory = pathlib.Path(directory)
        self._writer: Any = None
        self._written = set(written_tags(directory))
        self._unsynced_bytes = 0  # about how much was written since the last `sync`

    def write(self, step: int, scalars: dict[str, float], pictures: dict[str, np.ndarray] | None = None, *, synced: bool = True) -> None:
        """Write scalars and pictures (uint8 [H, W, 3]) of an epoch or a step by their tags, except those that are written already.

        If not `synced`, they are on the disk only after the next `sync`. An OSError tells of a failed write.
        """
        scalars = {tag: value for tag, value in scalars.items() if (tag, step) not in self._written}
        pictures = {tag: picture for tag, picture in (pictures or {}).items() if (tag, step) not in self._written}
        if not scalars and not pictures:
            return
        with self._report_write_errors():
            if self._writer is None:
                self._directory.mkdir(exist_ok=True)  # TensorFlow would make it with its parents, where a file system was unmounted
                self._writer = tf.summary.create_file_writer(str(self._directory))
            self._unsynced_bytes += _SCALAR_BYTES * len(scalars) + sum(picture.nbytes for picture in pictures.values())
            with self._writer.as_default(step=step):
                for tag, value in scalars.items():
                    tf.summary.scalar(tag, value)
                for tag, picture in pictures.items():
                    tf.summary.image(tag, picture[np.newaxis])
        if synced:
            self.sync()
        self._written |= {(tag, step) for tag in (*scalars, *pictures)}

    def sync(self) -> None:
        """Wait until all that was written is on the disk. An OSError tells of a failed write."""
        if not self._unsynced_bytes:
            return
        with self._report_write_errors():
            self._writer.flush()
            for path in self._directory.glob("*tfevents*"):
                sync(path)
        self._unsynced_bytes = 0

    @contextlib.contextmanager
    def _report_write_errors(self) -> Iterator[None]:
        """Within the block a failed write ends in an OSError that names the directory."""
        try:
            yield
        except (tf.errors.OpError, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise write_error(self._directory, self._unsynced_bytes, reason, getattr(error, "errno", None)) from None


def written_tags(directory: str | os.PathLike) -> list[tuple[str, int]]:
    """(tag, epoch or step) of every value in the event files of a directory, sorted; of a damaged file those before the damage.

    An OSError tells of a file that cannot be read.
    """
    return sorted((value.tag, epoch) for epoch, value in _values(directory))


def read_values(directory: str | os.PathLike, tag: str) -> dict[int, np.ndarray]:
    """The values of a tag in the event files of a directory, by epoch or step in rising order; otherwise as `written_tags`.

    A scalar is float32 []. Pictures are bytes [2 + n]: width and height in decimal digits, and n PNG files.
    """
    return dict(sorted((epoch, tf.make_ndarray(value.tensor)) for epoch, value in _values(directory) if value.tag == tag))


def _values(directory: str | os.PathLike) -> Iterator[tuple[int, Any]]:
    """(epoch, summary value) of every value that can be read, file by file."""
    paths = sorted(pathlib.Path(directory).glob("*tfevents*"))
    for path in paths:
        with open(path, "rb"):  # a file that cannot be opened is an error that `ignore_errors` would ignore for ever
            pass
    for path in paths:
        for record in tf.data.TFRecordDataset(str(path)).ignore_errors():
            event = tf.compat.v1.Event.FromString(record.numpy())
            yield from ((event.step, value) for value in event.summary.value)
