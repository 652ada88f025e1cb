"""Receive a file over HTTP, going on where a connection broke off."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from vovnet.checkpoints.partial_file import PartialFile
from vovnet.errors import reason
from vovnet.terminal.streams import is_quiet

_CHUNK = 2**20
_TIMEOUT = 30.0  # seconds without a byte
_WINDOW = 60.0  # seconds over which the speed is measured
_SLOWEST = 1024  # bytes a second; a slower server is given up
_ATTEMPTS = 5  # connections that may break off in one call
_clock = time.monotonic

LONGEST_SILENCE = 2 * _ATTEMPTS * _TIMEOUT
"""Seconds for which :func:`receive` may bring nothing and still go on: each connection waits for its answer, then for
its body."""


class TransferError(Exception):
    """A file cannot be received; the message says why."""


class _BrokenOffError(TransferError):
    """The connection broke off; the next one may bring the rest."""


def receive(url: str, partial: PartialFile, *, most: int, progress: bool) -> None:
    """Download a file, from where the partial file ends if the server still has the same version of it.

    Args:
        url: The address, ``http:`` or ``https:``.
        partial: Takes the file.
        most: Largest size of the file, in bytes.
        progress: Show a progress bar on stderr.

    Raises:
        TransferError: The address does not answer, or with something else than the file; or the connection breaks off
            several times, or is too slow. The partial file keeps what has come.
    """
    for attempt in range(_ATTEMPTS):
        response = _ask(url, partial)
        if response is None:
            return
        with response:
            try:
                _read_body(response, _total(response, partial, most), partial, most=most, progress=progress)
            except _BrokenOffError:
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                return


def _ask(url: str, partial: PartialFile) -> HTTPResponse | None:
    """Return the answer with the rest of the file; None if nothing of it is missing.

    Raises:
        TransferError: The address, or one that it redirects to, does not answer, or is no address.
    """
    headers = {"User-Agent": "vovnet"}
    size = partial.size if partial.validator else 0
    if size and partial.validator:
        headers |= {"Range": f"bytes={size}-", "If-Range": partial.validator}
    opener = urllib.request.build_opener(_StaysEncrypted)
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416 or not size:
            raise TransferError(reason(error)) from error
        if error.headers.get("Content-Range") == f"bytes */{size}":
            return None
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a redirect to what is no address
        raise TransferError(reason(error)) from error
    partial.restart(None)
    return _ask(url, partial)


def _total(response: HTTPResponse, partial: PartialFile, most: int) -> int | None:
    """Return the size of the whole file, if the server says it, and prepare the partial file for the body.

    Raises:
        TransferError: The answer is not the file, or another part of it than the missing one, or the file is too large.
    """
    if response.headers.get_content_type() == "text/html":
        raise TransferError("it answers with a web page instead of the file; the link may be dead")
    length = response.headers.get("Content-Length", "")
    total = int(length) if re.fullmatch(r"\d{1,15}", length) else None
    validator = _validator(response.headers)
    if response.status == 206:
        part = re.fullmatch(r"bytes (\d{1,15})-\d+/(\d{1,15})", response.headers.get("Content-Range", ""))
        if part is None or int(part[1]) != partial.size or validator not in (None, partial.validator):
            partial.restart(None)
            raise _BrokenOffError("it answers with another part of the file than the one that is missing")
        total = int(part[2])
    elif response.status == 200:
        partial.restart(validator)
    else:
        raise TransferError(f"it answers with status {response.status} instead of the file")
    if total is not None and total > most:
        raise TransferError(f"it has {total:,} bytes, expected at most {most:,}")
    return total


def _validator(headers: HTTPMessage) -> str | None:
    """Return what names the version of a file for If-Range: a strong ETag, or else the date of its last change."""
    tag = headers.get("ETag", "")
    if re.fullmatch(r'"[\x21\x23-\x7e]+"', tag):
        return tag
    return headers.get("Last-Modified")


def _read_body(response: HTTPResponse, total: int | None, partial: PartialFile, *, most: int, progress: bool) -> None:
    """Append the body of an answer to the partial file.

    Raises:
        TransferError: The body is too large, comes too slowly or ends early.
    """
    from huggingface_hub.utils import tqdm

    size = partial.size
    name = PurePosixPath(urlsplit(partial.url).path).name
    hidden = None if progress and not is_quiet() else True  # None hides it where there is no terminal
    bar: Any = tqdm(total=total, initial=size, unit="B", unit_scale=True, desc=name, disable=hidden)
    begun, come = _clock(), 0
    with bar, partial.path.open("ab") as file:
        while block := _next_block(response):
            size += len(block)
            if size > most:
                raise TransferError(f"more than the expected {most:,} bytes come")
            file.write(block)
            bar.update(len(block))
            come += len(block)
            if (seconds := _clock() - begun) >= _WINDOW:
                if come < seconds * _SLOWEST:
                    raise TransferError(f"only {come:,} bytes came in {seconds:.0f} seconds")
                begun, come = _clock(), 0
    if total is not None and size != total:  # a closed connection looks like the end
        raise _BrokenOffError(f"it broke off after {size} of {total} bytes")


def _next_block(response: HTTPResponse) -> bytes:
    """Return what has come of the body; empty at its end."""
    try:  # apart from the writing, whose errors are the disk's
        return response.read1(_CHUNK)
    except (OSError, HTTPException) as error:
        raise _BrokenOffError(reason(error)) from error


class _StaysEncrypted(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but none from an encrypted address to one that is not."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            raise urllib.error.URLError(f"it redirects to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
