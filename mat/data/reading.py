"""Reading TFRecords into memory, every record checked: nothing that is in a file can stop a run in the middle of an epoch.

Shapes: `N` examples.
"""

import contextlib
import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from mat.cli.console import console
from mat.cli.errors import UserError
from mat.data import records as schema

SPLITS = ("train", "validation")  # those with labels

MAX_SIDE = 4096  # of a square image; decoded, one of 4096x4096 takes 50 MB, and a header may claim 65535x65535
MAX_PIXELS = MAX_SIDE**2
LARGE_PIXELS = 2**20  # images above are checked one at a time
SHRINKAGE = 8  # of JPEGs that are only checked: all of the file is read as at full size, in half the time
JPEG_START = b"\xff\xd8\xff"
JPEG_SCAN = b"\xff\xda"  # begins each pass over the image
MAX_SCANS = 100  # of a progressive JPEG; they take 33 bytes each at the least, and the time of the whole image
PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR"  # then width and height
PNG_HEAD = len(PNG_START) + 8

PARSE_BATCH = 1024
CHUNK = 8  # images in one call of a map function at most; a call by itself costs as much as decoding an image of 64x64
FAULTS_SHOWN = 3
FEATURES = {
    schema.IMAGE: tf.io.FixedLenFeature([], tf.string, ""),
    schema.LABEL: tf.io.FixedLenFeature([], tf.int64, -1),
}


class Records(NamedTuple):
    """The examples of a split, in the order of the file.

    Attributes:
        path: the file.
        images: tf.string [N], encoded.
        labels: int64 [N].
        numbers: int64 [N], the number of each example's record in the file, counted from 0; records that are passed over count.
        sizes: int64 [N, 2], width and height of each image, pixels.
    """

    path: str
    images: tf.Tensor
    labels: np.ndarray
    numbers: np.ndarray
    sizes: np.ndarray

    def take(self, positions):
        """The `Records` at these positions, integers [n] in 0..N-1."""
        return Records(self.path, tf.gather(self.images, positions), *(array[positions] for array in self[2:]))


def read_records(data_dir, split, *, n_classes, max_bad_records=0):
    """Read a split into memory, still encoded (215 MB for all of Tiny ImageNet), and check every record.

    A record is bad if its checksum does not fit, it is no example, its label is missing or out of range, or its image is neither a JPEG
    nor a PNG that can be decoded, or has more than `MAX_PIXELS`.

    Args:
        data_dir: directory of `train.tfrecord` and `validation.tfrecord`.
        split: "train" | "validation".
        n_classes: labels must be in 0 .. n_classes - 1.
        max_bad_records: so many bad records are passed over, with a line on the console; more are refused.

    Returns:
        Records, the good ones.

    Raises:
        UserError: the file is missing, truncated or empty, or has more bad records than are passed over, or no good ones; the message
            names the file and the records, counted from 0.
    """
    path = schema.record_path(data_dir, split)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file (data_dir: {data_dir}). Make it from the official archive or folder of Tiny ImageNet: "
            f"python -m mat.data.convert SOURCE {data_dir}, or download the archive too: python -m mat.data.convert --download {data_dir}"
        )
    starts = schema.record_starts(path)
    examples, images, labels, faults = _parse(str(path), starts)
    decodable, sizes = check_images(images)
    for position, fault in (_image_faults(decodable, sizes) | _label_faults(labels, n_classes)).items():
        faults[int(examples[position])] = fault
    if faults:
        _report(path, len(starts), sorted(faults.items()), max_bad_records)
    records = Records(str(path), images, labels, examples, sizes)
    return records.take(np.flatnonzero(~np.isin(examples, list(faults)))) if faults else records


_BAD_RECORD = (tf.errors.InvalidArgumentError, UnicodeDecodeError)  # the second where TensorFlow's message quotes the record's bytes


class _Fault(NamedTuple):
    """What a bad record is or has, and the way out."""

    text: str
    remedy: str = schema.REMAKE


_CORRUPT = _Fault("is corrupt (its checksum does not fit)")
_NO_EXAMPLE = _Fault("is not an example of an image and a label")
_NO_LABEL = _Fault(f"has no label (feature {schema.LABEL})")
_NAMED = f"{schema.REMAKE}, which names the path of an image that cannot be read"
_NOT_DECODABLE = _Fault(f"has an image that cannot be decoded as JPEG or PNG (feature {schema.IMAGE})", _NAMED)


def _report(path, n_records, faults, max_bad_records):
    """Refuse the bad records, or tell that they are passed over; `faults` is a list of (record, _Fault)."""
    remedy = faults[0][1].remedy
    shown = ", ".join(f"record {record} {fault.text}" for record, fault in faults[: FAULTS_SHOWN if max_bad_records else 1])
    if max_bad_records == 0:
        raise UserError(f"{path}: {shown}. {remedy}, or set bad_records: skip to pass over bad records")
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
    """The examples among the records: their indices int64 [n], images [n] and labels int64 [n]; and the faults of all others, a dict."""
    batches = tf.data.TFRecordDataset(path).enumerate().batch(PARSE_BATCH)
    try:
        return *_collect(batches.map(lambda i, batch: (i, tf.io.parse_example(batch, FEATURES)), num_parallel_calls=tf.data.AUTOTUNE)), {}
    except (tf.errors.DataLossError, *_BAD_RECORD):
        corrupt = schema.corrupt_records(path, starts)
    firsts, stops = np.append(0, corrupt + 1), np.append(corrupt, len(starts))
    intact = schema.records_between(path, starts, firsts[firsts < stops], stops[firsts < stops])
    parsed = intact.map(lambda i, record: (i, tf.io.parse_single_example(record, FEATURES)), num_parallel_calls=tf.data.AUTOTUNE)
    examples, images, labels = _collect(parsed.ignore_errors().batch(PARSE_BATCH))
    faults = dict.fromkeys(np.setdiff1d(np.arange(len(starts)), examples).tolist(), _NO_EXAMPLE)
    return examples, images, labels, faults | dict.fromkeys(corrupt.tolist(), _CORRUPT)


def _collect(batches):
    """All batches of (indices, parsed examples) as one: indices, images and labels."""
    batches = [(np.zeros(0, np.int64), {schema.IMAGE: tf.zeros([0], tf.string), schema.LABEL: np.zeros(0, np.int64)}), *batches]
    images = tf.concat([parsed[schema.IMAGE] for _, parsed in batches], 0)
    return np.concatenate([i for i, _ in batches]), images, np.concatenate([parsed[schema.LABEL] for _, parsed in batches])


def _label_faults(labels, n_classes):
    """The faults of labels that are missing or out of range, a dict by position."""

    def fault(label):
        text = f"has the label {label}, and n_classes: {n_classes} allows 0 .. {n_classes - 1}"
        return _NO_LABEL if label == -1 else _Fault(text, "Set n_classes to the number of classes in wnids.txt")

    return {i: fault(labels[i]) for i in np.flatnonzero((labels < 0) | (labels >= n_classes)).tolist()}


def _image_faults(decodable, sizes):
    """The faults of the images that `check_images` found, a dict by position."""
    faults = dict.fromkeys(np.flatnonzero(~decodable).tolist(), _NOT_DECODABLE)
    for i in np.flatnonzero(sizes.prod(axis=1, dtype=np.float64) > MAX_PIXELS).tolist():
        faults[i] = _Fault(f"has an image of {sizes[i, 0]}x{sizes[i, 1]} pixels; at most {MAX_SIDE}x{MAX_SIDE} are read", _NAMED)
    return faults


def check_images(images):
    """Whether a training run can read each of the images, which are all decoded, as a run of hours shall not end on a bad one.

    Sizes are read from the headers first. Large images are decoded one at a time, and giants not at all, so that memory is bounded. What
    `decode` takes beside JPEG and PNG (GIF, in newer versions of TensorFlow WebP, which it makes a batch of) is not let through to it.

    Args:
        images: tf.string [n], encoded.

    Returns:
        (bool [n], whether it is a JPEG or PNG that can be decoded, of at most `MAX_PIXELS`; int64 [n, 2], its width and height, 0 where
        they are not known).
    """
    heads = tf.strings.substr(images, 0, PNG_HEAD).numpy().astype(f"S{PNG_HEAD}").view(np.uint8).reshape(-1, PNG_HEAD)
    (jpegs,), (pngs,) = (np.nonzero((heads[:, : len(start)] == list(start)).all(axis=1)) for start in (JPEG_START, PNG_START))
    sizes = np.zeros((len(heads), 2), np.int64)  # width, height
    decodable = np.zeros(len(heads), bool)
    scans = np.array([image.count(JPEG_SCAN) for image in images.numpy()])
    jpegs = jpegs[scans[jpegs] <= MAX_SCANS]
    passed, results = _map_images(_check_jpeg, images, jpegs)
    sizes[passed], decodable[passed] = results[:, :2], True
    sizes[pngs] = heads[pngs, len(PNG_START) :].copy().view(">u4")
    pixels = sizes.prod(axis=1, dtype=np.float64)  # which does not overflow
    passed, _ = _map_images(_check_png, images, pngs[pixels[pngs] <= LARGE_PIXELS])
    decodable[passed] = True
    for i in np.flatnonzero((pixels > LARGE_PIXELS) & (pixels <= MAX_PIXELS)):
        try:
            decode(images[i])
            decodable[i] = True
        except _BAD_RECORD:
            decodable[i] = False
    return decodable & (pixels <= MAX_PIXELS), sizes


def _check_jpeg(encoded):
    """Width, height and decoded size of a JPEG; one that is too large is not decoded."""
    with tf.init_scope():
        pixel = tf.io.encode_jpeg(np.zeros((1, 1, 3), np.uint8))  # decoded in its place
    height, width, _ = tf.unstack(tf.cast(tf.io.extract_jpeg_shape(encoded), tf.int64))
    decoded = decode(tf.where(width * height > LARGE_PIXELS, pixel, encoded), SHRINKAGE)
    return tf.stack([width, height, tf.size(decoded, tf.int64)])


def _check_png(encoded):
    """Height, width and channels of a PNG."""
    return tf.shape(decode(encoded), tf.int64)


@functools.cache  # traced once
def _mapped(function):
    """A function from images, a multiple of `CHUNK`, to what `function` makes of each, int64 [n, 3]; it raises what that raises for any."""

    def few(images):
        return tf.stack([function(encoded) for encoded in tf.unstack(images, CHUNK)])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def every(images):
        results = tf.map_fn(few, tf.reshape(images, [-1, CHUNK]), fn_output_signature=tf.TensorSpec([CHUNK, 3], tf.int64))
        return tf.reshape(results, [-1, 3])

    return every


def _map_images(function, images, positions):
    """The positions [n] of those images that `function` takes, and what it makes of them, int64 [n, 3]."""
    passed, results = [], [np.zeros((0, 3), np.int64)]
    with tf.device("CPU:0"):
        for start in range(0, len(positions), PARSE_BATCH):
            batch = positions[start : start + PARSE_BATCH]
            padded = np.append(batch, np.repeat(batch[-1:], -len(batch) % CHUNK))
            try:
                results.append(_mapped(function)(tf.gather(images, padded)).numpy()[: len(batch)])
                passed.extend(batch)
            except _BAD_RECORD:
                for position in batch:
                    with contextlib.suppress(*_BAD_RECORD):
                        results.append(function(images[position]).numpy()[np.newaxis])
                        passed.append(position)
    return np.array(passed, np.int64), np.concatenate(results)


def decode(encoded, shrinkage=1):
    """Encoded image, a tf.string scalar -> uint8 [H, W, 3]; grayscale becomes RGB. A JPEG may be shrunk 2, 4 or 8 times."""
    return tf.io.decode_jpeg(encoded, channels=3, ratio=shrinkage)
