"""Official Tiny ImageNet folder or zip archive -> TFRecords, with the labels and the schema of the original's converter.

python -m mat.data.convert SOURCE DESTINATION [--seed N]
python -m mat.data.convert --download DESTINATION [--seed N]
"""

import argparse
import concurrent.futures
import pathlib
import random
import re
import sys

from mat.cli.command import run_command
from mat.cli.console import console
from mat.cli.download import download
from mat.cli.environment import load_tensorflow
from mat.cli.errors import UserError
from mat.cli.file_kinds import JPEG, PNG, kind_of_file
from mat.cli.files import expand_path
from mat.cli.progress import track
from mat.cli.text import single_line
from mat.data.sources import MAX_FILE, MAX_TEXT, PASSED_OVER, Names, by_number, open_source, plain_name

URL = "https://cs231n.stanford.edu/tiny-imagenet-200.zip"
ARCHIVE = "tiny-imagenet-200.zip"
ARCHIVE_BYTES = 248_100_043
ARCHIVE_SHA256 = "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"

IMAGE_ENDINGS = (".jpeg", ".jpg", ".png")
MAX_DIGITS = 9  # of a pixel's coordinate, which is stored in 64 bits
CHECKED_IMAGES = 1024  # at once, while as many are being read
CHECKED_BYTES = 1 << 26


def convert(source, destination, *, seed=0):
    """Write `train.tfrecord`, `validation.tfrecord`, `test.tfrecord`, `wnids.txt` and `words.txt` into `destination`.

    A label is the line number of the class in wnids.txt. Training records are shuffled once; images keep their bytes.

    Args:
        source: folder or zip archive in the official layout, for any number of classes.
        destination: directory for the records, made if missing.
        seed: seed of the shuffle of the training records.

    Returns:
        dict of the number of records of each split.

    Raises:
        UserError: the source is not such a folder or archive, its lists and its images do not agree, images cannot be decoded (the message
            has a line for each), or the destination has records already.
    """
    from mat.data.records import SPLITS, class_list, record_path, staged, write_records  # imports TensorFlow

    destination = pathlib.Path(destination)
    present = [path for split in SPLITS if (path := record_path(destination, split)).exists()]
    if present:
        raise UserError(f"{present[0]}: exists already. Remove it to convert again, or choose another destination")
    with open_source(source) as files:
        texts = {name: files.read(name, MAX_TEXT) for name in ("wnids.txt", "words.txt")}
        for name in texts:
            files.read_text(name)  # refuses what is no text
        wnids = class_list(texts["wnids.txt"])
        labels = {wnid: label for label, wnid in enumerate(wnids)}
        if not wnids or len(labels) < len(wnids):
            raise UserError(f"{files.path}: wnids.txt must list each class once, one a line")
        splits = {
            "train": _train_images(files, labels, seed),
            "validation": _validation_images(files, labels),
            "test": [(name, None, None, None) for name in files.names(files.folder("test/images"))],
        }
        _refuse_stray_images(files, {name for images in splits.values() for name, *_ in images})
        try:
            with staged(destination) as stage, _ImageCheck() as check:
                for split, images in splits.items():
                    write_records(record_path(stage, split), _examples(files, images, split, check))
                check.refuse_faults(files.path)
                for name, content in texts.items():
                    (stage / name).write_bytes(content)
        except OSError as error:
            raise UserError(
                f"{error.filename or destination}: cannot be written: {error.strerror or error}. Choose another destination"
            ) from None
    return {split: len(images) for split, images in splits.items()}


def _refuse_stray_images(files, used):
    """Refuse images that lie where none are read, such as beside `images`: no split is to lack some without a word."""
    names = [name for split in ("train", "val", "test") for name in files.names(files.folder(split))]
    if stray := [name for name in names if name.lower().endswith(IMAGE_ENDINGS) and name not in used]:
        raise UserError(
            f"{files.path}: {single_line(stray[0])}{_others(stray)} lies where no images are read. Move it into train/CLASS/images, "
            "val/images or test/images, or remove it"
        )


def _examples(files, images, split, check):
    """Serialized records of (name, wnid, label, box) images, whose contents go to the check too."""
    from mat.data.records import make_example

    for name, wnid, label, box in track(images, len(images), split):
        content = files.read(name, MAX_FILE)
        check.add(name, content)
        yield make_example(content, wnid, label, box)


class _ImageCheck:
    """Finds the images that a training run could not read: a thread decodes some while the next ones come."""

    def __init__(self):
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._running = self._thread.submit(list)
        self._batch, self._n_bytes = [], 0
        self._n_images, self._faults = 0, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._thread.shutdown()

    def add(self, name, content):
        """Note an image to be checked."""
        self._batch.append((name, content))
        self._n_bytes += len(content)
        if len(self._batch) == CHECKED_IMAGES or self._n_bytes >= CHECKED_BYTES:
            self._start()

    def _start(self):
        """Hand the images to the thread, once it is done with those before."""
        self._faults += self._running.result()
        self._running = self._thread.submit(_image_faults, self._batch)
        self._n_images += len(self._batch)
        self._batch, self._n_bytes = [], 0

    def refuse_faults(self, path):
        """Wait for all images; raise the `UserError` of those that cannot be read."""
        self._start()
        self._faults += self._running.result()
        if self._faults:
            lines = "".join(
                f"\n  {single_line(name)}: {fault}" for name, fault in sorted(self._faults, key=lambda fault: by_number(fault[0]))
            )
            raise UserError(
                f"{path}: {len(self._faults):,} of {self._n_images:,} images cannot be read. Replace each of them by a JPEG or PNG, or "
                f"remove it and its line in the list:{lines}"
            )


def _image_faults(batch):
    """(name, what is wrong, in words) of those of (name, content) images that a training run could not read."""
    import tensorflow as tf

    from mat.data.reading import MAX_PIXELS, MAX_SIDE, check_images

    decodable, sizes = check_images(tf.constant([content for _, content in batch], tf.string))
    faults = []
    for (name, content), good, (width, height) in zip(batch, decodable, sizes.tolist(), strict=True):
        if good:
            continue
        fault = kind_of_file(content)
        if width * height > MAX_PIXELS:
            fault += f" of {width}x{height} pixels; at most {MAX_SIDE}x{MAX_SIDE} are read"
        elif fault in (JPEG, PNG):
            fault += ", damaged or cut short"
        faults.append((name, fault))
    return faults


def _train_images(files, labels, seed):
    """(name, wnid, label, box) of all training images, shuffled."""
    images = []
    for wnid, label in labels.items():
        boxes = f"train/{wnid}/{wnid}_boxes.txt"
        folder = files.folder(f"train/{wnid}/images")
        listed = {image: (wnid, label, box) for (image,), box in _listed(files, boxes, ["image"])}
        paired = _paired(files, folder, boxes, listed)
        if not paired:
            raise UserError(f"{files.path}: {single_line(folder)} has no images, and wnids.txt lists the class")
        images += [(name, *paired[name]) for name in files.names(folder)]
    folders = Names(files.subfolders(files.folder("train")))
    known = {folders.find(wnid): wnid for wnid in labels}
    if unlisted := sorted(set(folders) - set(known)):
        raise UserError(
            f"{files.path}: wnids.txt does not list {single_line(f'train/{unlisted[0]}')}{_others(unlisted)}. Add it, or remove the folder"
        )
    if len(known) < len(labels):
        wnid = next(wnid for wnid in labels if wnid not in known.values())
        raise UserError(f"{files.path}: wnids.txt lists {single_line(wnid)} twice, in different letter case")
    random.Random(seed).shuffle(images)
    return images


def _validation_images(files, labels):
    """(name, wnid, label, box) of all validation images, in the order of val_annotations.txt."""
    listed, wnids = {}, Names(labels)
    for (image, name), box in _listed(files, "val/val_annotations.txt", ["image", "wnid"]):
        wnid = wnids.find(name)
        if wnid is None:
            raise UserError(
                f"{files.path}: val/val_annotations.txt gives {single_line(image)} the class {single_line(name)}, which is not in "
                "wnids.txt. "
                "Correct one of them; names with spaces need tabs between them"
            )
        listed[image] = (wnid, labels[wnid], box)
    if not listed:
        raise UserError(f"{files.path}: val/val_annotations.txt lists no images, and a run validates on them. Give the whole data set")
    return [(name, *rest) for name, rest in _paired(files, files.folder("val/images"), "val/val_annotations.txt", listed).items()]


def _paired(files, folder, list_name, listed):
    """What a list says of the images of a folder, a dict by their names, in the order of the list.

    Args:
        files: the `Source`.
        folder: name of the folder.
        list_name: name of the list, for messages.
        listed: dict from the images as the list names them to what it says of them.

    Raises:
        UserError: the list names an image that the folder lacks, or the folder has one that the list does not name.
    """
    images = files.names(folder)
    present, paired, missing = Names(images), {}, []
    for image, values in listed.items():
        name = present.find(f"{folder}/{image}")
        if name is None:
            missing.append(image)
        elif name in paired:
            raise UserError(f"{files.path}: {single_line(list_name)} lists {single_line(image)} twice, in different letter case")
        else:
            paired[name] = values
    if missing:
        remedy, near = "Add it, or remove its line", present.near(missing[0])
        if plain_name(missing[0]) is None:
            remedy = PASSED_OVER
        elif near:
            remedy = f"There is {single_line(near)}: correct the one or the other"
        name = single_line(f"{folder}/{missing[0]}")
        raise UserError(f"{files.path}: {name} is missing, and {single_line(list_name)} lists it{_others(missing)}. {remedy}")
    if unlisted := [name for name in images if name not in paired]:
        raise UserError(
            f"{files.path}: {single_line(list_name)} has no box of {single_line(unlisted[0])}{_others(unlisted)}. "
            "Add its line, or remove the "
            "file"
        )
    return paired


def _others(names):
    """How many names there are beside the first one, in words."""
    return f" (and {len(names) - 1:,} more)" if len(names) > 1 else ""


def _listed(files, name, columns):
    """What `_annotations` gives of a list that names each image once."""
    seen = set()
    for names, box in _annotations(files, name, columns):
        if names[0] in seen:
            raise UserError(f"{files.path}: {single_line(name)} lists {single_line(names[0])} twice. Remove one of the lines")
        seen.add(names[0])
        yield names, box


def _annotations(files, name, columns):
    """(names, box) of each line of an annotation file: names for the `columns`, then `xmin ymin xmax ymax` in pixels.

    Names may have spaces: where there are two, they are divided at a tab, or else at the last space.
    """
    for number, line in enumerate(files.read_text(name).splitlines(), start=1):
        if not line.strip():
            continue
        text, *box = line.rsplit(maxsplit=4)
        text = text.strip()
        names = [part.strip() for part in text.split("\t") if part.strip()] if "\t" in text else text.rsplit(maxsplit=len(columns) - 1)
        if len(names) != len(columns) or len(box) != 4 or not all(value.isdecimal() and len(value) <= MAX_DIGITS for value in box):
            expected = " ".join([*columns, "xmin ymin xmax ymax"])
            raise UserError(f"{files.path}: {single_line(name)}, line {number}: not `{expected}`. Received: {line[:80]!r}")
        yield names, tuple(map(int, box))


def parse_arguments(arguments):
    """The parsed command line; `--help` and wrong usage end the process."""
    parser = argparse.ArgumentParser(prog="python -m mat.data.convert", description="Convert Tiny ImageNet to TFRecords.")
    parser.add_argument("source", metavar="SOURCE", nargs="?", type=expand_path, help="official folder or zip archive")
    parser.add_argument("destination", metavar="DESTINATION", type=expand_path, help="directory for the records")
    parser.add_argument("--download", action="store_true", help="fetch the official zip into DESTINATION first, instead of giving SOURCE")
    parser.add_argument("--url", default=URL, help="where --download fetches the zip (default: %(default)s)")
    parser.add_argument(
        "--sha256", metavar="HEX", help="what the fetched zip must have (default with the official URL: that of the official zip)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the shuffle of the training records (default: %(default)s)")
    parsed = parser.parse_args(arguments)
    if parsed.download == (parsed.source is not None):
        parser.error("give either SOURCE or --download")
    if parsed.sha256 and not (parsed.download and re.fullmatch(r"[0-9a-fA-F]{64}", parsed.sha256)):
        parser.error(f"--sha256 goes with --download, and has 64 hexadecimal digits. Received: {parsed.sha256}")
    return parsed


def main(arguments=None):
    """Run the command; returns the exit status."""
    again = "interrupted; run the same command again"
    return run_command("mat.data.convert", parse_arguments, _convert_or_download, arguments, interrupted=again)


def _convert_or_download(arguments):
    """What the command line asks for."""
    source = arguments.source
    if arguments.download:
        source = pathlib.Path(arguments.destination) / ARCHIVE
        official = arguments.url == URL and not arguments.sha256
        sha256 = ARCHIVE_SHA256 if official else arguments.sha256
        download(arguments.url, source, sha256=sha256, size=ARCHIVE_BYTES if official else None)
    load_tensorflow()
    counts = convert(source, arguments.destination, seed=arguments.seed)
    console.print(f"{arguments.destination}: {', '.join(f'{count:,} {split}' for split, count in counts.items())} images")


if __name__ == "__main__":
    sys.exit(main())
