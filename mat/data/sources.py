"""Folders and zip archives of images: the names in them, without what systems leave there, and the bytes of their files."""

import bisect
import contextlib
import io
import os
import pathlib
import re
import stat
import struct
import unicodedata
import zipfile
import zlib

from mat.cli.errors import UserError
from mat.cli.file_kinds import HEAD, ZIP, kind_of_file
from mat.cli.text import decode_text, single_line

MAX_FILE = 1 << 25  # bytes of an image, or of an archive's directory
MAX_TEXT = 1 << 23  # bytes of a list of classes, words or boxes
MAX_UNPACKED = 1 << 30  # bytes that any archive may unpack to
MAX_RATIO = 100  # of unpacked bytes to the archive's, above that
MAX_ENTRIES = 2_000_000  # of a folder with all below it; links to folders can make a few of them look like any number

ARCHIVE_ERRORS = (OSError, EOFError, ValueError, RuntimeError, OverflowError, struct.error, zipfile.BadZipFile, zlib.error)

JUNK = ("__macosx", "@eadir", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")  # in lower case
PASSED_OVER = "Hidden files and what systems leave in folders are passed over: remove its line from the list"
STREAM_SUFFIX = ":zone.identifier"  # Windows' note on where a file came from, as WSL copies it

METHODS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "XZ", 98: "PPMd"}  # of compression in zip archives
ENCRYPTED, UTF_8 = 0x1, 0x800  # flags of a member of a zip archive
UNPACK = "Unpack it and give the folder"


class Names:
    """Names that are found as they are, or else whatever their letter case and their Unicode normalization form."""

    def __init__(self, names):
        self._exact, self._folded = set(names), {}
        for name in self._exact:
            self._folded.setdefault(_folded(name), []).append(name)

    def __iter__(self):
        return iter(self._exact)

    def find(self, name):
        """The name among these that is meant by `name`; None if there is none, or more than one but for letter case."""
        if name in self._exact:
            return name
        same = self._folded.get(_folded(name), ())
        return same[0] if len(same) == 1 else None

    def near(self, name):
        """The first name that differs from `name` in its folder or extension only, or in letter case; None if there is none."""
        stem = pathlib.PurePosixPath(_folded(name)).stem
        return min(
            (other for folded, names in self._folded.items() if pathlib.PurePosixPath(folded).stem == stem for other in names), default=None
        )


def _folded(name):
    """A name without regard to letter case and Unicode normalization form."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFD", name.casefold())


def plain_name(name):
    """A file's name with `/` between its parts; None for hidden files and what systems leave beside others, such as `Thumbs.db`."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    for part in parts:
        if (part[0] == "." and part != "..") or part.lower() in JUNK or part.lower().endswith(STREAM_SUFFIX):
            return None
    return "/".join(parts)


class Source:
    """The files below the directory of wnids.txt, in a folder or an archive, by their relative names.

    Args:
        path: the folder or archive, for messages.
        files: dict from the names of all files in it, see `plain_name`, to what `open_file` takes; no other file is read.
        open_file: opens one of them, a binary file.

    Raises:
        UserError: wnids.txt is not among them, or in several places.
    """

    def __init__(self, path, files, open_file):
        self.path = path
        self._open_file = open_file
        root = self._root(files)
        self._files = {name.removeprefix(root): file for name, file in files.items() if name.startswith(root)}
        self._names, self._sorted = Names(self._files), sorted(self._files)
        parts = [name.split("/", 3) for name in self._sorted]  # no deeper folder is asked for
        self._folders = Names("/".join(part[:depth]) for part in parts for depth in range(1, len(part)))

    def _root(self, files):
        """The name of the directory of wnids.txt, with a `/` behind it."""
        lists = [name for name in files if name.rpartition("/")[2].lower() == "wnids.txt"]
        depth = min((name.count("/") for name in lists), default=0)
        roots = {name[: -len("wnids.txt")]: files[name] for name in lists if name.count("/") == depth}
        if len(set(roots.values())) > 1:  # a file may have several names, by links
            shown = single_line(", ".join(sorted(roots)))
            raise UserError(f"{self.path}: wnids.txt is in several folders: {shown}. Give one of them, as a folder")
        if roots:
            return min(roots)
        zips = sorted(name for name in files if name.lower().endswith(".zip"))
        named = [name for name in zips if "tiny-imagenet" in name.lower()]
        remedy = "Give the official folder or zip"
        if named or len(zips) == 1:
            inner = single_line((named or zips)[0])
            remedy = f"Give the zip in it: {self.path / inner}" if self.path.is_dir() else f"Unpack it and give {inner}"
        elif (self.path.absolute().parent / "wnids.txt").is_file():
            remedy = f"Give the folder around it: {self.path.absolute().parent}"
        raise UserError(f"{self.path}: no wnids.txt in it, so not Tiny ImageNet in its official layout. {remedy}")

    def folder(self, name):
        """The name of a folder as it is written here, where it may differ in letter case."""
        return self._folders.find(name) or name

    def subfolders(self, folder):
        """The names of the folders in a folder, relative to it."""
        return [name.removeprefix(f"{folder}/") for name in self._folders if name.rpartition("/")[0] == folder]

    def names(self, folder):
        """The names of all files below a folder, in the order of their numbers."""
        first, end = (bisect.bisect_left(self._sorted, folder + mark) for mark in "/0")  # the character behind `/` is `0`
        return sorted(self._sorted[first:end], key=by_number)

    def read(self, name, max_bytes):
        """The bytes of a file."""
        found = self._names.find(name)
        if found is None:
            remedy = PASSED_OVER if plain_name(name) is None else "Add it, or give the official folder or zip"
            raise UserError(f"{self.path}: {single_line(name)} is missing. {remedy}")
        try:
            with self._open_file(self._files[found]) as file:
                content = file.read(max_bytes + 1)
        except ARCHIVE_ERRORS as error:
            remedy = "Check the folder" if self.path.is_dir() else "Fetch the archive again"
            raise UserError(f"{self.path}: {single_line(name)} cannot be read ({single_line(str(error))}). {remedy}") from None
        if len(content) > max_bytes:
            raise UserError(f"{self.path}: {single_line(name)} has more than {max_bytes:,} bytes. Replace it or remove it")
        return content

    def read_text(self, name):
        """A file's text."""
        try:
            return decode_text(self.read(name, MAX_TEXT))
        except UnicodeDecodeError as error:
            reason = f"{error.reason} at byte {error.start}"
            raise UserError(f"{self.path}: {single_line(name)} is not UTF-8 or UTF-16 text ({reason}). Save it as UTF-8") from None


def by_number(name):
    """Sorts `test_10.JPEG` behind `test_9.JPEG`."""
    parts = re.split(r"(\d+)", name)
    parts[1::2] = [(len(digits.lstrip("0")), digits.lstrip("0")) for digits in parts[1::2]]
    return parts


@contextlib.contextmanager
def open_source(path):
    """The `Source` of a folder or a zip archive, open within the block.

    Raises:
        UserError: it is neither, or has what cannot be read: links that lead outside, encrypted files and the like.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        yield Source(path, _folder_files(path), lambda file: open(file, "rb"))  # noqa: SIM115 -- `Source` closes it
        return
    if not path.is_file():
        raise UserError(f"{path}: no such folder or archive. Give the official folder or zip of Tiny ImageNet, or fetch it with --download")
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(_ArchiveFile(path))
            if not zipfile.is_zipfile(file):
                raise UserError(f"{path}: not a readable zip archive, but {_no_archive(file)}")
            archive = stack.enter_context(zipfile.ZipFile(file))
        except ARCHIVE_ERRORS as error:
            raise UserError(f"{path}: not a readable zip archive ({single_line(str(error))}). Remove it and fetch it again") from None
        yield Source(path, _archive_files(path, archive.infolist()), archive.open)


def _no_archive(file):
    """What a file is instead of a zip archive, and what to do."""
    file.seek(0)
    kind = kind_of_file(file.read(HEAD))
    if kind == ZIP:
        return "one that is cut off: its end is missing. Remove it and fetch it again"
    return f"{kind}. {UNPACK if kind.endswith('archive') else 'Remove it and fetch it again'}"


def _folder_files(folder):
    """The paths of all files below a folder by their names.

    Links to folders are followed, wherever they lead, until they lead round in a circle. Links to files that lead out of the folder, and
    out of all folders that were reached by links, are refused.
    """
    files, n_entries = {}, 0
    pending = [("", (os.path.realpath(folder),))]  # name and, from `folder` down to it, the real paths
    while pending:
        prefix, chain = pending.pop()
        try:
            entries = list(os.scandir(chain[-1]))
        except OSError as error:
            raise UserError(f"{folder}: {single_line(prefix)} cannot be read ({error.strerror}). Change its permissions") from None
        n_entries += len(entries)
        if n_entries > MAX_ENTRIES:
            raise UserError(f"{folder}: more than {MAX_ENTRIES:,} files in it and where its links lead. Give the official folder")
        for entry in entries:
            name = plain_name(prefix + entry.name)
            kind = name and _kind_of_entry(entry)
            real = os.path.realpath(entry.path) if kind and entry.is_symlink() else entry.path
            if kind == "folder" and real not in chain:
                pending.append((f"{name}/", (*chain, real)))
            elif kind == "file":
                if not any(pathlib.PurePath(real).is_relative_to(home) for home in chain):
                    raise UserError(f"{folder}: {single_line(name)} is a link to a file outside. Put the file in its place")
                files[name] = entry.path
    return files


def _kind_of_entry(entry):
    """Whether an `os.DirEntry` is or leads to a "file" or a "folder"; None for all else, such as links that lead nowhere."""
    with contextlib.suppress(OSError):  # links that lead round in a circle
        return "folder" if entry.is_dir() else "file" if entry.is_file() else None


class _ArchiveFile(io.FileIO):
    """A zip file whose directory, which `zipfile` reads and unfolds as a whole, is not too large for the memory."""

    def read(self, size=-1):
        """At most `size` bytes; no read of an archive's files asks for more than `MAX_FILE + 1`."""
        if size > MAX_FILE + 1:
            raise zipfile.BadZipFile(f"its directory takes more than {MAX_FILE:,} bytes")
        return super().read(size)


def _archive_files(path, members):
    """The members of an archive by their names; links, what cannot be read, names given twice and far more than its size are refused."""
    files = {}
    for member in members:
        name = plain_name(_member_name(member))
        if not name or member.filename.replace("\\", "/").endswith("/"):
            continue
        problem = None
        if stat.S_ISLNK(member.external_attr >> 16):
            problem = "is a link"
        elif name in files:
            problem = "is in it twice"
        elif member.flag_bits & ENCRYPTED:
            problem = "is encrypted"
        elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            problem = f"is compressed with {METHODS.get(member.compress_type, f'method {member.compress_type}')}, not Deflate"
        if problem:
            raise UserError(f"{path}: {single_line(name)} {problem}, unlike in the official archive. {UNPACK}")
        files[name] = member
    unpacked, allowed = sum(member.file_size for member in members), max(MAX_UNPACKED, MAX_RATIO * path.stat().st_size)
    if unpacked > allowed:
        raise UserError(f"{path}: unpacks to {unpacked:,} bytes, more than the {allowed:,} of any such archive. Fetch the official one")
    return files


def _member_name(member):
    """The name of a member of an archive: macOS writes UTF-8 and does not say so, and `zipfile` takes it for code page 437."""
    if not member.flag_bits & UTF_8:
        with contextlib.suppress(UnicodeError):
            return member.filename.encode("cp437").decode()
    return member.filename
