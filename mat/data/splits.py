"""Both splits of a data folder, the demo's made where they are missing, and the words of its classes."""

import hashlib
import pathlib

import numpy as np
import tensorflow as tf

from mat.data.demo import make_demo
from mat.data.reading import SPLITS, read_records
from mat.data.records import record_path
from mat.errors import UserError
from mat.terminal import console

HASHED_AT_ONCE = 1024  # images


def read_splits(dataset, data_dir, *, n_classes, max_bad_records=0):
    """The training and validation `Records`.

    Args:
        dataset: "tiny_imagenet", or "demo", which is written first where it is missing.
        data_dir: directory of `train.tfrecord` and `validation.tfrecord`.
        n_classes: labels must be in 0 .. n_classes - 1.
        max_bad_records: so many bad records of each file are passed over, see `read_records`.

    Returns:
        (training Records, validation Records).

    Raises:
        UserError: as `read_records`, or the demo cannot be written.
    """
    try:
        if dataset == "demo" and not all(record_path(data_dir, split).exists() for split in SPLITS):
            console.print(f"{data_dir}: making the demo's data set")
            make_demo(data_dir)
    except OSError as error:
        raise UserError(f"{error.filename or data_dir}: cannot be written: {error.strerror or error}. Change data_dir") from None
    return tuple(read_records(data_dir, split, n_classes=n_classes, max_bad_records=max_bad_records) for split in SPLITS)


def fingerprint(splits):
    """SHA-256 of all labels and encoded images of both splits, 64 hex digits: whether data is the same, wherever it lies."""
    digest = hashlib.sha256()
    for records in splits:
        lengths = tf.strings.length(records.images).numpy()
        digest.update(np.concatenate([[len(lengths)], records.labels, lengths]).astype("<i8").tobytes())
        for start in range(0, len(lengths), HASHED_AT_ONCE):  # all at once would be a second copy of the split in memory
            digest.update(b"".join(records.images[start : start + HASHED_AT_ONCE].numpy()))
    return digest.hexdigest()


def class_names(data_dir, n_classes):
    """What people call the classes: the words of `words.txt` in the order of `wnids.txt`, or the class numbers where there are none.

    Returns:
        list of n_classes strings.
    """
    try:
        wnids = (pathlib.Path(data_dir) / "wnids.txt").read_text().split()
        lines = (pathlib.Path(data_dir) / "words.txt").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return [str(label) for label in range(n_classes)]
    words = dict(line.split("\t", 1) for line in lines if "\t" in line)
    named = [words.get(wnid, wnid).split(",")[0].strip() or wnid for wnid in wnids]  # the first of a class's synonyms
    return [named[label] if label < len(named) else str(label) for label in range(n_classes)]
