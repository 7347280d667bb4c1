"""Files that are there as a whole or not at all, and directories that can be made."""

import contextlib
import io
import os
import pathlib

import numpy as np

from mat.errors import UserError


def npz(**arrays):
    """Arrays as an uncompressed `.npz` file, bytes."""
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
        raise OSError(error.errno, error.strerror, str(path)) from None


def check_writable(path, remedy):
    """Refuse a directory that cannot be made, without making it.

    Args:
        path: the directory.
        remedy: what the user is told to change.

    Raises:
        UserError: a part of the path is a file, or may not be written in.
    """
    ancestor = pathlib.Path(path).absolute()
    while not ancestor.exists() and ancestor != ancestor.parent:
        ancestor = ancestor.parent
    if not ancestor.is_dir():
        raise UserError(f"{path}: the directory cannot be made: {ancestor} is not a directory. {remedy}")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise UserError(f"{path}: the directory cannot be made: no permission to write in {ancestor}. {remedy}")
