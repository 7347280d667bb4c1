"""Official Tiny ImageNet folder or zip archive -> TFRecords, with the labels and the schema of the original's converter.

python -m mat.data.convert SOURCE DESTINATION [--seed N]
python -m mat.data.convert --download DESTINATION [--seed N]
"""

import argparse
import contextlib
import io
import pathlib
import random
import re
import stat
import struct
import sys
import zipfile
import zlib

from mat.commands import run_command
from mat.download import download
from mat.errors import UserError
from mat.terminal import console, quiet_stderr, track
from mat.text import printable

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
ARCHIVE = "tiny-imagenet-200.zip"

MAX_FILE = 1 << 25  # bytes of an image, or of an archive's directory
MAX_TEXT = 1 << 23  # bytes of a list of classes, words or boxes
MAX_UNPACKED = 1 << 30  # bytes that any archive may unpack to
MAX_RATIO = 100  # of unpacked bytes to the archive's, above that
MAX_DIGITS = 9  # of a pixel's coordinate, which is stored in 64 bits

ARCHIVE_ERRORS = (OSError, EOFError, ValueError, RuntimeError, OverflowError, struct.error, zipfile.BadZipFile, zlib.error)


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
        word_lists = {name: files.read(name, MAX_TEXT) for name in ("wnids.txt", "words.txt")}
        wnids = files.read_text("wnids.txt").split()
        labels = {wnid: label for label, wnid in enumerate(wnids)}
        if not wnids or len(labels) < len(wnids):
            raise UserError(f"{files.path}: wnids.txt must list each class once, one a line")
        splits = {
            "train": _train_images(files, labels, seed),
            "validation": _validation_images(files, labels),
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
        yield make_example(files.read(name, MAX_FILE), wnid, label, box)


def _train_images(files, labels, seed):
    """(name, wnid, label, box) of all training images, shuffled."""
    images = []
    for wnid, label in labels.items():
        annotations = {image: box for (image,), box in _annotations(files, f"train/{wnid}/{wnid}_boxes.txt", ["image"])}
        names = files.names(f"train/{wnid}/images")
        if not names:
            raise UserError(f"{files.path}: {printable(f'train/{wnid}/images')} has no images, and wnids.txt lists the class")
        for name in names:
            box = annotations.get(pathlib.PurePosixPath(name).name)
            if box is None:
                raise UserError(f"{files.path}: {printable(f'train/{wnid}/{wnid}_boxes.txt')} has no box of {printable(name)}")
            images.append((name, wnid, label, box))
    random.Random(seed).shuffle(images)
    return images


def _validation_images(files, labels):
    """(name, wnid, label, box) of all validation images, in the order of val_annotations.txt."""
    images = {}
    for (image, wnid), box in _annotations(files, "val/val_annotations.txt", ["image", "wnid"]):
        if wnid not in labels:
            raise UserError(
                f"{files.path}: val/val_annotations.txt gives {printable(image)} the class {printable(wnid)}, which is not in wnids.txt"
            )
        if image in images:
            raise UserError(f"{files.path}: val/val_annotations.txt lists {printable(image)} twice")
        images[image] = (f"val/images/{image}", wnid, labels[wnid], box)
    return list(images.values())


def _annotations(files, name, columns):
    """(words, box) of each line of an annotation file: the `columns`, then `xmin ymin xmax ymax` in pixels."""
    for number, line in enumerate(files.read_text(name).splitlines(), start=1):
        words, box = line.split()[: len(columns)], line.split()[len(columns) :]
        if len(box) != 4 or not all(value.isdecimal() and len(value) <= MAX_DIGITS for value in box):
            expected = " ".join([*columns, "xmin ymin xmax ymax"])
            raise UserError(f"{files.path}: {printable(name)}, line {number}: not `{expected}`. Received: {line[:80]!r}")
        yield words, tuple(map(int, box))


class _Files:
    """The files below the directory of wnids.txt, in a folder or an archive, by their relative names.

    Args:
        path: the folder or archive, for messages.
        all_names: all names in it, `/` between the parts; no other file is read.
        open_file: name -> binary file.
    """

    def __init__(self, path, all_names, open_file):
        self.path = path
        self._open_file = open_file
        self._all_names = set(all_names)
        roots = [name.removesuffix("wnids.txt") for name in all_names if f"/{name}".endswith("/wnids.txt")]
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

    def read(self, name, max_bytes):
        """The bytes of a file."""
        if self._root + name not in self._all_names:
            raise UserError(f"{self.path}: {printable(name)} is missing")
        try:
            with self._open_file(self._root + name) as file:
                content = file.read(max_bytes + 1)
        except ARCHIVE_ERRORS as error:
            raise UserError(f"{self.path}: {printable(name)} cannot be read ({printable(str(error))}). Fetch the archive again") from None
        if len(content) > max_bytes:
            raise UserError(f"{self.path}: {printable(name)} has more than {max_bytes:,} bytes. Fetch the archive again")
        return content

    def read_text(self, name):
        """A file's text."""
        try:
            return self.read(name, MAX_TEXT).decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: {printable(name)} is not UTF-8 text ({error.reason} at byte {error.start})") from None


def _by_number(base):
    """Sorts `test_10.JPEG` behind `test_9.JPEG`."""
    parts = re.split(r"(\d+)", base)
    parts[1::2] = [(len(digits.lstrip("0")), digits.lstrip("0")) for digits in parts[1::2]]
    return parts


@contextlib.contextmanager
def _open_source(source):
    """The `_Files` of a folder or a zip archive."""
    source = pathlib.Path(source)
    if source.is_dir():
        yield _Files(source, _folder_names(source), lambda name: (source / name).open("rb"))
        return
    if not source.is_file():
        raise UserError(
            f"{source}: no such folder or archive. Give the official folder or zip of Tiny ImageNet, or fetch it with --download"
        )
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(_ArchiveFile(source))
            archive = stack.enter_context(zipfile.ZipFile(file))
        except ARCHIVE_ERRORS as error:
            raise UserError(f"{source}: not a readable zip archive ({printable(str(error))}). Remove it and fetch it again") from None
        _check_archive(source, archive.infolist())
        yield _Files(source, archive.namelist(), archive.open)


def _folder_names(folder):
    """The names of all files below a folder; links that lead out of it are refused."""
    root, names = folder.resolve(), []
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise UserError(f"{folder}: {printable(str(path.relative_to(folder)))} is a link to a file outside. Put the file in its place")
        names.append(path.relative_to(folder).as_posix())
    return names


class _ArchiveFile(io.FileIO):
    """A zip file whose directory, which `zipfile` reads and unfolds as a whole, is not too large for the memory."""

    def read(self, size=-1):
        """At most `size` bytes; no read of an archive's files asks for more than `MAX_FILE + 1`."""
        if size > MAX_FILE + 1:
            raise zipfile.BadZipFile(f"its directory takes more than {MAX_FILE:,} bytes")
        return super().read(size)


def _check_archive(path, members):
    """Refuse an archive with what the official one has not: links, names given twice, unusual compression, or far more than its size."""
    names = set()
    for member in members:
        problem = None
        if stat.S_ISLNK(member.external_attr >> 16):
            problem = "is a link"
        elif member.filename in names:
            problem = "is in it twice"
        elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            problem = "is compressed in another way than deflate"
        if problem:
            raise UserError(f"{path}: {printable(member.filename)} {problem}, unlike in the official archive. Fetch that")
        names.add(member.filename)
    unpacked, allowed = sum(member.file_size for member in members), max(MAX_UNPACKED, MAX_RATIO * path.stat().st_size)
    if unpacked > allowed:
        raise UserError(f"{path}: unpacks to {unpacked:,} bytes, more than the {allowed:,} of any such archive. Fetch the official one")


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
