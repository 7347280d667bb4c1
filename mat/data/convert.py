"""Official Tiny ImageNet folder or zip archive -> TFRecords, with the labels and the schema of the original's converter.

python -m mat.data.convert SOURCE DESTINATION [--seed N]
python -m mat.data.convert --download DESTINATION [--seed N]
"""

import argparse
import os
import pathlib
import random
import re
import sys
from collections.abc import Iterator, Sequence

from mat.cli.command import load_tensorflow, run_command
from mat.cli.console import console
from mat.cli.download import download
from mat.cli.errors import UserError
from mat.cli.file_kinds import JPEG, PNG, kind_of_file
from mat.cli.paths import expand_path
from mat.cli.progress import track
from mat.cli.text import single_line
from mat.data.sources import Source, by_number, fold, open_source

URL = "https://cs231n.stanford.edu/tiny-imagenet-200.zip"
ARCHIVE = "tiny-imagenet-200.zip"
ARCHIVE_SHA256 = "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"

_LISTS = ("wnids.txt", "words.txt")
_IMAGE_ENDINGS = (".jpeg", ".jpg", ".png")
_CHECKED_AT_ONCE = 128  # images

_Classes = dict[str, tuple[str, int]]  # by the folded names of classes: the names in wnids.txt and the labels
_Image = tuple[str, str | None, int | None, Sequence[int] | None]  # the file's name, the class, its label, the box


def convert(source: str | os.PathLike, destination: str | os.PathLike, *, seed: int = 0) -> dict[str, int]:
    """Write `train.tfrecord`, `validation.tfrecord`, `test.tfrecord`, `wnids.txt` and `words.txt` into a directory, made if missing.

    The source is a folder or zip archive in the official layout, for any number of classes. A label is the line number of the class in
    wnids.txt, from 0. Training records are shuffled once, from `seed`; images keep their bytes.

    Returns:
        The number of records of each split.

    Raises:
        UserError: the source is not such a folder or archive, its lists and its images do not agree, images cannot be decoded (the message
            has a line for each), or the destination has records already or cannot be written.
    """
    from mat.data.records import SPLITS, record_path, staged, write_records  # imports TensorFlow

    if present := [path for split in SPLITS if (path := record_path(destination, split)).exists()]:
        raise UserError(f"{present[0]}: exists already. Remove it to convert again, or choose another destination")
    files = open_source(source)
    splits = _splits(files, seed)
    faults: dict[str, str] = {}  # what the images are that cannot be read, by their names
    try:
        with staged(destination) as stage:
            for split, images in splits.items():
                write_records(record_path(stage, split), track(_examples(files, images, faults), len(images), split))
            if faults:
                lines = (f"\n  {single_line(name)}: {faults[name]}" for name in sorted(faults, key=by_number))
                raise UserError(
                    f"{files.path}: {len(faults):,} of {sum(map(len, splits.values())):,} images cannot be read. Replace each of them by a "
                    f"JPEG or PNG, or remove it and its line in the list:{''.join(lines)}"
                )
            for name in _LISTS:
                (stage / name).write_bytes(files.read(name))
    except OSError as error:
        where, why = error.filename or destination, error.strerror or error
        raise UserError(f"{where}: cannot be written: {why}. Choose another destination") from None
    return {split: len(images) for split, images in splits.items()}


def _examples(files: Source, images: list[_Image], faults: dict[str, str]) -> Iterator[bytes]:
    """The serialized records; images that a training run could not read are added to `faults`."""
    import tensorflow as tf

    from mat.data.reading import MAX_PIXELS, MAX_SIDE, check_images
    from mat.data.records import make_example

    for start in range(0, len(images), _CHECKED_AT_ONCE):
        batch = images[start : start + _CHECKED_AT_ONCE]
        contents = [files.read(name) for name, *_ in batch]
        decodable, sizes = check_images(tf.constant(contents))
        for (name, wnid, label, box), content, good, (width, height) in zip(batch, contents, decodable, sizes.tolist(), strict=True):
            yield make_example(content, wnid, label, box)
            if not good:
                kind = kind_of_file(content)
                if width * height > MAX_PIXELS:
                    kind += f" of {width}x{height} pixels; at most {MAX_SIDE}x{MAX_SIDE} are read"
                elif kind in (JPEG, PNG):
                    kind += ", damaged or cut short"
                faults[name] = kind


def _splits(files: Source, seed: int) -> dict[str, list[_Image]]:
    """The images of each split, in the order of their records."""
    from mat.data.records import class_list

    for name in _LISTS:
        files.read_text(name)  # refuses what is no text
    wnids = class_list(files.read("wnids.txt"))
    classes: _Classes = {fold(wnid): (wnid, label) for label, wnid in enumerate(wnids)}
    if not wnids or len(classes) < len(wnids):
        raise UserError(f"{files.path}: wnids.txt must list each class once, one a line; letter case makes no difference")
    folders = {name.split("/")[1] for name in files.names("train") if name.count("/") > 1}
    if unlisted := sorted(f"train/{folder}" for folder in folders if fold(folder) not in classes):
        raise UserError(f"{files.path}: wnids.txt does not list {_first(unlisted)}. Add it, or remove the folder")
    train: list[_Image] = []
    for wnid in wnids:
        images = _listed_images(files, f"train/{wnid}/images", f"train/{wnid}/{wnid}_boxes.txt", classes, wnid)
        train += sorted(images, key=lambda image: (by_number(image[0]), image[0]))
    random.Random(seed).shuffle(train)
    validation = _listed_images(files, "val/images", "val/val_annotations.txt", classes)
    test: list[_Image] = [(name, None, None, None) for name in files.names("test/images")]
    used = {name for name, *_ in train + validation + test}
    names = [name for folder in ("train", "val", "test") for name in files.names(folder)]
    if stray := [name for name in names if name.lower().endswith(_IMAGE_ENDINGS) and name not in used]:
        where = "train/CLASS/images, val/images or test/images"
        raise UserError(f"{files.path}: {_first(stray)} lies where no images are read. Move it into {where}, or remove it")
    return {"train": train, "validation": validation, "test": test}


def _listed_images(files: Source, folder: str, list_name: str, classes: _Classes, wnid: str | None = None) -> list[_Image]:
    """The images of a folder in the order of their list.

    A line is `image xmin ymin xmax ymax` in the list of the class `wnid`, and `image wnid xmin ymin xmax ymax` in a list of all classes;
    boxes are in pixels. Names may have spaces: where there are two, they are divided at a tab, or else at the last space.

    Raises:
        UserError: the list is empty, has other lines, or does not name exactly the images of the folder, each once.
    """
    images: dict[str, _Image] = {}
    missing, shown = [], f"{files.path}: {single_line(list_name)}"
    for number, line in enumerate(files.read_text(list_name).splitlines(), start=1):
        if not line.strip():
            continue
        text, *box = line.strip().rsplit(maxsplit=4)
        names = [text, wnid] if wnid else re.split(r"\s*\t\s*", text) if "\t" in text else text.rsplit(maxsplit=1)
        if len(names) != 2 or len(box) != 4 or not all(re.fullmatch(r"\d{1,9}", value) for value in box):
            expected = f"image {'' if wnid else 'wnid '}xmin ymin xmax ymax"
            raise UserError(f"{shown}, line {number}: not `{expected}`. Received: {line[:80]!r}")
        image, label = names[0], classes.get(fold(names[1]))
        if label is None:
            what = f"gives {single_line(image)} the class {single_line(names[1])}, which is not in wnids.txt"
            raise UserError(f"{shown} {what}. Correct one of them; names with spaces need tabs between them")
        name = files.find(f"{folder}/{image}")
        if name in images:
            raise UserError(f"{shown} lists {single_line(image)} twice, or in different letter case. Remove one of the lines")
        if name is None:
            missing.append(f"{folder}/{image}")
        else:
            images[name] = (name, *label, [int(value) for value in box])
    present = files.names(folder)
    if missing:
        near = [name for name in present if fold(pathlib.PurePosixPath(name).stem) == fold(pathlib.PurePosixPath(missing[0]).stem)]
        add = "Add it, or remove its line; hidden files and what systems leave in folders are passed over"
        remedy = f"There is {single_line(near[-1])}: correct the one or the other" if near else add
        raise UserError(f"{files.path}: {_first(missing)} is missing, and {single_line(list_name)} lists it. {remedy}")
    if unlisted := [name for name in present if name not in images]:
        raise UserError(f"{shown} has no box of {_first(unlisted)}. Add its line, or remove the file")
    if not images:
        raise UserError(f"{shown} lists no images; every class needs some to train on, and a run some to validate on. Add them")
    return list(images.values())


def _first(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    return single_line(names[0]) + (f" (and {len(names) - 1:,} more)" if len(names) > 1 else "")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line; `--help` and wrong usage end the process."""
    parser = argparse.ArgumentParser(prog="python -m mat.data.convert", description="Convert Tiny ImageNet to TFRecords.")
    parser.add_argument("source", metavar="SOURCE", nargs="?", type=expand_path, help="official folder or zip archive")
    parser.add_argument("destination", metavar="DESTINATION", type=expand_path, help="directory for the records")
    parser.add_argument("--download", action="store_true", help="fetch the official zip into DESTINATION first, instead of giving SOURCE")
    parser.add_argument("--url", default=URL, help="where --download fetches the zip (default: %(default)s)")
    parser.add_argument("--sha256", metavar="HEX", help="what the fetched zip must have (default with the official URL: the official's)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the shuffle of the training records (default: %(default)s)")
    parsed = parser.parse_args(arguments)
    if parsed.download == (parsed.source is not None):
        parser.error("give either SOURCE or --download")
    if parsed.sha256 and not (parsed.download and re.fullmatch(r"[0-9a-fA-F]{64}", parsed.sha256)):
        parser.error(f"--sha256 goes with --download, and has 64 hexadecimal digits. Received: {parsed.sha256}")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("mat.data.convert", parse_arguments, _run, arguments)


def _run(arguments: argparse.Namespace) -> None:
    source = arguments.source
    if arguments.download:
        source = pathlib.Path(arguments.destination) / ARCHIVE
        official = arguments.url == URL and not arguments.sha256
        download(arguments.url, source, sha256=ARCHIVE_SHA256 if official else arguments.sha256)
    load_tensorflow()
    counts = convert(source, arguments.destination, seed=arguments.seed)
    console.print(f"{arguments.destination}: {', '.join(f'{count:,} {split}' for split, count in counts.items())} images")


if __name__ == "__main__":
    sys.exit(main())
