"""Files that are there as a whole or not at all, directories that can be made, and a directory for one process alone."""

import contextlib
import fcntl
import io
import os
import pathlib
import re
import shutil
import socket

from mat.cli.errors import UserError
from mat.cli.text import single_line

FOUND_IN_EMPTY = ("lost+found", "Thumbs.db", "desktop.ini")  # what systems put into directories, beside hidden files
LOGS = (".log", ".out", ".err", ".txt")
VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([^{}]*)\})")


def expand_path(text):
    """A path with `~` and the environment's variables replaced by what they stand for; what is expanded already stays as it is.

    Args:
        text: the path, as a config or a command line gives it. It serves `argparse` as the `type` of an argument.

    Raises:
        UserError: a variable is not set, a home directory is not known, or nothing is left.
    """
    path = os.path.expanduser(expand_variables(text))
    if path.startswith("~"):
        home = single_line(path.partition(os.sep)[0])
        raise UserError(f"{single_line(text)}: no home directory {home} is known. Write it out, or ./{home} for a name that begins with ~")
    if not path:
        raise UserError(f"the path {text!r} is empty. Write it out")
    return path


def expand_variables(text, change=str):
    """Text with the environment's variables, `$NAME` or `${NAME}`, replaced by their values.

    Args:
        text: the text.
        change: a function from a value to what takes the variable's place.

    Raises:
        UserError: a variable is not set, or its value has a variable in it.
    """

    def value(match):
        name = match[1] or match[2]
        if not name.isascii() or name not in os.environ:
            raise UserError(f"{single_line(text)}: the variable {single_line(name)} is not set. Set it, or write out what is meant")
        return change(os.environ[name])

    expanded = VARIABLE.sub(value, text)
    if left := VARIABLE.search(expanded):
        raise UserError(f"{single_line(text)}: {single_line(left[0])} is left when its variables are replaced. Write out what is meant")
    return expanded


def npz(**arrays):
    """Arrays as an uncompressed `.npz` file, bytes."""
    import numpy as np  # not needed for reporting a faulty config

    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def replace_file(path, content):
    """Write bytes as a whole file, under a temporary name that replaces `path` once they are on the disk.

    Raises:
        OSError: the file cannot be written; what was there stays, and nothing is left beside it.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(path.name + ".part")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise write_error(path, len(content), error.strerror, error.errno) from None


def sync(path):
    """Wait until a file is on the disk.

    Raises:
        OSError: it does not get there.
    """
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_error(path, n_bytes, reason, number=None):
    """The `OSError` of a file that cannot be written, which says how much there was to write and how much space there is.

    Args:
        path: the file.
        n_bytes: its size.
        reason: why, in the system's words.
        number: the system's error number, where known.
    """
    try:
        free = f"{shutil.disk_usage(existing_ancestor(path)).free / 1e6:,.1f} MB are free there"
    except OSError:
        free = "its file system is gone"
    return OSError(number, f"{reason} ({n_bytes / 1e6:,.1f} MB to write, {free})", str(path))


def existing_ancestor(path):
    """The nearest existing directory or file on the way to `path`, itself included."""
    ancestor = pathlib.Path(path).absolute()
    while not ancestor.exists() and ancestor != ancestor.parent:
        ancestor = ancestor.parent
    return ancestor


def is_occupied(path):
    """Whether a path exists and is more than an empty directory. Logs do not count, which a shell or a scheduler may write there."""
    path = pathlib.Path(path)
    if not path.is_dir():
        return path.exists()
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".") and entry.name not in FOUND_IN_EMPTY]
    return any(entry.suffix.lower() not in LOGS or entry.is_dir() for entry in entries)


def check_writable(path, remedy):
    """Refuse a directory that cannot be made, without making it.

    Args:
        path: the directory.
        remedy: what the user is told to change.

    Raises:
        UserError: a part of the path is a file, or may not be written in.
    """
    ancestor = existing_ancestor(path)
    if not ancestor.is_dir():
        raise UserError(f"{path}: the directory cannot be made: {ancestor} is not a directory. {remedy}")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise UserError(f"{path}: the directory cannot be made: no permission to write in {ancestor}. {remedy}")


@contextlib.contextmanager
def exclusive_lock(path, remedy):
    """Within the block this process alone holds the lock file `path`; the system frees it when the process dies.

    On file systems that know no locks nothing is held. The file itself stays.

    Args:
        path: the lock file, in an existing directory.
        remedy: what the user is told to do where another process holds it.

    Raises:
        UserError: another process holds it.
        OSError: the file cannot be made.
    """
    with open(path, "a+", encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"{path}: in use by {file.read().strip() or 'another process'}. {remedy}") from None
        except OSError:  # no locks here
            yield
            return
        with contextlib.suppress(OSError):  # it only informs, and the disk may be full
            file.truncate(0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
