"""Downloads that show their progress, go on where they broke off, and are checked."""

import contextlib
import hashlib
import http.client
import os
import pathlib
import re
import urllib.error
import urllib.request

from mat.cli.console import console
from mat.cli.errors import UserError
from mat.cli.progress import ProgressLine

CHUNK = 1 << 18  # bytes
TIMEOUT = 30.0  # seconds without a byte
MEGABYTE = 1e6

WRONG_FETCHED = "What was fetched is removed. Try again later, or from another address"


def download(url, path, *, size=None, sha256=None, check=None):
    """Fetch `url` to `path`; a broken transfer is kept as `path.part`, from where the next call goes on if the server's file is the same.

    Args:
        url: http or https address of the file.
        path: where the complete file will be; one that is there already is checked and never changed.
        size: bytes that it must have; a transfer of another size is stopped as soon as that is seen.
        sha256: SHA-256 that it must have, hexadecimal.
        check: called with the path of the complete file for any other check; raises `UserError`.

    Raises:
        UserError: the server cannot be reached, refuses, the transfer breaks off, or the file is not the expected one; a new file that is
            not is removed.
    """
    path = pathlib.Path(path)
    if path.exists():
        _check(path, size, sha256, check, f"{path}: not the expected file", "Remove it or move it away, and run the same command again")
        console.print(f"{path}: is there already; remove it to fetch it again")
        return
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: the directory cannot be made: {error.strerror}. Choose another destination") from None
    try:
        _fetch(url, part, size)
    except urllib.error.HTTPError as error:
        raise UserError(f"{url}: the server answered {error.code} {error.reason}. Fetch the file by hand and save it as {path}") from None
    except ValueError as error:
        raise UserError(f"{url}: not an address to fetch ({error}). Give one that begins with http:// or https://") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        again = f"it goes on from {part}" if _left(url, part)[0] else "it begins anew"
        raise UserError(f"{url}: the download broke off ({reason}). Run the same command again: {again}") from None
    try:
        _check(part, size, sha256, check, f"{url}: not the expected file", WRONG_FETCHED)
    except UserError:
        _discard(part)
        raise
    os.replace(part, path)
    _note(part).unlink(missing_ok=True)


def _check(path, size, sha256, check, wrong, remedy):
    """Refuse a file of another size or SHA-256, in a message from `wrong` to `remedy`, or that `check` refuses."""
    found = path.stat().st_size
    if size is not None and found != size:
        raise UserError(f"{wrong}: it has {found:,} bytes, and should have {size:,}. {remedy}")
    if sha256 is not None:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        if digest.hexdigest() != sha256.lower():
            raise UserError(f"{wrong}: its SHA-256 is {digest.hexdigest()}, and should be {sha256.lower()}. {remedy}")
    if check is not None:
        check(path)


def _fetch(url, part, size):
    """Fetch what is missing of the file into `part`."""
    start, validator = _left(url, part)
    headers = {"Range": f"bytes={start}-", "If-Range": validator} if start else {}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if not start or error.code != 416:
            raise
        if error.headers.get("Content-Range") != f"bytes */{start}":  # the partial file is not of this address
            _discard(part)
            _fetch(url, part, size)
        return  # else nothing is missing
    with response:
        place = re.match(r"bytes (\d+)-\d+/(\d*)", response.headers.get("Content-Range") or "")
        if response.status != 206:  # the server sends the whole file again
            start = 0
        elif not start:
            raise OSError("the server sent a part of the file where all of it was asked for")
        elif not place or int(place[1]) != start or _validator(response.headers) not in (None, validator):  # of something else
            _discard(part)
            _fetch(url, part, size)
            return
        length = response.headers.get("Content-Length") or ""
        total = int(place[2]) if start and place[2] else start + int(length) if length.isdecimal() else None
        if None not in (size, total) and total != size:
            _refuse_size(url, part, f"{total:,}", size)
        _copy(response, url, part, start, total, size)


def _copy(response, url, part, start, total, size):
    """Append the response to the first `start` bytes of `part`, and check that it is complete."""
    done = start
    with open(part, "r+b" if start else "wb") as file, ProgressLine(total, part.stem) as progress:
        if not start:
            _note(part).write_text(f"{url}\n{_validator(response.headers) or ''}", "utf-8")
        file.seek(start)
        while chunk := response.read(CHUNK):
            file.write(chunk)
            done += len(chunk)
            if size is not None and done > size:
                _refuse_size(url, part, f"more than {size:,}", size)
            progress.update(done, f"{done / MEGABYTE:.1f} of {total / MEGABYTE:.1f} MB" if total else f"{done / MEGABYTE:.1f} MB")
    if total is not None and done < total:
        raise OSError(f"{done} of {total} bytes came")


def _refuse_size(url, part, found, size):
    _discard(part)
    raise UserError(f"{url}: not the expected file: it has {found} bytes, and should have {size:,}. {WRONG_FETCHED}")


def _validator(headers):
    """What tells a server's file from any other version of it: its strong `ETag`, else its date; None where the server gives neither."""
    etag = headers.get("ETag") or ""
    return etag if etag.startswith('"') else headers.get("Last-Modified")


def _note(part):
    """The file beside a partial one that has its address, and the validator that the server gave."""
    return part.with_name(part.name + ".source")


def _left(url, part):
    """The size and the validator of a partial file that can be gone on with; 0 and none if there is no such file."""
    with contextlib.suppress(OSError, ValueError):
        noted, validator = _note(part).read_text("utf-8").split("\n")
        if noted == url and validator:
            return part.stat().st_size, validator
    return 0, ""


def _discard(part):
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)
