"""The TFRecord files of a data set: the schema of their records, that of the original's converter, and how they are written."""

import contextlib
import functools
import mmap
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from mat.cli.errors import UserError
from mat.data.metadata import DATASET_FILE

SPLITS = ("train", "validation", "test")
IMAGE = "image/encoded"
FORMAT = "image/format"
WNID = "label/wnid"
LABEL = "label/tiny_imagenet"
BOX = ("bbox/xmin", "bbox/ymin", "bbox/xmax", "bbox/ymax")

REMAKE = "Make the file again with mat.data.convert"

_HEADER_BYTES = 12  # before the payload of a record: its length (8 bytes) and the length's checksum
_CHECKSUM_BYTES = 4  # behind it


def record_path(data_dir: str | os.PathLike, split: str) -> pathlib.Path:
    """The TFRecord file of a split: `data_dir/split.tfrecord`."""
    return pathlib.Path(data_dir) / f"{split}.tfrecord"


def make_example(jpeg: bytes, wnid: str | None = None, label: int | None = None, box: Sequence[int] | None = None) -> bytes:
    """One serialized record, a `tf.train.Example`, of a JPEG or PNG; those of test images have neither a class nor a box.

    Others need no box either. `label` is the line number of `wnid` in wnids.txt, from 0; `box` is (xmin, ymin, xmax, ymax) in pixels.
    """
    features = {IMAGE: _bytes(jpeg), FORMAT: _bytes(b"png" if jpeg.startswith(b"\x89PNG") else b"jpeg")}
    if wnid is not None:
        features |= {WNID: _bytes(wnid.encode()), LABEL: _int64(label)}
    if box is not None:
        features |= {name: _int64(value) for name, value in zip(BOX, box, strict=True)}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


@contextlib.contextmanager
def staged(destination: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary directory below `destination`, an `OSError` where none can be; its files move up when the block ends without an error.

    After an error a destination that was made here is gone again.
    """
    is_new = not os.path.lexists(destination)
    os.makedirs(destination, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=destination, prefix="unfinished-") as stage:
            yield pathlib.Path(stage)
            # What the records are comes last: where it is, the data is whole.
            for path in sorted(pathlib.Path(stage).iterdir(), key=lambda path: (path.name == DATASET_FILE, path.name)):
                os.replace(path, pathlib.Path(destination) / path.name)
    except BaseException as error:
        if is_new:
            with contextlib.suppress(OSError):
                os.rmdir(destination)
        if isinstance(error, tf.errors.OpError):  # TensorFlow's own file system
            raise OSError(error.message) from None
        raise


def write_records(path: str | os.PathLike, examples: Iterable[bytes]) -> None:
    """Write serialized records to a TFRecord file."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for example in examples:
            writer.write(example)


def record_starts(path: str | os.PathLike) -> np.ndarray:
    """The position of each record of a TFRecord file, int64 [N], found by the lengths alone: records may be corrupt.

    Raises:
        UserError: the file is empty, cannot be read, is truncated, or a length in it is damaged, so that later records cannot be found.
    """
    starts, position = [], 0
    try:
        if not (size := os.path.getsize(path)):
            raise UserError(f"{path}: no records. {REMAKE}")
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            while position < size:
                starts.append(position)
                header = content[position : position + _HEADER_BYTES]
                if not any(header):  # no header, but a range of zeros
                    break
                position += _HEADER_BYTES + int.from_bytes(header[:8], "little") + _CHECKSUM_BYTES
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Change data_dir, or the file's permissions") from None
    if position != size:  # TensorFlow, which looks at all checksums, knows where the damage begins
        n_intact = int(tf.data.TFRecordDataset(str(path)).ignore_errors().reduce(np.int64(0), lambda n, _: n + 1))
        place = f"truncated or corrupt after {n_intact} intact records, at byte {starts[n_intact]} of {size}"
        raise UserError(f"{path}: {place}. {REMAKE}")
    return np.array(starts)


def _bytes(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


@functools.lru_cache(4096)  # most boxes have the same few coordinates
def _int64(value: int | None) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
