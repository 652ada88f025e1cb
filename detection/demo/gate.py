"""What of Gradio's server visitors reach: the page, uploads of bounded size, and the queue. Nothing else answers.

Gradio tells visitors the path of each file that they upload, and they send it back with their question. Here it begins
with :data:`SHOWN_FOLDER` in place of the folder of the server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from vovnet.detection.demo.bounds import MEGABYTE, Bounds, RateLimit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Among what is left out: files by their path, other addresses by proxy, stored pages, and editing the program.
_PAGE = re.compile(
    r"/(config/?|theme\.css|favicon\.ico|manifest\.json|robots\.txt|pwa_icon(/\d+)?|(assets|static|svelte)/.+)?"
    r"|/gradio_api/(info/?|app_id/?|theme\.css|startup-events|login_check/?|heartbeat/\w+|queue/data|upload_progress)"
)
_POSTS = re.compile(r"/gradio_api/(queue/join|upload|cancel|reset/?)")
_UPLOAD, _QUESTION = "/gradio_api/upload", "/gradio_api/queue/join"
SHOWN_FOLDER = "/uploads"
_LARGEST_QUESTION = MEGABYTE
_UPLOADS_PER_IMAGE = 4
"""Files may be dropped that are then refused."""

# The page may reach nothing but its own server. Svelte compiles expressions; styles are inline.
_HEADERS = {
    b"content-security-policy": (
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
        b"worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'"
    ),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
}


class Gate:
    """ASGI middleware before Gradio's application.

    Args:
        app: Gradio's.
        bounds: of uploads.
        folder: where Gradio puts uploads.
    """

    def __init__(self, app: App, bounds: Bounds, folder: str) -> None:
        self._app, self._bounds = app, bounds
        self._real, self._shown = (_in_json(one) for one in (folder, SHOWN_FOLDER))
        self._rate = RateLimit(_UPLOADS_PER_IMAGE * bounds.rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await _answer(send, *refusal)
            return

        if scope["path"] == _QUESTION:
            scope, receive = await self._real_question(scope, receive)
        await self._app(scope, receive, self._shown_answer(send) if scope["path"] == _UPLOAD else _with_headers(send))

    async def _real_question(self, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
        """Return a question with the folder of the server, and what receives it."""
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        body = body.replace(self._shown, self._real)
        questions = [{"type": "http.request", "body": body, "more_body": False}]

        async def real() -> Message:
            return questions.pop() if questions else await receive()

        return {**scope, "headers": _with_length(scope["headers"], body)}, real

    def _shown_answer(self, send: Send) -> Send:
        """Return what sends the answer to an upload, once it is whole, without the folder of the server."""
        start: Message = {}
        body = b""

        async def shown(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                return
            body += message.get("body", b"")
            if not message.get("more_body", False):
                body = body.replace(self._real, self._shown)
                await send({**start, "headers": _safe(_with_length(start.get("headers", ()), body))})
                await send({"type": "http.response.body", "body": body})

        return shown

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return status and text of the answer to a request that is refused, or None."""
        method, path = scope["method"], scope["path"]
        if method in ("GET", "HEAD") and _PAGE.fullmatch(path):
            return None
        if method != "POST" or not _POSTS.fullmatch(path):
            return 404, "Not found"
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            return 411, "Content-Length is missing"
        bounds = self._bounds
        most = bounds.max_images * bounds.max_bytes + MEGABYTE if path == _UPLOAD else _LARGEST_QUESTION
        if int(length) > most:
            return 413, f"At most {bounds.max_images} images of {bounds.max_size_mb:g} MB at a time"
        client = (scope.get("client") or ("",))[0]
        if path == _UPLOAD and self._rate.wait_for(client):
            return 429, "Too many uploads; try again in a minute"
        return None


def _in_json(folder: str) -> bytes:
    """Return the beginning of a path in a folder, as JSON has it."""
    return json.dumps(folder)[:-1].encode() + b"/"


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": _safe(message.get("headers", ()))}
        await send(message)

    return sent


def _safe(headers: Iterable[Header]) -> list[Header]:
    return [*(one for one in headers if one[0].lower() not in _HEADERS), *_HEADERS.items()]


def _with_length(headers: Iterable[Header], body: bytes) -> list[Header]:
    others = [one for one in headers if one[0].lower() != b"content-length"]
    return [*others, (b"content-length", str(len(body)).encode())]


async def _answer(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *_HEADERS.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
