"""A small HTTP server in this process that serves files as a test says, also badly."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit


@dataclass
class Served:
    """A file and how it is served."""

    content: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    """Instead of or beside the usual ones; an empty value leaves the header out."""
    ranges: bool = True
    """Answer a ``Range`` with the part that was asked for; without it, with the whole file."""
    cuts: list[int] = field(default_factory=list)
    """How many bytes of the body each of the next answers has before its connection closes."""
    blocks: int = 0
    """Send the body in blocks of so many bytes; 0 sends it at once."""
    hold: threading.Event | None = None
    """Wait for this between the first half of the body and the rest."""
    reached: threading.Event = field(default_factory=threading.Event)
    """Set when the first half of the body has been sent."""


class Seen(NamedTuple):
    """A request; equals a plain tuple."""

    path: str
    range: str | None
    status: int


class FileServer:
    """A running server. ``put`` serves a file and returns its address; ``log`` has the requests."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.log: list[Seen] = []
        owner = self

        class Handler(_Handler):
            files, log = owner.files, owner.log

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def put(self, name: str, served: Served | bytes) -> str:
        """Serve a file under a name and return its address."""
        self.files[f"/{name}"] = Served(served) if isinstance(served, bytes) else served
        return f"{self.address}/{name}"

    def stop(self) -> None:
        """Refuse connections from now on."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serving() -> Iterator[FileServer]:
    """Yield a running server and stop it afterwards."""
    server = FileServer()
    try:
        yield server
    finally:
        server.stop()


class _Handler(BaseHTTPRequestHandler):
    files: dict[str, Served]
    log: list[Seen]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, asked = urlsplit(self.path).path, self.headers.get("Range")
        served = self.files.get(path) or Served(status=404)
        status, body, headers = self._answer(served, asked)
        self.log.append(Seen(path, asked, status))
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body)), **served.headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        if served.cuts:
            body = body[: served.cuts.pop(0)]
        self._send(served, body)

    def _answer(self, served: Served, asked: str | None) -> tuple[int, bytes, dict[str, str]]:
        content, tag = served.content, f'"{hashlib.sha1(served.content).hexdigest()}"'
        headers = {"Content-Type": "application/octet-stream", "ETag": tag}
        start = re.fullmatch(r"bytes=(\d+)-", asked or "")
        same = self.headers.get("If-Range") in (tag, served.headers.get("ETag"), served.headers.get("Last-Modified"))
        if served.status != 200 or start is None or not served.ranges or not same:
            return served.status, content, headers
        first = int(start[1])
        if first >= len(content):
            return 416, b"", {**headers, "Content-Range": f"bytes */{len(content)}"}
        headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        return 206, content[first:], headers

    def _send(self, served: Served, body: bytes) -> None:
        half = len(body) // 2
        step = served.blocks or max(1, len(body))
        try:
            for start in range(0, half, step):
                self.wfile.write(body[start : min(half, start + step)])
            served.reached.set()
            if served.hold is not None:
                served.hold.wait()
            for start in range(half, len(body), step):
                self.wfile.write(body[start : start + step])
        except ConnectionError:
            pass  # the client hung up

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""
