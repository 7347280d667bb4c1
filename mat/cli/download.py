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


def download(
    url: str, path: str | os.PathLike[str], *, sha256: str | None = None, size: int | None = None, check: Check | None = None
) -> None:
    """Fetch a file, with a progress bar in a terminal.

    Args:
        url: http or https address of the file.
        path: where it goes; a file that is there already is checked and never changed.
        sha256, size: the SHA-256, hexadecimal, and the bytes that it must have.
        check: any other check of the file, called with its path; raises `UserError`.

    Raises:
        UserError: the file cannot be fetched or written, or is not the expected one; a new file that is not is removed.
    """
    path = pathlib.Path(path)
    if path.exists():
        _check(path, path, sha256, size, check, "Remove it or move it away, and run the same command again")
        console.print(f"{path}: is there already; remove it to fetch it again")
        return
    check_writable(path.parent, "Choose another destination")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        _fetch(url, part, f"Run the same command again, or fetch the file by hand and save it as {path}")
        _check(part, url, sha256, size, check, "What was fetched is removed. Try again later, or from another address")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _fetch(url, path, remedy):
    """Fetch `url` to `path`, in an existing directory."""
    with quiet_stderr():
        import keras
    if not console.is_interactive:
        keras.utils.disable_interactive_logging()  # such as progress bars
    socket.setdefaulttimeout(TIMEOUT)
    try:
        keras.utils.get_file(path.name, url, cache_dir=path.parent, cache_subdir="", force_download=True)
    except Exception as error:  # Keras raises nothing narrower, from urllib's own error
        raise UserError(f"{url}: cannot be fetched ({error.__context__ or error}). {remedy}") from None


def _check(path, name, sha256, size, check, remedy):
    """Refuse a file of another size or SHA-256, or that `check` refuses."""
    content = path.read_bytes()
    if size is not None and len(content) != size:
        raise UserError(f"{name}: not the expected file: it has {len(content):,} bytes, and should have {size:,}. {remedy}")
    if sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != sha256.lower():
        raise UserError(f"{name}: not the expected file: its SHA-256 is {found}, and should be {sha256.lower()}. {remedy}")
    if check is not None:
        check(path)
