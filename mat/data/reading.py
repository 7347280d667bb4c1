"""Reading the TFRecord files of a data set into memory. Every record is checked, so that none can stop a run later.

Shapes: `N` examples.
"""

import concurrent.futures
import contextlib
import os
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from mat.cli.console import console
from mat.cli.errors import UserError
from mat.data.picture_files import MAX_PIXELS, MAX_SIDE
from mat.data.records import IMAGE, LABEL, REMAKE, record_path, record_starts

LABELED_SPLITS = ("train", "validation")
FAULTS_SHOWN = 3

_FEATURES = {IMAGE: tf.io.FixedLenFeature([], tf.string, ""), LABEL: tf.io.FixedLenFeature([], tf.int64, -1)}
_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR"  # then width and height, 4 bytes each
_BATCH = 1024  # records that are parsed, or images that are checked, in one call
_IMAGES_PER_ITERATION = 8  # of the check; an iteration by itself costs as much as an image of 64x64
_BAD_CONTENT = (tf.errors.InvalidArgumentError, UnicodeDecodeError)  # the second where TensorFlow's message quotes the record's bytes


class Records(NamedTuple):
    """The examples of a split, in the order of the file."""

    path: str
    images: tf.Tensor  # tf.string [N], encoded
    labels: np.ndarray  # int64 [N]
    numbers: np.ndarray  # int64 [N], of the examples' records in the file, from 0; records that are passed over count
    sizes: np.ndarray  # int64 [N, 2], width and height of each image, pixels

    def take(self, positions: np.ndarray) -> "Records":
        """The `Records` at these positions, integers [n] in 0..N-1."""
        return Records(self.path, tf.gather(self.images, positions), *(array[positions] for array in self[2:]))


def read_records(data_dir: str | os.PathLike, split: str, *, n_classes: int, max_bad_records: int = 0) -> Records:
    """Read a split, "train" | "validation", into memory, still encoded (215 MB for all of Tiny ImageNet), and check every record.

    A record is bad if its checksum does not fit, it is no example, its label is not in 0 .. n_classes - 1, or its image is neither a JPEG
    nor a PNG that can be decoded, or has more than `MAX_PIXELS`. Up to `max_bad_records` are passed over, with a line on the console.

    Raises:
        UserError: the file is missing, truncated or empty, or has more bad records, or no good ones.
    """
    path = record_path(data_dir, split)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file (data_dir: {data_dir}). Make it from a folder or zip of images by class, or of Tiny ImageNet: "
            f"python -m mat.data.convert SOURCE {data_dir}. To download Tiny ImageNet too: python -m mat.data.convert --download {data_dir}"
        )
    starts = record_starts(path)
    numbers, images, labels, faults = _parse(str(path), starts)
    decodable, sizes = check_images(images)
    for i in np.flatnonzero(~decodable | (labels < 0) | (labels >= n_classes)):
        faults[int(numbers[i])] = _fault(labels[i], sizes[i], n_classes)
    records = Records(str(path), images, labels, numbers, sizes)
    if not faults:
        return records
    _report(path, len(starts), sorted(faults.items()), max_bad_records)
    return records.take(np.flatnonzero(~np.isin(numbers, list(faults))))


def _report(path, n_records, faults, max_bad_records):
    """Refuse the bad records, or tell that they are passed over; `faults` is a list of (number, (what is wrong, remedy))."""
    number, (fault, remedy) = faults[0]
    if max_bad_records == 0:
        raise UserError(f"{path}: record {number} {fault}. {remedy}, or set bad_records: skip to pass over bad records")
    shown = ", ".join(f"record {number} {fault}" for number, (fault, _) in faults[:FAULTS_SHOWN])
    shown += ", ..." * (len(faults) > FAULTS_SHOWN)
    if len(faults) > max_bad_records:
        raise UserError(
            f"{path}: {len(faults)} of {n_records} records are bad, and max_bad_records: {max_bad_records} allows fewer: {shown}. "
            f"{remedy}, or raise max_bad_records"
        )
    if len(faults) == n_records:
        raise UserError(f"{path}: all {n_records} records are bad: {shown}. {remedy}")
    console.print(f"{path}: passing over {len(faults)} bad of {n_records} records: {shown}")


def _parse(path, starts):
    """All examples of a file, see `_joined`, and the faults of the other records. TensorFlow reads no further than a corrupt record."""
    batches = tf.data.TFRecordDataset(path).enumerate().batch(_BATCH)
    try:
        examples = batches.map(lambda numbers, records: (numbers, tf.io.parse_example(records, _FEATURES)), tf.data.AUTOTUNE)
        return *_joined(examples), {}
    except (tf.errors.DataLossError, *_BAD_CONTENT):
        return _parse_one_by_one(path, starts)


def _parse_one_by_one(path, starts):
    """As `_parse`, for a file with bad records: each is read from its own position."""

    def read(number, start):
        file = tf.raw_ops.TFRecordDatasetV2(filenames=[path], compression_type="", buffer_size=4096, byte_offsets=[start])
        return number, tf.data.experimental.from_variant(file, tf.TensorSpec([], tf.string)).take(1).get_single_element()

    intact = tf.data.Dataset.from_tensor_slices(starts).enumerate().map(read, tf.data.AUTOTUNE).ignore_errors().cache()
    parsed = intact.map(lambda number, record: (number, tf.io.parse_single_example(record, _FEATURES))).ignore_errors()
    numbers, images, labels = _joined(parsed.batch(_BATCH))
    faults = dict.fromkeys(range(len(starts)), ("is corrupt (its checksum does not fit)", REMAKE))
    for batch, _ in intact.batch(_BATCH):
        faults |= dict.fromkeys(batch.numpy().tolist(), ("is not an example of an image and a label", REMAKE))
    return numbers, images, labels, {number: faults[number] for number in faults.keys() - numbers.tolist()}


def _joined(batches):
    """Batches of (numbers of records, parsed examples) as one: numbers int64 [n], images tf.string [n] and labels int64 [n]."""
    none = np.zeros(0, np.int64), {IMAGE: tf.constant([], tf.string), LABEL: np.zeros(0, np.int64)}
    numbers, features = zip(none, *batches, strict=True)
    images, labels = ([batch[name] for batch in features] for name in (IMAGE, LABEL))
    return np.concatenate(numbers), tf.concat(images, 0), np.concatenate(labels)


def _fault(label, size, n_classes):
    """What is wrong with an example of this label, or with its image of this width and height; and the remedy."""
    width, height = size.tolist()
    if label == -1:
        return f"has no label (feature {LABEL})", REMAKE
    if not 0 <= label < n_classes:
        text = f"has the label {label}, and n_classes: {n_classes} allows 0 .. {n_classes - 1}"
        return text, "Set n_classes to the number of classes in wnids.txt"
    text = f"has an image that cannot be decoded as JPEG or PNG (feature {IMAGE})"
    if width * height > MAX_PIXELS:
        text = f"has an image of {width}x{height} pixels; at most {MAX_SIDE}x{MAX_SIDE} are read"
    return text, f"{REMAKE}, which names the path of an image that cannot be read"


def check_images(images: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Whether a training run can read each of some encoded images, tf.string [n]. All are decoded, but for those that are too large.

    Returns:
        bool [n], whether it is a JPEG or PNG of at most `MAX_PIXELS` that can be decoded; int64 [n, 2], its width and height, 0 if unknown.
    """
    batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        sizes = np.concatenate([np.zeros((0, 2), np.int64), *pool.map(_sizes_or_zeros, batches)])
    n_pixels = sizes.prod(axis=1)
    return (n_pixels > 0) & (n_pixels <= MAX_PIXELS), sizes


def _sizes_or_zeros(images):
    """Width and height of each image, int64 [n, 2]; zeros where it cannot be decoded."""
    with tf.device("CPU:0"):
        try:
            return _sizes(images)[:, :2].numpy()
        except _BAD_CONTENT:  # each by itself
            sizes = np.zeros((len(images), 2), np.int64)
            for i, encoded in enumerate(images):
                with contextlib.suppress(*_BAD_CONTENT):
                    sizes[i] = _size(encoded)[:2]
            return sizes


@tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
def _sizes(images):
    """`_size` of each image, int64 [n, 3]."""
    n_iterations = -(-tf.size(images) // _IMAGES_PER_ITERATION)
    examples = tf.minimum(tf.range(n_iterations * _IMAGES_PER_ITERATION), tf.size(images) - 1)  # the last one fills up
    sizes = tf.map_fn(
        lambda few: tf.stack([_size(encoded) for encoded in tf.unstack(tf.gather(images, few))]),
        tf.reshape(examples, [-1, _IMAGES_PER_ITERATION]),
        fn_output_signature=tf.TensorSpec([_IMAGES_PER_ITERATION, 3], tf.int64),
    )
    return tf.reshape(sizes, [-1, 3])[: tf.size(images)]


def _size(encoded):
    """Width, height and decoded size of a JPEG or PNG, an error for anything else; one that is too large is not decoded."""

    def png_size():
        sides = tf.io.decode_raw(tf.strings.substr(encoded, len(_PNG_START), 8), tf.int32, little_endian=False)
        return tf.cast(tf.reshape(sides, [2]), tf.int64)

    is_png = tf.strings.substr(encoded, 0, len(_PNG_START)) == _PNG_START
    size = tf.cond(is_png, png_size, lambda: tf.io.extract_jpeg_shape(encoded, tf.int64)[1::-1])
    decoded_size = tf.cond(
        tf.reduce_prod(size) <= MAX_PIXELS,
        lambda: tf.size(decode(encoded, 8), tf.int64),  # shrunk, all of a JPEG is read in half the time
        lambda: tf.int64.max,
    )
    return tf.concat([size, [decoded_size]], 0)


def decode(encoded: tf.Tensor, shrinkage: int = 1) -> tf.Tensor:
    """Encoded image, a tf.string scalar -> uint8 [H, W, 3]; grayscale becomes RGB. A JPEG may be shrunk 2, 4 or 8 times."""
    return tf.io.decode_jpeg(encoded, channels=3, ratio=shrinkage)
