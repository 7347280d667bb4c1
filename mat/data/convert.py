"""Official Tiny ImageNet folder or zip archive -> TFRecords, with the labels and the schema of the original's converter.

python -m mat.data.convert SOURCE DESTINATION [--seed N]
python -m mat.data.convert --download DESTINATION [--seed N]
"""

import argparse
import contextlib
import pathlib
import random
import re
import sys
import zipfile
import zlib

from mat.commands import run_command
from mat.download import download
from mat.errors import UserError
from mat.terminal import console, quiet_stderr, track

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
ARCHIVE = "tiny-imagenet-200.zip"


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
        UserError: the source is not such a folder or archive, or the destination has records already.
    """
    from mat.data.records import SPLITS, record_path, staged, write_records  # imports TensorFlow

    destination = pathlib.Path(destination)
    present = [path for split in SPLITS if (path := record_path(destination, split)).exists()]
    if present:
        raise UserError(f"{present[0]}: exists already. Remove it to convert again, or choose another destination")
    with _open_source(source) as files:
        word_lists = {name: files.read(name) for name in ("wnids.txt", "words.txt")}
        wnids = files.read_text("wnids.txt").split()
        if not wnids or len(set(wnids)) < len(wnids):
            raise UserError(f"{files.path}: wnids.txt must list each class once, one a line")
        splits = {
            "train": _train_images(files, wnids, seed),
            "validation": _validation_images(files, wnids),
            "test": [(name, None, None, None) for name in files.names("test/images")],
        }
        try:
            with staged(destination) as stage:
                for split, images in splits.items():
                    write_records(record_path(stage, split), _examples(files, images, split))
                for name, content in word_lists.items():
                    (stage / name).write_bytes(content)
        except OSError as error:
            raise UserError(
                f"{error.filename or destination}: cannot be written: {error.strerror or error}. Choose another destination"
            ) from None
    return {split: len(images) for split, images in splits.items()}


def _examples(files, images, split):
    """Serialized records of (name, wnid, label, box) images."""
    from mat.data.records import make_example

    for name, wnid, label, box in track(images, len(images), split):
        yield make_example(files.read(name), wnid, label, box)


def _train_images(files, wnids, seed):
    """(name, wnid, label, box) of all training images, shuffled."""
    images = []
    for label, wnid in enumerate(wnids):
        annotations = {image: box for (image,), box in _annotations(files, f"train/{wnid}/{wnid}_boxes.txt", ["image"])}
        names = files.names(f"train/{wnid}/images")
        if not names:
            raise UserError(f"{files.path}: train/{wnid}/images has no images, and wnids.txt lists the class {wnid}")
        for name in names:
            box = annotations.get(pathlib.PurePosixPath(name).name)
            if box is None:
                raise UserError(f"{files.path}: train/{wnid}/{wnid}_boxes.txt has no box of {name}")
            images.append((name, wnid, label, box))
    random.Random(seed).shuffle(images)
    return images


def _validation_images(files, wnids):
    """(name, wnid, label, box) of all validation images, in the order of val_annotations.txt."""
    images = []
    for (image, wnid), box in _annotations(files, "val/val_annotations.txt", ["image", "wnid"]):
        if wnid not in wnids:
            raise UserError(f"{files.path}: val/val_annotations.txt gives {image} the class {wnid}, which is not in wnids.txt")
        images.append((f"val/images/{image}", wnid, wnids.index(wnid), box))
    return images


def _annotations(files, name, columns):
    """(words, box) of each line of an annotation file: the `columns`, then `xmin ymin xmax ymax` in pixels."""
    for number, line in enumerate(files.read_text(name).splitlines(), start=1):
        words, box = line.split()[: len(columns)], line.split()[len(columns) :]
        if len(box) != 4 or not all(value.isdecimal() for value in box):
            expected = " ".join([*columns, "xmin ymin xmax ymax"])
            raise UserError(f"{files.path}: {name}, line {number}: not `{expected}`. Received: {line[:80]!r}")
        yield words, tuple(map(int, box))


class _Files:
    """The files below the directory of wnids.txt, in a folder or an archive, by their relative names.

    Args:
        path: the folder or archive, for messages.
        all_names: all names in it, `/` between the parts.
        read: name -> bytes.
    """

    def __init__(self, path, all_names, read):
        self.path = path
        self._read = read
        roots = [name.removesuffix("wnids.txt") for name in all_names if pathlib.PurePosixPath(name).name == "wnids.txt"]
        if not roots:
            raise UserError(f"{path}: no wnids.txt in it, so not Tiny ImageNet in its official layout. Give the official folder or zip")
        self._root = min(roots, key=len)
        self._folders = {}
        for name in all_names:
            folder, _, base = name.removeprefix(self._root).rpartition("/")
            if name.startswith(self._root) and base.endswith(".JPEG"):
                self._folders.setdefault(folder, []).append(base)

    def names(self, folder):
        """The images in a folder, in the order of their numbers."""
        return [f"{folder}/{base}" for base in sorted(self._folders.get(folder, []), key=_by_number)]

    def read(self, name):
        """The bytes of a file."""
        try:
            return self._read(self._root + name)
        except (KeyError, FileNotFoundError):
            raise UserError(f"{self.path}: {name} is missing") from None
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise UserError(f"{self.path}: {name} cannot be read ({error}). Fetch the archive again") from None

    def read_text(self, name):
        """A file's text."""
        try:
            return self.read(name).decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: {name} is not UTF-8 text ({error.reason} at byte {error.start})") from None


def _by_number(base):
    """Sorts `test_10.JPEG` behind `test_9.JPEG`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", base)]


@contextlib.contextmanager
def _open_source(source):
    """The `_Files` of a folder or a zip archive."""
    source = pathlib.Path(source)
    if source.is_dir():
        names = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
        yield _Files(source, names, lambda name: (source / name).read_bytes())
        return
    if not source.exists():
        raise UserError(
            f"{source}: no such folder or archive. Give the official folder or zip of Tiny ImageNet, or fetch it with --download"
        )
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{source}: not a readable zip archive ({error}). Remove it and fetch it again") from None
    with archive:
        yield _Files(source, archive.namelist(), archive.read)


def main(arguments=None):
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mat.data.convert", description="Convert Tiny ImageNet to TFRecords.")
    parser.add_argument("source", metavar="SOURCE", nargs="?", help="official folder or zip archive")
    parser.add_argument("destination", metavar="DESTINATION", help="directory for the records")
    parser.add_argument("--download", action="store_true", help="fetch the official zip into DESTINATION first, instead of giving SOURCE")
    parser.add_argument("--url", default=URL, help="where --download fetches the zip (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the shuffle of the training records (default: %(default)s)")
    arguments = parser.parse_args(arguments)
    if arguments.download == (arguments.source is not None):
        parser.error("give either SOURCE or --download")
    return run_command("mat.data.convert", _convert_or_download, arguments, interrupted="interrupted; run the same command again")


def _convert_or_download(arguments):
    """What the command line asks for."""
    source = arguments.source
    if arguments.download:
        source = pathlib.Path(arguments.destination) / ARCHIVE
        download(arguments.url, source)
    with quiet_stderr():
        import tensorflow  # noqa: F401 -- only for its greetings to be held back
    counts = convert(source, arguments.destination, seed=arguments.seed)
    console.print(f"{arguments.destination}: {', '.join(f'{count:,} {split}' for split, count in counts.items())} images")


if __name__ == "__main__":
    sys.exit(main())
