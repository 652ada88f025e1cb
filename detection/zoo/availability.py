"""Ask the sources of weights whether they answer, without downloading them."""

from __future__ import annotations

import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import IO, Any

from vovnet.detection.zoo.listing import megabytes
from vovnet.detection.zoo.sources import Source
from vovnet.errors import InputError, reason
from vovnet.files import WEIGHTS_FILE

TIMEOUT = 10.0
"""Seconds that a source has to answer, with all redirects."""

_AT_ONCE = 8  # sources that are asked at the same time
_HEAD_REFUSED = (403, 405, 501)  # some servers say so to HEAD alone


@dataclass(frozen=True)
class Answer:
    """A source's answer; ``str()`` gives a line for the user."""

    source: Source
    answers: bool
    size: int | None = None
    """Bytes of the download, if the source says so."""
    reason: str = ""
    """Why it does not answer."""

    @property
    def differs(self) -> bool:
        """True if the source offers something of another size than the published file."""
        known = self.source.download
        return self.answers and self.size is not None and known is not None and self.size not in known

    def to_json(self) -> dict[str, Any]:
        """Return the answer for programs."""
        return {
            "name": self.source.name,
            "place": self.source.place,
            "answers": self.answers,
            "size": self.size,
            "differs": self.differs,
            "reason": self.reason,
        }

    def __str__(self) -> str:
        if not self.source.place:
            return f"{self.source.name}: {self.reason}"
        if not self.answers:
            return f"{self.source.name}: does not answer ({self.reason}): {self.source.place}"
        size = "of a size that it does not say" if self.size is None else megabytes(self.size)
        if self.differs and self.source.size is not None:
            size += f", which differs from the published file: {megabytes(self.source.size)}"
        return f"{self.source.name}: answers, {size}"


class NoAnswer(Exception):
    """A source does not answer, or with something else than a file. The message says why."""


def check_sources(sources: Sequence[Source], *, timeout: float = TIMEOUT) -> Iterator[Answer]:
    """Ask sources whether they answer, several at a time, and yield their answers in order.

    Addresses are asked by HEAD, and by GET for one byte where HEAD is refused. Redirects are followed, and no file is
    downloaded. Repositories are asked through huggingface_hub, so that ``HF_ENDPOINT``, ``HF_HUB_OFFLINE`` and
    ``HF_TOKEN`` count. Offline, nothing is asked.

    Args:
        sources: The sources. For those without a file, the answer says so.
        timeout: Seconds that each has to answer.

    Raises:
        InputError: ``timeout`` is not a positive number.
    """
    if not 0 < timeout < float("inf"):
        raise InputError(f"timeout: expected a positive number of seconds, got {timeout}")
    asked = [source for source in sources if source.place]
    waiting: queue.SimpleQueue[tuple[Source, Future[Answer]]] = queue.SimpleQueue()
    answers: list[Future[Answer]] = [Future() for _ in sources]
    for source, answer in zip(sources, answers, strict=True):
        if source.place:
            waiting.put((source, answer))
        else:
            answer.set_result(Answer(source, False, reason="no file is published"))
    # Threads of a pool would keep the process from ending while one waits for a name server, which has no timeout.
    for _ in range(min(_AT_ONCE, len(asked))):
        threading.Thread(target=_work, args=(waiting, timeout), daemon=True).start()
    latest = time.monotonic() + timeout * (1 + -(-len(asked) // _AT_ONCE))
    for source, answer in zip(sources, answers, strict=True):
        try:
            yield answer.result(max(0.0, latest - time.monotonic()))
        except TimeoutError:
            yield Answer(source, False, reason=_too_slow(timeout))


def _work(waiting: queue.SimpleQueue[tuple[Source, Future[Answer]]], timeout: float) -> None:
    while True:
        try:
            source, answer = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            answer.set_result(_ask(source, timeout))
        except BaseException as error:  # else whoever waits for the answer never learns of it
            answer.set_exception(error)


def _ask(source: Source, timeout: float) -> Answer:
    from huggingface_hub import constants

    try:
        if constants.HF_HUB_OFFLINE:
            raise NoAnswer("not asked, because HF_HUB_OFFLINE is set")
        if source.repository is not None:
            return Answer(source, True, _size_on_hub(source.repository, timeout))
        return Answer(source, True, _size_at(str(source.url), timeout))
    except NoAnswer as error:
        return Answer(source, False, reason=str(error))


def _size_on_hub(repository: str, timeout: float) -> int | None:
    """Return the size of the weights in a repository, or None if the Hub does not say it."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    causes: list[tuple[type[BaseException], str]] = [
        (errors.GatedRepoError, "gated: accept its terms, and `hf auth login`"),
        (errors.RepositoryNotFoundError, "no such repository, or a private one"),
        (errors.RemoteEntryNotFoundError, f"the repository has no {WEIGHTS_FILE}"),
        (TimeoutError, _too_slow(timeout)),
    ]
    try:
        return get_hf_file_metadata(hf_hub_url(repository, WEIGHTS_FILE), timeout=timeout).size
    except Exception as error:  # the HTTP client's own errors have no common class in all versions of huggingface_hub
        status = getattr(getattr(error, "response", None), "status_code", None)
        known = [text for kind, text in causes if isinstance(error, kind)]
        raise NoAnswer(known[0] if known else f"HTTP {status}" if status else _cause(error)) from error


def _size_at(url: str, timeout: float) -> int | None:
    """Return the size of the file at an address, or None if the server does not say it."""
    latest = time.monotonic() + timeout
    try:
        with _open(url, "HEAD", latest) as response:
            return _length(response)
    except urllib.error.HTTPError as error:
        if error.code not in _HEAD_REFUSED:
            raise NoAnswer(f"HTTP {error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise NoAnswer(_cause(error, timeout)) from error
    try:
        with _open(url, "GET", latest, {"Range": "bytes=0-0"}) as response:
            return _length(response)
    except urllib.error.HTTPError as error:
        raise NoAnswer(f"HTTP {error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise NoAnswer(_cause(error, timeout)) from error


def _open(url: str, method: str, latest: float, headers: dict[str, str] | None = None) -> HTTPResponse:
    request = urllib.request.Request(url, method=method, headers={"User-Agent": "vovnet", **(headers or {})})
    left = latest - time.monotonic()
    if left <= 0:
        raise TimeoutError
    response: HTTPResponse = urllib.request.build_opener(_SameMethod(latest)).open(request, timeout=left)
    return response


class _SameMethod(urllib.request.HTTPRedirectHandler):
    """Follows redirects with HEAD where HEAD was sent; Python's own handler sends GET, which starts the download."""

    def __init__(self, latest: float) -> None:
        self.latest = latest

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        followed = super().redirect_request(req, fp, code, msg, headers, newurl)
        if followed is not None:
            followed.method = req.get_method()
            left = self.latest - time.monotonic()
            if left <= 0:
                raise TimeoutError
            req.timeout = left  # what is left of it is for the next answer
        return followed


def _length(response: HTTPResponse) -> int | None:
    """Return the size of a whole file from the headers of an answer."""
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise NoAnswer("it sends a web page instead of the file; the link may be dead")
    _, _, whole = response.headers.get("Content-Range", "").partition("/")
    length = whole if response.status == 206 else response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _cause(error: BaseException, timeout: float = TIMEOUT) -> str:
    slow = isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError)
    return _too_slow(timeout) if slow else reason(error)


def _too_slow(timeout: float) -> str:
    return f"no answer within {timeout:g} seconds"
