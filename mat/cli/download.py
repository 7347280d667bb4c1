"""Downloads, checked before they take their name."""

import hashlib
import os
import pathlib
import socket
from collections.abc import Callable

from mat.cli.console import console, quiet_stderr
from mat.cli.errors import UserError
from mat.cli.files import check_writable

TIMEOUT = 30.0  # seconds without a byte

Check = Callable[[pathlib.Path], None]


def download(url: str, path: str | os.PathLike[str], *, sha256: str | None = None, check: Check | None = None) -> None:
    """Fetch a file from an http or https address, with a progress bar in a terminal.

    A file that is there already is checked and never changed. The checks are the SHA-256 that it must have, hexadecimal, and `check`,
    which takes its path and raises a `UserError`.

    Raises:
        UserError: the file cannot be fetched or written, or is not the expected one; a new file that is not is removed.
    """
    path = pathlib.Path(path)
    if path.exists():
        _check(path, path, sha256, check, "Remove it or move it away, and run the same command again")
        console.print(f"{path}: is there already; remove it to fetch it again")
        return
    check_writable(path.parent, "Choose another destination")
    path.parent.mkdir(parents=True, exist_ok=True)
    with quiet_stderr():
        import keras
    if not console.is_interactive:
        keras.utils.disable_interactive_logging()  # such as progress bars
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # Keras takes none
    part = path.with_name(path.name + ".part")
    try:
        try:
            keras.utils.get_file(part.name, url, cache_dir=part.parent, cache_subdir="", force_download=True)
        except Exception as error:  # Keras raises nothing narrower, from urllib's own error
            remedy = f"Run the same command again, or fetch the file by hand and save it as {path}"
            raise UserError(f"{url}: cannot be fetched ({error.__context__ or error}). {remedy}") from None
        _check(part, url, sha256, check, "What was fetched is removed. Try again later, or from another address")
        os.replace(part, path)
    finally:
        socket.setdefaulttimeout(timeout)
        part.unlink(missing_ok=True)


def _check(path, name, sha256, check, remedy):
    """Refuse a file of another SHA-256, or that `check` refuses."""
    if sha256 is not None and (found := hashlib.sha256(path.read_bytes()).hexdigest()) != sha256.lower():
        raise UserError(f"{name}: not the expected file: its SHA-256 is {found}, and should be {sha256.lower()}. {remedy}")
    if check is not None:
        check(path)
