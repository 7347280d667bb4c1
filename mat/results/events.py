"""TensorBoard events of a run: scalars and pictures by epoch, each written once however often the run was interrupted."""

import pathlib

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from mat.cli.files import replace_file, sync, write_error
from mat.data.records import CHECKSUM, HEADER, corrupt_records, framed_payloads


class Events:
    """The event files in a directory. Files are opened at the first `write`.

    Args:
        directory: where they are; made if missing.
        n_epochs: how many epochs are complete. Events of later ones go: a run that broke off wrote them, and will again.

    Raises:
        OSError: a file cannot be rewritten.
    """

    def __init__(self, directory, *, n_epochs):
        self._directory = pathlib.Path(directory)
        self._writer = None
        self._written = set()  # (tag, epoch)
        for half_written in self._directory.glob("*.part"):
            half_written.unlink()
        for path in sorted(self._directory.glob("*tfevents*")):
            self._take_over(path, n_epochs)

    def _take_over(self, path, n_epochs):
        """Note what a file of an earlier process holds, and leave out of it later epochs and what follows a damaged place."""
        content = path.read_bytes()
        spans, _ = framed_payloads(content)
        corrupt = corrupt_records(path, np.array([start for start, _ in spans], np.int64) - HEADER)
        kept, position = [], 0
        for start, stop in spans[: corrupt[0] if len(corrupt) else None]:
            try:
                event = tf.compat.v1.Event.FromString(content[start:stop])
            except DecodeError:
                break
            end = stop + CHECKSUM
            if event.step < n_epochs:
                kept.append(content[position:end])
                self._written |= {(value.tag, event.step) for value in event.summary.value}
            position = end
        kept = b"".join(kept)
        if kept != content:
            replace_file(path, kept)

    def write(self, epoch, scalars, pictures=None):
        """Write scalars (tag -> number) and pictures (tag -> uint8 [H, W, 3]) of an epoch, but what is written already.

        Raises:
            OSError: they cannot be written.
        """
        scalars = {tag: value for tag, value in scalars.items() if (tag, epoch) not in self._written}
        pictures = {tag: picture for tag, picture in (pictures or {}).items() if (tag, epoch) not in self._written}
        if not scalars and not pictures:
            return
        try:
            if self._writer is None:
                self._writer = tf.summary.create_file_writer(str(self._directory))
            with self._writer.as_default(step=epoch):
                for tag, value in scalars.items():
                    tf.summary.scalar(tag, value)
                for tag, picture in pictures.items():
                    tf.summary.image(tag, picture[np.newaxis])
            self._writer.flush()
            for path in self._directory.glob("*tfevents*"):
                sync(path)
        except (tf.errors.OpError, OSError) as error:
            size = sum(picture.nbytes for picture in pictures.values())
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise write_error(self._directory, size, reason, getattr(error, "errno", None)) from None
        self._written |= {(tag, epoch) for tag in (*scalars, *pictures)}


def written_tags(directory):
    """(tag, epoch) of every value in the event files of a directory, sorted."""
    paths = [str(path) for path in pathlib.Path(directory).glob("*tfevents*")]
    events = [tf.compat.v1.Event.FromString(record.numpy()) for path in paths for record in tf.data.TFRecordDataset(path)]
    return sorted((value.tag, event.step) for event in events for value in event.summary.value)
