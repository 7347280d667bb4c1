"""The training and validation data: reading both, the names of the classes, and what a user should know about the images."""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from mat.cli.console import console
from mat.cli.errors import UserError
from mat.cli.text import decode_text, single_line
from mat.data.demo import make_demo
from mat.data.metadata import class_list, class_words
from mat.data.reading import LABELED_SPLITS, Records, read_records
from mat.data.records import record_path
from mat.data.tiny_imagenet import CROP_AREA, CROP_ASPECT_RATIO

LARGEST_ASPECT_RATIO = CROP_ASPECT_RATIO[1] / CROP_AREA[0]  # beyond it no crop is large enough, so that training takes the whole image
LARGEST_LOSS = 0.4  # share of an image that lies beside the square in its middle
LARGEST_SCALE = 2  # that images are enlarged by
FEW = 0.05  # share of the images that raises no warning
CLASSES_SHOWN = 5


def read_splits(dataset: str, data_dir: str | os.PathLike, *, n_classes: int, max_bad_records: int = 0) -> tuple[Records, Records]:
    """The training and validation records of a `dataset`, "tiny_imagenet" | "demo", which is written first where it is missing.

    Raises:
        UserError: as `read_records`, the demo cannot be written, or wnids.txt lists another number of classes.
    """
    try:
        if dataset == "demo" and not all(record_path(data_dir, split).exists() for split in LABELED_SPLITS):
            console.print(f"{data_dir}: making the demo's data set")
            make_demo(data_dir)
    except OSError as error:
        raise UserError(f"{error.filename or data_dir}: cannot be written: {error.strerror or error}. Change data_dir") from None
    wnids = _wnids(data_dir)
    if wnids and len(wnids) != n_classes:
        remedy = f"Set n_classes: {len(wnids)}, or data_dir to the data that is meant; dataset.json, if there is one, must list as many"
        raise UserError(f"{data_dir}: n_classes is {n_classes}, and wnids.txt lists {len(wnids)} classes. {remedy}")
    train, validation = (read_records(data_dir, split, n_classes=n_classes, max_bad_records=max_bad_records) for split in LABELED_SPLITS)
    return train, validation


def fingerprint(splits: Sequence[Records]) -> str:
    """SHA-256 of all labels and encoded images, 64 hex digits: whether data is the same, wherever it lies."""
    digest = hashlib.sha256()
    for records in splits:
        lengths = tf.strings.length(records.images).numpy()
        digest.update(np.concatenate([[len(lengths)], records.labels, lengths]).astype("<i8").tobytes())
        for start in range(0, len(lengths), 1024):  # all images at once would be a second copy of the split in memory
            digest.update(b"".join(records.images[start : start + 1024].numpy()))
    return digest.hexdigest()


def class_names(data_dir: str | os.PathLike, n_classes: int) -> list[str]:
    """The names of the classes in `wnids.txt`, or the first of those that `words.txt` has for them; numbers where there are none."""
    wnids, words = _wnids(data_dir), {}
    with contextlib.suppress(OSError, UnicodeDecodeError):
        words = class_words(decode_text((pathlib.Path(data_dir) / "words.txt").read_bytes()))
    names = [words.get(wnid) or wnid for wnid in wnids[:n_classes]]
    return names + [str(label) for label in range(len(names), n_classes)]


def _wnids(data_dir):
    """The classes that `wnids.txt` lists beside the records, in the order of their labels; none where it is missing."""
    try:
        return class_list((pathlib.Path(data_dir) / "wnids.txt").read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{data_dir}: wnids.txt cannot be read ({single_line(str(error))}). Convert the data again") from None


def describe(splits: tuple[Records, Records], data_dir: str | os.PathLike, *, image_size: int, n_classes: int) -> dict[str, str]:
    """What the data is, as lines by name for the plan of a run: `data`, and where it may spoil a result `data sizes` and `data classes`."""
    kinds = dict(zip(("training", "validation"), splits, strict=True))
    counts = " and ".join(f"{len(records.labels):,} {kind}" for kind, records in kinds.items())
    sizes = np.concatenate([records.sizes for records in splits])
    real = "x".join(str(low) if low == high else f"{low}..{high}" for low, high in zip(sizes.min(axis=0), sizes.max(axis=0), strict=True))
    resized = f", resized to {image_size}x{image_size}" if np.any(sizes != image_size) else ""
    names = class_names(data_dir, n_classes)
    warnings: dict[str, list[str]] = {"data sizes": [], "data classes": []}
    for kind, records in kinds.items():
        shorter, longer = records.sizes.min(axis=1), records.sizes.max(axis=1)
        squeezed = f"are squeezed from shapes beyond {LARGEST_ASPECT_RATIO:.2f}:1 into squares", longer > LARGEST_ASPECT_RATIO * shorter
        cropped = f"lose more than {LARGEST_LOSS:.0%}, as only the square in the middle is used", shorter < (1 - LARGEST_LOSS) * longer
        enlarged = f"are enlarged {LARGEST_SCALE} times or more", image_size >= LARGEST_SCALE * shorter
        shares = {what: np.mean(images) for what, images in (squeezed if kind == "training" else cropped, enlarged)}
        warnings["data sizes"] += [f"{share:.0%} of the {kind} images {what}" for what, share in shares.items() if share > FEW]
        if missing := np.setdiff1d(np.arange(n_classes), records.labels).tolist():
            shown = ", ".join(names[label] for label in missing[:CLASSES_SHOWN]) + ", ..." * (len(missing) > CLASSES_SHOWN)
            warnings["data classes"].append(f"{len(missing)} of {n_classes} classes have no {kind} image ({single_line(shown)})")
    lines = {"data": f"{data_dir}: {counts} images of {real}{resized}, {n_classes} classes"}
    return lines | {name: f"WARNING: {'; '.join(parts)}" for name, parts in warnings.items() if parts}
