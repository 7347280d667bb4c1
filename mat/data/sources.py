"""Data sets as folders and zip archives: the names of their files, without what operating systems leave there, and their bytes."""

import bisect
import contextlib
import functools
import os
import pathlib
import posixpath
import re
import struct
import threading
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from mat.cli.errors import UserError
from mat.cli.file_kinds import HEAD, ZIP, kind_of_file
from mat.cli.text import decode_text, single_line

# What zipfile raises for damaged archives; RuntimeError for encrypted ones and unknown compression.
_READ_ERRORS = (OSError, EOFError, ValueError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile)
_JUNK = re.compile(r"(^|/)(\.[^/]*|__macosx|@eadir|(eh)?thumbs\.db|desktop\.ini|icon\r)(/|$)|:zone\.identifier$", re.IGNORECASE)
_IMAGE_ENDING = re.compile(
    r"\.(a?png|avif|bmp|dds|dib|gif|hei[cf]|ico|j2k|jfif|jp2|jpe?g?|jxl|p[bfgnp]m|pcx|psd|qoi|svg|tga|tiff?|webp|x[bp]m)", re.IGNORECASE
)
_UTF_8 = 0x800  # flag of a member of a zip archive
_UNPACK = "Unpack it and give the folder"


class SourceImage(NamedTuple):
    """An image of a source; those of a test split have neither a class nor a box."""

    name: str  # of the file
    class_name: str | None = None  # in wnids.txt
    label: int | None = None
    box: Sequence[int] | None = None  # (xmin, ymin, xmax, ymax), pixels


class Layout(NamedTuple):
    """What a source holds, read off its folders and lists."""

    name: str  # of the layout, in words
    classes: list[str]  # in the order of the labels
    splits: dict[str, list[SourceImage]]  # in the order of the records
    lists: dict[str, bytes]  # files to write beside the records
    others: list[str]  # names of files that are passed over
    validation_share: float | None = None  # of the training images that became the validation images


class Source:
    """The files below the directory of wnids.txt, or all where there is none, by their names relative to it; hidden files are passed over.

    So are files such as `Thumbs.db`. `files` has a name and a handle of each file of the folder or archive `path`; `read_file` gives the
    bytes for a handle, or the first ones where a number of bytes is given too, and may be called from several threads.
    """

    def __init__(self, path: pathlib.Path, files: Iterable[tuple[str, Any]], read_file: Callable[..., bytes]) -> None:
        self.path, self._read_file = path, read_file
        named = ((posixpath.normpath(name.replace("\\", "/")), file) for name, file in files)
        plain = {name: file for name, file in named if not _JUNK.search(name)}
        root = _root(path, plain)
        self._files = {name.removeprefix(root): file for name, file in plain.items() if name.startswith(root)}
        self._folded = sorted((fold(name), name) for name in self._files)

    def __len__(self) -> int:
        """How many files there are."""
        return len(self._files)

    def find(self, name: str) -> str | None:
        """The file that is meant by `name`: the one of that name, or the only one that differs in letter case or normalization form."""
        same = [name] if name in self._files else self._between(fold(name), fold(name) + "\0")
        return same[0] if len(same) == 1 else None

    def names(self, folder: str = "") -> list[str]:
        """The names of all files below a folder, by default of all, in the order of their numbers."""
        prefix = fold(folder)
        names = self._between(f"{prefix}/", f"{prefix}0") if folder else self._files  # "0" is the character behind "/"
        return sorted(names, key=by_number)

    def _between(self, first: str, end: str) -> list[str]:
        """The names whose folded forms are in [first, end)."""
        start, stop = bisect.bisect_left(self._folded, (first,)), bisect.bisect_left(self._folded, (end,))
        return [name for _, name in self._folded[start:stop]]

    def is_image(self, name: str) -> bool:
        """Whether a file is an image: by its ending, or else by its first bytes."""
        return has_image_ending(name) or kind_of_file(self.read(name, HEAD)).endswith(" image")

    def read(self, name: str, n_bytes: int = -1) -> bytes:
        """The bytes of a file, or the first ones of them."""
        if (found := self.find(name)) is None:
            raise UserError(f"{self.path}: {single_line(name)} is missing. Add it, or give the official folder or zip")
        try:
            return self.read_image(found, n_bytes)
        except ValueError as error:
            raise UserError(f"{self.path}: {single_line(name)} {error}. Check the folder, or fetch the archive again") from None

    def read_image(self, name: str, n_bytes: int = -1) -> bytes:
        """As `read`, by the exact name of a file; a ValueError says why this one cannot be read, where others may be."""
        try:
            return self._read_file(self._files[name], n_bytes)
        except RuntimeError as error:  # the archive is encrypted, or compressed in an unknown way
            raise UserError(f"{self.path}: {single_line(name)} cannot be read ({single_line(str(error))}). {_UNPACK}") from None
        except _READ_ERRORS as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"cannot be read ({single_line(str(reason))})") from None

    def read_text(self, name: str) -> str:
        """A file's text."""
        try:
            return decode_text(self.read(name))
        except UnicodeDecodeError as error:
            reason = f"{error.reason} at byte {error.start}"
            raise UserError(f"{self.path}: {single_line(name)} is not UTF-8 or UTF-16 text ({reason}). Save it as UTF-8") from None


def fold(name: str) -> str:
    """A name without regard to letter case and Unicode normalization form."""
    return unicodedata.normalize("NFD", name.casefold())


def has_image_ending(name: str) -> bool:
    """Whether a file's name ends as those of images do."""
    return _IMAGE_ENDING.fullmatch(posixpath.splitext(name)[1]) is not None


def first(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    return single_line(names[0]) + (f" (and {len(names) - 1:,} more)" if len(names) > 1 else "")


def by_number(name: str) -> list[str | int]:
    """Sorting key that puts `test_10.JPEG` behind `test_9.JPEG`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def open_source(path: str | os.PathLike) -> Source:
    """The `Source` of a folder or a zip archive; a `UserError` tells what else it is, or why it cannot be read."""
    path, kind = pathlib.Path(path), ZIP
    try:
        if path.is_dir():
            return Source(path, _folder_files(path), _read_file)
        with path.open("rb") as file:
            kind = kind_of_file(file.read(HEAD))
        archive = zipfile.ZipFile(path)
    except OSError as error:
        why = f"no folder or archive that can be read ({error.strerror or error})"
        raise UserError(
            f"{error.filename or path}: {why}. Give a folder or zip archive, or fetch the official one with --download"
        ) from None
    except _READ_ERRORS as error:
        what = kind if kind != ZIP else f"one that is cut off or damaged ({single_line(str(error))})"
        remedy = _UNPACK if kind.endswith("archive") and kind != ZIP else "Remove it and fetch it again"
        raise UserError(f"{path}: not a readable zip archive, but {what}. {remedy}") from None
    return Source(path, _archive_files(archive), functools.partial(_read_member, archive, threading.Lock()))


def _read_file(path: pathlib.Path, n_bytes: int = -1) -> bytes:
    with path.open("rb") as file:
        return file.read(n_bytes)


def _read_member(archive: zipfile.ZipFile, lock: threading.Lock, member: zipfile.ZipInfo, n_bytes: int = -1) -> bytes:
    with lock, archive.open(member) as file:
        return file.read(n_bytes)


def _folder_files(folder: str | os.PathLike, prefix: str = "", around: tuple[str, ...] = ()) -> Iterator[tuple[str, pathlib.Path]]:
    """(name, path) of all files below a folder; links to folders are followed until they lead round in a circle."""
    real = os.path.realpath(folder)
    for entry in os.scandir(real) if real not in around else ():
        if _JUNK.search(entry.name):
            continue
        if entry.is_dir():
            yield from _folder_files(entry.path, f"{prefix}{entry.name}/", (*around, real))
        else:
            yield prefix + entry.name, pathlib.Path(entry.path)


def _archive_files(archive: zipfile.ZipFile) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """(name, member) of all files in an archive."""
    for member in archive.infolist():
        name = member.filename
        if not member.flag_bits & _UTF_8:  # macOS writes UTF-8 and does not say so, and zipfile takes it for code page 437
            with contextlib.suppress(UnicodeError):
                name = name.encode("cp437").decode()
        if not name.endswith(("/", "\\")):  # those of folders
            yield name, member


def _root(path: pathlib.Path, files: dict[str, Any]) -> str:
    """The name of the directory of wnids.txt, with a `/` behind it; empty where there is no such file, but for those beside records."""
    lists = [name for name in files if name.rpartition("/")[2].lower() == "wnids.txt" and f"{name[:-9]}train.tfrecord" not in files]
    depth = min((name.count("/") for name in lists), default=0)
    roots = {name[: -len("wnids.txt")]: files[name] for name in lists if name.count("/") == depth}
    if len(set(roots.values())) > 1:  # a file may have several names, by links
        raise UserError(f"{path}: wnids.txt is in several folders: {single_line(', '.join(sorted(roots)))}. Give one of them, as a folder")
    return min(roots, default="")
