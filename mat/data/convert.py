"""Folder or zip archive of images -> TFRecords: images by class, or Tiny ImageNet in its official layout, as of the original's converter.

python -m mat.data.convert SOURCE DESTINATION [--classes FILE|NAME,...] [--seed N] [--validation-share SHARE] [--image-size N] [--skip-bad]
python -m mat.data.convert --download DESTINATION [--classes FILE|NAME,...] [--seed N]
"""

import argparse
import collections
import concurrent.futures
import os
import pathlib
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from mat.cli.command import load_tensorflow, run_command
from mat.cli.console import console
from mat.cli.download import download
from mat.cli.errors import UserError
from mat.cli.file_kinds import kind_of_file
from mat.cli.paths import expand_path
from mat.cli.progress import track
from mat.cli.signals import raised_signals
from mat.cli.text import single_line
from mat.data.class_choice import read_class_names
from mat.data.class_folders import class_folder_layout
from mat.data.metadata import DATASET_FILE, Metadata
from mat.data.official import is_official, official_layout
from mat.data.picture_files import MAX_SIDE, content_for_records
from mat.data.sources import Layout, Source, SourceImage, by_number, first, has_image_ending, open_source

URL = "https://cs231n.stanford.edu/tiny-imagenet-200.zip"
ARCHIVE = "tiny-imagenet-200.zip"
ARCHIVE_SHA256 = "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"
VALIDATION_SHARE = 0.1

_SMALLEST_IMAGE_SIZE = 8  # of a config
_DEFAULT_IMAGE_SIZE = 64  # where neither the user nor the images give one
_CLASSES_SHOWN = 10
_IMAGES_AT_ONCE = 8  # of a thread; TensorFlow checks that many in one go


class _Outcome(NamedTuple):
    """What became of an image."""

    image: SourceImage
    size: tuple[int, int] = (0, 0)  # width and height
    is_reencoded: bool = False
    fault: str | None = None  # why it cannot be read


def convert(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    seed: int = 0,
    validation_share: float = VALIDATION_SHARE,
    skip_bad: bool = False,
    image_size: int | None = None,
    classes: Sequence[str] | None = None,
) -> dict[str, int]:
    """Write `train.tfrecord`, `validation.tfrecord`, `wnids.txt` and `dataset.json` into a directory, made if missing.

    The source is a folder or zip archive of images by class, see `class_folder_layout`, or in the official layout, see `official_layout`,
    which also gives `test.tfrecord` and `words.txt`. JPEG and PNG files in RGB or gray keep their bytes; other images become PNGs of what
    a viewer shows. A line on the console tells what else there is to know.

    Args:
        source: the folder or archive.
        destination: the directory.
        seed: of the order of training records, and of the choice of validation images where the source has none.
        validation_share: how many of the images of a class are chosen, in (0, 1).
        skip_bad: leave out images that cannot be read.
        image_size: the size that configs are to have; by default that of the images where all are square and of one size, else 64.
        classes: names of the only classes to convert, in the order of their labels, see `choose_classes`; by default all of the source.

    Returns:
        The number of records of each split.

    Raises:
        UserError: the source is no such folder or archive, its lists and its images do not agree, it has no such classes, images cannot be
            read (the message has a line for each), or the destination has records already or cannot be written.
    """
    from mat.data.records import SPLITS, record_path, staged, write_records  # imports TensorFlow

    if os.path.isdir(source) and os.path.realpath(source) == os.path.realpath(destination):
        raise UserError(f"{destination}: is the source, too, whose lists the records' would replace. Choose another destination")
    if present := [path for split in SPLITS if os.path.lexists(path := record_path(destination, split))]:
        raise UserError(f"{present[0]}: exists already. Remove it to convert again, or choose another destination")
    files = open_source(source)
    if is_official(files):
        layout = official_layout(files, seed=seed, names=classes)
    else:
        layout = class_folder_layout(files, seed=seed, validation_share=validation_share, names=classes)
    outcomes: dict[str, list[_Outcome]] = {}
    try:
        with staged(destination) as stage, warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd EXIF data, or of pictures that may be crafted to fill the memory
            for split, images in layout.splits.items():
                outcomes[split] = []
                examples = _examples(track(_read_images(files, images), len(images), split), outcomes[split])
                write_records(record_path(stage, split), examples)
            _check_faults(files, outcomes, layout.classes, skip_bad=skip_bad)
            metadata = _metadata(outcomes, layout, source=files.path.absolute().name, seed=seed, image_size=image_size)
            for name, content in {**layout.lists, DATASET_FILE: metadata.to_json()}.items():
                (stage / name).write_bytes(content)
    except OSError as error:
        where, why = error.filename or destination, error.strerror or error
        raise UserError(f"{where}: cannot be written: {why}. Choose another destination") from None
    _report(metadata, layout)
    return metadata.images


def _examples(contents: Iterable[tuple[_Outcome, bytes]], outcomes: list[_Outcome]) -> Iterator[bytes]:
    """The serialized records of the images that can be read; `outcomes` gets what became of each of all."""
    from mat.data.records import make_example

    for outcome, content in contents:
        outcomes.append(outcome)
        if not outcome.fault:
            yield make_example(content, outcome.image.class_name, outcome.image.label, outcome.image.box)


def _read_images(files: Source, images: list[SourceImage]) -> Iterator[tuple[_Outcome, bytes]]:
    """What becomes of each image, and its bytes as the records hold them, in order. Several threads read, check and re-encode them."""
    n_threads = os.cpu_count() or 1
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(n_threads) as pool:
        for start in range(0, len(images), _IMAGES_AT_ONCE):
            waiting.append(pool.submit(_read_few, files, images[start : start + _IMAGES_AT_ONCE]))
            if len(waiting) > n_threads:  # what is ahead of the writer stays in memory
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _read_few(files: Source, images: list[SourceImage]) -> list[tuple[_Outcome, bytes]]:
    """As `_read_images`, of some images in one thread."""
    import tensorflow as tf

    from mat.data.reading import check_images

    read = []
    for image in images:
        try:
            content, size = content_for_records(files.read_image(image.name))
            read.append((_Outcome(image, size or (0, 0), is_reencoded=size is not None), content))
        except ValueError as error:
            read.append((_Outcome(image, fault=str(error)), b""))
    kept = [i for i, (outcome, _) in enumerate(read) if not outcome.fault and not outcome.is_reencoded]
    decodable, sizes = check_images(tf.constant([read[i][1] for i in kept], tf.string))
    for i, good, size in zip(kept, decodable, sizes.tolist(), strict=True):
        outcome, content = read[i]
        fault = None if good else f"{kind_of_file(content)}, damaged or cut short"
        read[i] = outcome._replace(size=tuple(size), fault=fault), content
    return read


def _faults(outcomes: dict[str, list[_Outcome]]) -> dict[str, str]:
    """Why images cannot be read, by the names of their files."""
    faults = {outcome.image.name: outcome.fault for split in outcomes.values() for outcome in split if outcome.fault}
    return {name: faults[name] for name in sorted(faults, key=by_number)}


def _lines(faults: dict[str, str]) -> str:
    return "".join(f"\n  {single_line(name)}: {fault}" for name, fault in faults.items())


def _check_faults(files: Source, outcomes: dict[str, list[_Outcome]], classes: list[str], *, skip_bad: bool) -> None:
    """Refuse images that cannot be read, unless they are to be skipped and leave each class others to train on, and some to validate on."""
    if not (faults := _faults(outcomes)):
        return
    n_images = sum(map(len, outcomes.values()))
    shown = f"{files.path}: {len(faults):,} of {n_images:,} images cannot be read"
    if not skip_bad:
        remedy = (
            "Replace each of them by a JPEG or PNG, remove it and its line in the list if there is one, or leave them out with --skip-bad"
        )
        raise UserError(f"{shown}. {remedy}:{_lines(faults)}")
    trained, validated = ({one.image.class_name for one in outcomes[split] if not one.fault} for split in ("train", "validation"))
    empty = [name for name in classes if name not in trained]
    if empty or not validated:
        left = f"training image of {first(empty)}" if empty else "validation image"
        raise UserError(f"{shown}, which leaves no {left}. Replace or remove them:{_lines(faults)}")


def _metadata(outcomes: dict[str, list[_Outcome]], layout: Layout, *, source: str, seed: int, image_size: int | None) -> Metadata:
    """What `dataset.json` says."""
    read = {split: [outcome for outcome in split_outcomes if not outcome.fault] for split, split_outcomes in outcomes.items()}
    everything = [outcome for split in read.values() for outcome in split]
    by_class: dict[str, dict[str, int]] = {name: {"train": 0, "validation": 0} for name in layout.classes}
    for split in ("train", "validation"):
        for outcome in read[split]:
            by_class[str(outcome.image.class_name)][split] += 1
    labeled = {outcome.size for split in ("train", "validation") for outcome in read[split]}
    width, height = labeled.pop() if len(labeled) == 1 else (0, 0)
    told = image_size or (width if width == height >= _SMALLEST_IMAGE_SIZE else 0)
    widths, heights = zip(*(outcome.size for outcome in everything), strict=True)
    return Metadata(
        image_size=told or _DEFAULT_IMAGE_SIZE,
        image_size_is_free=not told,
        classes=layout.classes,
        images={split: len(images) for split, images in read.items()},
        images_by_class=by_class,
        width=(min(widths), max(widths)),
        height=(min(heights), max(heights)),
        source=source,
        layout=layout.name,
        seed=seed,
        validation_share=layout.validation_share,
        reencoded=sum(outcome.is_reencoded for outcome in everything),
        skipped=_faults(outcomes),
    )


def _report(metadata: Metadata, layout: Layout) -> None:
    """Print how the source was understood, and what is not as it was there."""
    names = ", ".join(map(single_line, metadata.classes[:_CLASSES_SHOWN])) + ", ..." * (len(metadata.classes) > _CLASSES_SHOWN)
    console.print(f"{single_line(layout.name)}: {len(metadata.classes)} classes ({names})")
    if metadata.validation_share:
        console.print(f"Chosen for validation: {metadata.validation_share:.0%} of the images of each class, by seed {metadata.seed}")
    if metadata.reencoded:
        console.print(
            f"Re-encoded as PNG: {metadata.reencoded:,} images that are not JPEG or PNG in 8-bit RGB or gray, or are stored turned"
        )
    if layout.others:
        n_images = sum(map(has_image_ending, layout.others))
        what = f", {n_images:,} of them images that lie where none are read" if n_images else ""
        console.print(f"Other files are passed over{what}: {first(sorted(layout.others, key=has_image_ending, reverse=True))}")
    if metadata.skipped:
        console.print(f"Left out as they cannot be read: {len(metadata.skipped):,} images{_lines(metadata.skipped)}")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line; `--help` and wrong usage end the process."""
    parser = argparse.ArgumentParser(
        prog="python -m mat.data.convert", description="Convert images by class, or Tiny ImageNet, to TFRecords."
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        nargs="?",
        type=expand_path,
        help="folder or zip archive: train/CLASS/... and val/CLASS/..., or CLASS/..., or the official Tiny ImageNet",
    )
    parser.add_argument("destination", metavar="DESTINATION", type=expand_path, help="directory for the records")
    parser.add_argument("--download", action="store_true", help="fetch the official zip into DESTINATION first, instead of giving SOURCE")
    parser.add_argument("--url", default=URL, help="where --download fetches the zip (default: %(default)s)")
    parser.add_argument("--sha256", metavar="HEX", help="what the fetched zip must have (default with the official URL: the official's)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the training records and the choice for --validation-share")
    parser.add_argument(
        "--validation-share",
        metavar="SHARE",
        type=float,
        default=VALIDATION_SHARE,
        help="how many of the images of each class to validate on where the source has no folder for it (default: %(default)s)",
    )
    meaning = "only these classes, labels in their order: names (wnids, the first names of words.txt, or folders), or a file of one a line"
    parser.add_argument("--classes", metavar="FILE|NAME[,NAME...]", type=expand_path, help=meaning)
    parser.add_argument("--image-size", metavar="N", type=int, help="height and width for networks (default: the images', or else 64)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be read, and list them")
    parsed = parser.parse_args(arguments)
    if parsed.download == (parsed.source is not None):
        parser.error("give either SOURCE or --download")
    if parsed.sha256 and not (parsed.download and re.fullmatch(r"[0-9a-fA-F]{64}", parsed.sha256)):
        parser.error(f"--sha256 goes with --download, and has 64 hexadecimal digits. Received: {parsed.sha256}")
    if not 0 < parsed.validation_share < 1:
        parser.error(f"--validation-share must be between 0 and 1. Received: {parsed.validation_share}")
    if parsed.image_size is not None and not _SMALLEST_IMAGE_SIZE <= parsed.image_size <= MAX_SIDE:
        parser.error(f"--image-size must be in [{_SMALLEST_IMAGE_SIZE}, {MAX_SIDE}]. Received: {parsed.image_size}")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command("mat.data.convert", parse_arguments, _run, arguments)


def _run(arguments: argparse.Namespace) -> None:
    source, classes = arguments.source, None if arguments.classes is None else read_class_names(arguments.classes)
    if arguments.download:
        source = pathlib.Path(arguments.destination) / ARCHIVE
        official = arguments.url == URL and not arguments.sha256
        download(arguments.url, source, sha256=ARCHIVE_SHA256 if official else arguments.sha256)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # several lines for each damaged JPEG, which is named in the message
    load_tensorflow()
    options = {name: getattr(arguments, name) for name in ("seed", "validation_share", "skip_bad", "image_size")}
    with raised_signals("Stopped; nothing was written"):
        counts = convert(source, arguments.destination, classes=classes, **options)
    console.print(f"{arguments.destination}: {', '.join(f'{count:,} {split}' for split, count in counts.items())} images")


if __name__ == "__main__":
    sys.exit(main())
