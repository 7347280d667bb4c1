"""Downloads that show their progress and go on where they broke off."""

import http.client
import os
import pathlib
import urllib.error
import urllib.request

from mat.errors import UserError
from mat.terminal import ProgressLine, console

CHUNK = 1 << 18  # bytes
TIMEOUT = 30.0  # seconds without a byte
MEGABYTE = 1e6


def download(url, path, *, check=None):
    """Fetch `url` to `path`; a broken transfer is kept as `path.part`, from where the next call goes on.

    Args:
        url: http or https address of the file.
        path: where the complete file will be; if it exists it is taken as complete.
        check: called with the path of the complete file, also of one that is there already; a download that it refuses by raising
            `UserError` is removed.

    Raises:
        UserError: the server cannot be reached, refuses, the transfer breaks off, or the file is not the expected one.
    """
    path = pathlib.Path(path)
    if path.exists():
        if check is not None:
            check(path)
        console.print(f"{path}: is there already; remove it to fetch it again")
        return
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: the directory cannot be made: {error.strerror}. Choose another destination") from None
    try:
        _fetch(url, part)
    except urllib.error.HTTPError as error:
        raise UserError(f"{url}: the server answered {error.code} {error.reason}. Fetch the file by hand and save it as {path}") from None
    except ValueError as error:
        raise UserError(f"{url}: not an address to fetch ({error}). Give one that begins with http:// or https://") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"{url}: the download broke off ({reason}). Run the same command again: it goes on from {part}") from None
    if check is not None:
        try:
            check(part)
        except UserError:
            part.unlink()
            raise
    os.replace(part, path)


def _fetch(url, part):
    """Fetch what is missing of the file into `part`."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{start}":  # nothing is missing
            return
        if error.code == 416:  # the partial file is not of this address
            part.unlink()
            _fetch(url, part)
            return
        raise
    with response:
        if response.status != 206:  # the server sends the whole file again
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        _copy(response, part, start, total)


def _copy(response, part, start, total):
    """Append the response to the first `start` bytes of `part`, and check that it is complete."""
    done = start
    with open(part, "r+b" if start else "wb") as file, ProgressLine(total, part.stem) as progress:
        file.seek(start)
        while chunk := response.read(CHUNK):
            file.write(chunk)
            done += len(chunk)
            progress.update(done, f"{done / MEGABYTE:.1f} of {total / MEGABYTE:.1f} MB" if total else f"{done / MEGABYTE:.1f} MB")
    if total is not None and done < total:
        raise OSError(f"{done} of {total} bytes came")
