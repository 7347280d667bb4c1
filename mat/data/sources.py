"""Data sets as folders and zip archives: the names of their files, without what operating systems leave there, and their bytes."""

import bisect
import contextlib
import os
import pathlib
import posixpath
import re
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mat.cli.errors import UserError
from mat.cli.file_kinds import HEAD, ZIP, kind_of_file
from mat.cli.text import decode_text, single_line

# What zipfile raises for damaged archives; RuntimeError for encrypted ones and unknown compression.
_READ_ERRORS = (OSError, EOFError, ValueError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile)
_JUNK = re.compile(r"(^|/)(\.[^/]*|__macosx|@eadir|(eh)?thumbs\.db|desktop\.ini|icon\r)(/|$)|:zone\.identifier$", re.IGNORECASE)
_UTF_8 = 0x800  # flag of a member of a zip archive
_UNPACK = "Unpack it and give the folder"


class Source:
    """The files below the directory of wnids.txt, by their names relative to it; hidden files and such as `Thumbs.db` are passed over.

    `files` has a name and a handle of each file of the folder or archive `path`, and `read_file` the bytes for a handle.
    """

    def __init__(self, path: pathlib.Path, files: Iterable[tuple[str, Any]], read_file: Callable[[Any], bytes]) -> None:
        self.path, self._read_file = path, read_file
        named = ((posixpath.normpath(name.replace("\\", "/")), file) for name, file in files)
        plain = {name: file for name, file in named if not _JUNK.search(name)}
        root = _root(path, plain)
        self._files = {name.removeprefix(root): file for name, file in plain.items() if name.startswith(root)}
        self._folded = sorted((fold(name), name) for name in self._files)

    def find(self, name: str) -> str | None:
        """The file that is meant by `name`: the one of that name, or the only one that differs in letter case or normalization form."""
        same = [name] if name in self._files else self._between(fold(name), fold(name) + "\0")
        return same[0] if len(same) == 1 else None

    def names(self, folder: str) -> list[str]:
        """The names of all files below a folder, in the order of their numbers."""
        return sorted(self._between(fold(folder) + "/", fold(folder) + "0"), key=by_number)  # "0" is the character behind "/"

    def _between(self, first: str, end: str) -> list[str]:
        """The names whose folded forms are in [first, end)."""
        start, stop = bisect.bisect_left(self._folded, (first,)), bisect.bisect_left(self._folded, (end,))
        return [name for _, name in self._folded[start:stop]]

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        if (found := self.find(name)) is None:
            raise UserError(f"{self.path}: {single_line(name)} is missing. Add it, or give the official folder or zip")
        try:
            return self._read_file(self._files[found])
        except _READ_ERRORS as error:
            remedy = _UNPACK if isinstance(error, RuntimeError) else "Check the folder, or fetch the archive again"
            raise UserError(f"{self.path}: {single_line(name)} cannot be read ({single_line(str(error))}). {remedy}") from None

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


def by_number(name: str) -> list[str | int]:
    """Sorting key that puts `test_10.JPEG` behind `test_9.JPEG`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def open_source(path: str | os.PathLike) -> Source:
    """The `Source` of a folder or a zip archive; a `UserError` tells what else it is, or why it cannot be read."""
    path, kind = pathlib.Path(path), ZIP
    try:
        if path.is_dir():
            return Source(path, _folder_files(path), pathlib.Path.read_bytes)
        with path.open("rb") as file:
            kind = kind_of_file(file.read(HEAD))
        archive = zipfile.ZipFile(path)
    except OSError as error:
        why = f"no folder or archive that can be read ({error.strerror or error})"
        raise UserError(f"{error.filename or path}: {why}. Give the official folder or zip, or fetch it with --download") from None
    except _READ_ERRORS as error:
        what = kind if kind != ZIP else f"one that is cut off or damaged ({single_line(str(error))})"
        remedy = _UNPACK if kind.endswith("archive") and kind != ZIP else "Remove it and fetch it again"
        raise UserError(f"{path}: not a readable zip archive, but {what}. {remedy}") from None
    return Source(path, _archive_files(archive), archive.read)


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
    """The name of the directory of wnids.txt, with a `/` behind it."""
    lists = [name for name in files if name.rpartition("/")[2].lower() == "wnids.txt"]
    depth = min((name.count("/") for name in lists), default=0)
    roots = {name[: -len("wnids.txt")]: files[name] for name in lists if name.count("/") == depth}
    if len(set(roots.values())) > 1:  # a file may have several names, by links
        raise UserError(f"{path}: wnids.txt is in several folders: {single_line(', '.join(sorted(roots)))}. Give one of them, as a folder")
    if roots:
        return min(roots)
    zips = sorted((name for name in files if name.lower().endswith(".zip")), key=lambda name: ("tiny-imagenet" not in name.lower(), name))
    remedy = "Give the official folder or zip"
    if zips:
        remedy = f"Give the zip in it: {path / zips[0]}" if path.is_dir() else f"Unpack it and give {single_line(zips[0])}"
    elif (path.absolute().parent / "wnids.txt").is_file():
        remedy = f"Give the folder around it: {path.absolute().parent}"
    raise UserError(f"{path}: no wnids.txt in it, so not Tiny ImageNet in its official layout. {remedy}")
