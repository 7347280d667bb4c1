"""Both splits of a data folder, the demo's made where they are missing, and the words of its classes."""

import contextlib
import hashlib
import pathlib

import numpy as np
import tensorflow as tf

from mat.cli.console import console
from mat.cli.errors import UserError
from mat.cli.text import decode_text, single_line
from mat.data.demo import make_demo
from mat.data.reading import SPLITS, read_records
from mat.data.records import class_list, record_path

HASHED_AT_ONCE = 1024  # images

LARGEST_ASPECT_RATIO = 1.5  # of an image that is resized to a square, before that counts as squeezed
LARGEST_SCALE = 2  # that images are enlarged by
LARGEST_SHRINKAGE = 4  # the bicubic resize, as of the original, looks at four pixels in a row and smooths nothing
FEW = 0.05  # share of the images that raises no warning
CLASSES_SHOWN = 5


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
        UserError: as `read_records`, the demo cannot be written, or wnids.txt lists another number of classes.
    """
    try:
        if dataset == "demo" and not all(record_path(data_dir, split).exists() for split in SPLITS):
            console.print(f"{data_dir}: making the demo's data set")
            make_demo(data_dir)
    except OSError as error:
        raise UserError(f"{error.filename or data_dir}: cannot be written: {error.strerror or error}. Change data_dir") from None
    wnids = _wnids(data_dir)
    if wnids and len(wnids) != n_classes:
        raise UserError(
            f"{data_dir}: n_classes is {n_classes}, and wnids.txt lists {len(wnids)} classes. Set n_classes: {len(wnids)}, or data_dir to "
            "the data that is meant"
        )
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
    wnids, words = _wnids(data_dir), {}
    with contextlib.suppress(OSError, UnicodeDecodeError):
        lines = decode_text((pathlib.Path(data_dir) / "words.txt").read_bytes()).splitlines()
        words = dict(line.split("\t", 1) for line in lines if "\t" in line)
    named = [words.get(wnid, wnid).split(",")[0].strip() or wnid for wnid in wnids]  # the first of a class's synonyms
    return [named[label] if label < len(named) else str(label) for label in range(n_classes)]


def _wnids(data_dir):
    """The classes that `wnids.txt` lists beside the records, in the order of their labels; none where it is missing."""
    try:
        return class_list((pathlib.Path(data_dir) / "wnids.txt").read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{data_dir}: wnids.txt cannot be read ({single_line(str(error))}). Convert the data again") from None


def describe(splits, data_dir, *, image_size, n_classes):
    """What the data is, and what about it may spoil a result, in words for the plan of a run.

    Args:
        splits: (training, validation) `Records`.
        data_dir: directory that they were read from.
        image_size: height and width that the images are resized to.
        n_classes: number of classes.

    Returns:
        dict of lines by name: `data`, and where there is something to doubt `data sizes` and `data classes`.
    """
    kinds = dict(zip(("training", "validation"), splits, strict=True))
    counts = " and ".join(f"{len(records.labels):,} {kind}" for kind, records in kinds.items())
    sizes = np.concatenate([records.sizes for records in splits])
    real = "x".join(str(low) if low == high else f"{low}..{high}" for low, high in zip(sizes.min(axis=0), sizes.max(axis=0), strict=True))
    resized = f", resized to {image_size}x{image_size}" if np.any(sizes != image_size) else ""
    lines = {"data": f"{data_dir}: {counts} images of {real}{resized}, {n_classes} classes"}
    told = [f"{share:.0%} of the {kind} images are {what}" for kind in kinds for what, share in _distorted(kinds[kind].sizes, image_size)]
    if told:
        lines["data sizes"] = f"WARNING: {'; '.join(told)}"
    names, absent = class_names(data_dir, n_classes), []
    for kind, records in kinds.items():
        if missing := np.setdiff1d(np.arange(n_classes), records.labels).tolist():
            shown = ", ".join(names[label] for label in missing[:CLASSES_SHOWN]) + ", ..." * (len(missing) > CLASSES_SHOWN)
            absent.append(f"{len(missing)} of {n_classes} classes have no {kind} image ({single_line(shown)})")
    if absent:
        lines["data classes"] = f"WARNING: {'; '.join(absent)}"
    return lines


def _distorted(sizes, image_size):
    """(what, share) of the distortions that more than a few images of `sizes` [N, 2] suffer when they are resized."""
    shorter, longer = sizes.min(axis=1), sizes.max(axis=1)
    shares = {
        f"squeezed from shapes beyond {LARGEST_ASPECT_RATIO}:1 into squares": np.mean(longer > LARGEST_ASPECT_RATIO * shorter),
        f"enlarged {LARGEST_SCALE} times or more": np.mean(image_size >= LARGEST_SCALE * shorter),
        f"shrunk more than {LARGEST_SHRINKAGE} times, which leaves most of their pixels out": np.mean(
            shorter > LARGEST_SHRINKAGE * image_size
        ),
    }
    return [(what, share) for what, share in shares.items() if share > FEW]
