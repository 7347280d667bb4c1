"""The schema of the TFRecord files, that of the original's converter; how they are written, and where their records lie."""

import contextlib
import functools
import mmap
import os
import pathlib
import tempfile

import numpy as np
import tensorflow as tf

from mat.cli.errors import UserError
from mat.cli.text import decode_text

SPLITS = ("train", "validation", "test")
IMAGE = "image/encoded"
FORMAT = "image/format"
WNID = "label/wnid"
LABEL = "label/tiny_imagenet"
BOX = ("bbox/xmin", "bbox/ymin", "bbox/xmax", "bbox/ymax")

HEADER, CHECKSUM = 12, 4  # bytes before and after the payload of a record
FRAME = HEADER + CHECKSUM
MAX_RECORDS = 2_000_000  # of a file; empty ones of 16 bytes would fill the memory with what is noted of each
RANGE = 1024  # records that are read together in the search of corrupt ones
READ_BUFFER = 2**16  # bytes

REMAKE = "Make the file again with mat.data.convert"


def record_path(data_dir, split):
    """The TFRecord file of a split: `data_dir/split.tfrecord`."""
    return pathlib.Path(data_dir) / f"{split}.tfrecord"


def class_list(content):
    """The classes that the bytes of a wnids.txt list, one a line: their order is that of the labels. A list of strings."""
    return [line.strip() for line in decode_text(content).splitlines() if line.strip()]


def make_example(jpeg, wnid=None, label=None, box=None):
    """One serialized record.

    Args:
        jpeg: the bytes of the JPEG or PNG file.
        wnid: WordNet id of the class; None for test images, which have neither label nor box.
        label: the line number of `wnid` in wnids.txt, from 0.
        box: (xmin, ymin, xmax, ymax) of the object, pixels.

    Returns:
        bytes, a `tf.train.Example`.
    """
    features = {IMAGE: _bytes(jpeg), FORMAT: _bytes(b"png" if jpeg.startswith(b"\x89PNG") else b"jpeg")}
    if wnid is not None:
        features |= {WNID: _bytes(wnid.encode()), LABEL: _int64(label)}
        features |= {name: _int64(value) for name, value in zip(BOX, box, strict=True)}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


@contextlib.contextmanager
def staged(destination):
    """A temporary directory below `destination`, whose files move into it when the block ends well, and go when it does not.

    Raises:
        OSError: a file cannot be written.
    """
    destination = pathlib.Path(destination)
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination, prefix="unfinished-") as stage:
        try:
            yield pathlib.Path(stage)
        except tf.errors.OpError as error:  # TensorFlow's own file system
            raise OSError(error.message) from None
        for path in sorted(pathlib.Path(stage).iterdir()):
            os.replace(path, destination / path.name)


def write_records(path, examples):
    """Write serialized records to a TFRecord file."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for example in examples:
            writer.write(example)


def framed_payloads(content):
    """Where the records of a TFRecord file lie, as far as its framing is intact.

    A record is its length (8 bytes), the length's checksum (4), the payload, and the payload's checksum (4), which is not looked at here.

    Args:
        content: the bytes of the file, or anything that gives bytes when sliced, such as an `mmap`.

    Returns:
        list of (start, stop) of the payloads, and the position of the first byte that belongs to no whole record: the size of an
        undamaged file.
    """
    spans, position = [], 0
    while position + FRAME <= len(content) and len(spans) <= MAX_RECORDS:
        header = content[position : position + HEADER]
        start = position + HEADER
        stop = start + int.from_bytes(header[:8], "little")
        if _masked_crc(header[:8]) != int.from_bytes(header[8:], "little") or stop + CHECKSUM > len(content):
            break
        spans.append((start, stop))
        position = stop + CHECKSUM
    return spans, position


def record_starts(path):
    """The position of every record of a TFRecord file, int64 [N], found by its framing alone: the payloads may be corrupt.

    TensorFlow is not asked, as it allocates whatever a length field claims.

    Raises:
        UserError: the file is empty, cannot be read, or its framing is damaged.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not size:  # nothing to map
                raise UserError(f"{path}: no records. {REMAKE}")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                payloads, end = framed_payloads(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Change data_dir, or the file's permissions") from None
    if len(payloads) > MAX_RECORDS:
        raise UserError(f"{path}: more than {MAX_RECORDS:,} records, which would not fit into memory. Divide the data")
    if end < size:
        raise UserError(f"{path}: truncated or corrupt after {len(payloads)} intact records, at byte {end} of {size}. {REMAKE}")
    return np.array([start for start, _ in payloads]) - HEADER


def records_between(path, starts, firsts, stops):
    """Of each range firsts[i] .. stops[i] of records those before its first corrupt one.

    Args:
        path: the TFRecord file.
        starts: int64 [N], see `record_starts`.
        firsts: int64 [R], the first record of each range, counted from 0.
        stops: int64 [R], the first record behind it.

    Returns:
        tf.data.Dataset of (index, serialized record).
    """

    def read(first, stop, start):
        file = tf.raw_ops.TFRecordDatasetV2(filenames=[str(path)], compression_type="", buffer_size=READ_BUFFER, byte_offsets=[start])
        records = tf.data.experimental.from_variant(file, tf.TensorSpec([], tf.string)).ignore_errors()
        return tf.data.Dataset.zip(tf.data.Dataset.range(first, stop), records)

    return tf.data.Dataset.from_tensor_slices((firsts, stops, starts[firsts])).flat_map(read)


def corrupt_records(path, starts):
    """Indices of the records whose checksum does not fit, int64 [n].

    TensorFlow's reader computes the checksums and goes no further than a wrong one. So it reads many ranges, then what is left of them
    behind their first corrupt record, and so on.

    Args:
        path: the TFRecord file.
        starts: int64 [N], see `record_starts`.
    """
    firsts = np.arange(0, len(starts), RANGE)
    stops = np.minimum(firsts + RANGE, len(starts))
    corrupt = [np.zeros(0, np.int64)]
    while firsts.size:
        batches = records_between(path, starts, firsts, stops).batch(RANGE)
        intact = np.concatenate([np.zeros(0, np.int64), *(indices.numpy() for indices, _ in batches)])
        ends = firsts + np.searchsorted(intact, stops) - np.searchsorted(intact, firsts)
        corrupt.append(ends[ends < stops])
        firsts = ends + 1
        firsts, stops = firsts[firsts < stops], stops[firsts < stops]
    return np.sort(np.concatenate(corrupt))


def _crc_table():
    """CRC-32C of every byte."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC_TABLE = _crc_table()


def _masked_crc(content):
    """The checksum that TFRecord files keep of `content`: its CRC-32C, rotated and offset."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _bytes(value):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


@functools.lru_cache(4096)  # most boxes have the same few coordinates
def _int64(value):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
