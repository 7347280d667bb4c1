"""Atomic file writes, directories to write into, and lock files."""

import contextlib
import fcntl
import io
import os
import pathlib
import shutil
import socket
from collections.abc import Iterator
from typing import Any

from mat.cli.errors import UserError

_FOUND_IN_EMPTY = ("lost+found", "Thumbs.db", "desktop.ini")  # what systems put into directories, beside hidden files
_LOGS = (".log", ".out", ".err", ".txt")

Path = str | os.PathLike[str]


def npz(**arrays: Any) -> bytes:
    """Arrays as the content of an uncompressed `.npz` file."""
    import numpy as np  # not needed for reporting a faulty config

    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def replace_file(path: Path, content: bytes) -> None:
    """Write a whole file, under a temporary name that replaces `path` once it is on the disk; if that fails, what was there stays."""
    temporary = pathlib.Path(f"{path}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # a stop signal may come at any point
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise write_error(path, len(content), str(error.strerror), error.errno) from None
        raise


def sync(path: Path) -> None:
    """Wait until a file is on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_error(path: Path, n_bytes: int, reason: str, number: int | None = None) -> OSError:
    """The error of a file of `n_bytes` that cannot be written, for the system's `reason` and its `number`; it tells the free space."""
    try:
        free = f"{shutil.disk_usage(existing_ancestor(path)).free / 1e6:,.1f} MB are free there"
    except OSError:
        free = "its file system is gone"
    return OSError(number, f"{reason} ({n_bytes / 1e6:,.1f} MB to write, {free})", str(path))


def existing_ancestor(path: Path) -> pathlib.Path:
    """The nearest existing directory or file on the way to `path`, itself included."""
    path = pathlib.Path(path).absolute()
    return next(ancestor for ancestor in (path, *path.parents) if ancestor.exists())


def is_occupied(path: Path) -> bool:
    """Whether a path exists and is more than an empty directory. Logs do not count, which a shell or a scheduler may write there."""
    path = pathlib.Path(path)
    if not path.is_dir():
        return path.exists()
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".") and entry.name not in _FOUND_IN_EMPTY]
    return any(entry.suffix.lower() not in _LOGS or entry.is_dir() for entry in entries)


def check_writable(path: Path, remedy: str) -> None:
    """Refuse a directory that cannot be made, without making it, in a `UserError` that ends with `remedy`."""
    ancestor = existing_ancestor(path)
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK | os.X_OK):
        reason = f"no permission to write in {ancestor}" if ancestor.is_dir() else f"{ancestor} is not a directory"
        raise UserError(f"{path}: the directory cannot be made: {reason}. {remedy}")


@contextlib.contextmanager
def exclusive_lock(path: Path, remedy: str, *, signed: bool = True) -> Iterator[None]:
    """Within the block this process alone holds the lock file `path`, until it dies; where another does, a `UserError` ends in `remedy`.

    If `signed`, the process is named in the file; else a file that is there stays as it is.
    """
    with open(path, "ab", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = pathlib.Path(path).read_text("utf-8", "replace").strip()
            raise UserError(f"{path}: in use by {holder or 'another process'}. {remedy}") from None
        except OSError:
            pass  # this file system knows no locks
        if signed:
            with contextlib.suppress(OSError):  # it only informs, and the disk may be full
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
