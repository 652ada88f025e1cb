"""A stand-in for the Hugging Face Hub on the loopback, for the real client; standard library only.

It is a process of its own, because huggingface_hub reads where the Hub is when it is imported. ``local_hub.py``
starts it and orders it about: it prints its port and the token that it accepts, then takes a JSON object
``{"call": …, **arguments}`` a line on stdin, answers each on stdout, and ends with its stdin.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import select
import socket
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from hub_routes import TOKEN, Answer, Request, answer, plain_file_path
from hub_store import Repository, Store

LONGEST_WAIT = 60.0  # seconds that a slow answer is held for a client that does not hang up


@dataclass
class Fault:
    """A failure of the next requests whose path matches.

    ``status``: this status instead of the answer; ``slow``: no answer until the client hangs up; ``drop``: the
    connection is closed without an answer; ``cut``: closed after half of the body; ``flip``: a bit in the middle of the
    body is another.
    """

    kind: str
    pattern: str
    times: int
    methods: list[str]
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)

    def strikes(self, method: str, path: str) -> bool:
        return self.times > 0 and method in self.methods and re.search(self.pattern, path) is not None


class State:
    """Parts that the handlers of requests and of orders share."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.clear()

    def clear(self) -> None:
        self.store = Store()
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str, int]] = []

    def take_fault(self, method: str, path: str) -> Fault | None:
        """The fault that strikes this request, which is one of its times."""
        for fault in self.faults:
            if fault.strikes(method, path):
                fault.times -= 1
                return fault
        return None


class Handler(BaseHTTPRequestHandler):
    """Puts answers and faults on the wire."""

    server: HubServer
    protocol_version = "HTTP/1.1"
    wbufsize = 2**16  # head and body in one packet: two wait for each other
    disable_nagle_algorithm = True

    def respond(self) -> None:
        """Answer the request, unless a fault strikes it."""
        state, path = self.server.state, urlsplit(self.path).path
        request = self.read_request(path)
        with state.lock:
            fault = state.take_fault(self.command, unquote(path))
            if fault is None or fault.kind in ("cut", "flip"):
                reply = self.in_part(answer(state.store, request))
            elif fault.kind == "status":
                reply = Answer(fault.status, b'{"error": "ordered"}', fault.headers)
            else:
                reply = Answer(0)
            if path != "/api/agent-harnesses":  # asked once a process by some environments' clients, before anything
                state.log.append((self.command, unquote(path), reply.status))
        if fault is not None and fault.kind == "slow":
            select.select([self.connection], [], [], LONGEST_WAIT)
        if reply.status == 0:
            self.close_connection = True
        else:
            self.send(reply, fault.kind if fault else "")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond

    def read_request(self, path: str) -> Request:
        headers = {name.lower(): value for name, value in self.headers.items()}
        if headers.get("transfer-encoding") == "chunked":
            body = b"".join(iter(self.read_chunk, b""))
        else:
            body = self.rfile.read(int(headers.get("content-length", 0)))
        return Request(self.command, path, headers, body, f"http://{headers['host']}")

    def read_chunk(self) -> bytes:
        chunk = self.rfile.read(int(self.rfile.readline().partition(b";")[0], 16))
        self.rfile.readline()
        return chunk

    def in_part(self, reply: Answer) -> Answer:
        """The part of the body that was asked for with a ``Range``, if one was."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None or not reply.seekable or reply.status != 200 or self.command != "GET":
            return reply
        size, start = len(reply.body), int(asked[1])
        stop = min(int(asked[2]) + 1, size) if asked[2] else size
        if start >= stop:
            return Answer(416, b"", {"Content-Range": f"bytes */{size}"})
        headers = {**reply.headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        return Answer(206, reply.body[start:stop], headers)

    def send(self, reply: Answer, fault: str) -> None:
        body, middle = reply.body, len(reply.body) // 2
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value.encode("ascii", "replace").decode())
        if reply.seekable or reply.status == 206:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if fault == "cut":
            body = body[:middle]
            self.close_connection = True
        if fault == "flip" and body:
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client that hung up
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: stdout is for the orders' answers."""


class HubServer(ThreadingHTTPServer):
    """One listening socket, and the connections that it took."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, state: State, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler, bind_and_activate=False)
        self.state = state
        self.connections: set[socket.socket] = set()
        self.server_bind()

    def server_bind(self) -> None:
        """Bind as the base class does, without looking up the host's name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Orders:
    """The orders that a test can give: each public method is a call, its arguments are JSON, bytes are base64."""

    def __init__(self) -> None:
        self.state = State()
        self.server = HubServer(self.state, port=0)
        self.is_up = False
        self.up()

    def up(self) -> None:
        if not self.is_up:
            self.server.server_activate()
            threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
            self.is_up = True

    def down(self) -> None:
        """Refuse connections. The port stays bound, so nobody else gets it."""
        if self.is_up:
            self.server.shutdown()
            self.server.server_close()
            self.server.hang_up()
            self.server = HubServer(self.state, self.server.server_port)
            self.is_up = False

    def reset(self) -> None:
        self.up()
        self.server.hang_up()
        self.state.clear()

    def create(self, name: str, files: Mapping[str, str], private: bool, gated: bool) -> str:
        return self.state.store.create(name, _decoded(files), private=private, gated=gated)

    def commit(self, name: str, files: Mapping[str, str], branch: str) -> str:
        return self._repository(name).commit(branch, _decoded(files))

    def tag(self, name: str, tag: str, revision: str) -> None:
        repository = self._repository(name)
        repository.tags[tag] = self._resolve(repository, revision)

    def files(self, name: str, revision: str) -> dict[str, str]:
        repository = self._repository(name)
        tree = repository.commits[self._resolve(repository, revision)]
        return {path: base64.b64encode(content).decode() for path, content in tree.items()}

    def repositories(self) -> list[dict[str, object]]:
        known = self.state.store.repositories.values()
        return [{"name": one.name, "private": one.private, "tags": one.tags, "branches": one.branches} for one in known]

    def put_file(self, name: str, content: str) -> str:
        self.state.store.files[name] = base64.b64decode(content)
        return plain_file_path(name)

    def fault(self, **described: Any) -> None:
        self.state.faults.append(Fault(**described))

    def log(self) -> list[tuple[str, str, int]]:
        return self.state.log

    def _repository(self, name: str) -> Repository:
        return self.state.store.repositories[name]

    @staticmethod
    def _resolve(repository: Repository, revision: str) -> str:
        commit = repository.resolve(revision)
        if commit is None:
            raise KeyError(revision)
        return commit


def _decoded(files: Mapping[str, str]) -> dict[str, bytes]:
    return {path: base64.b64decode(content) for path, content in files.items()}


def main() -> None:
    orders = Orders()
    print(orders.server.server_port, TOKEN, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        call = order.pop("call")
        try:
            # Stopping the server waits for requests that may wait for the lock.
            with contextlib.nullcontext() if call in ("down", "up", "reset") else orders.state.lock:
                reply = {"result": getattr(orders, call)(**order)}
        except (LookupError, TypeError, AttributeError) as error:
            reply = {"error": repr(error)}
        print(json.dumps(reply), flush=True)
    os._exit(0)  # without waiting for slow answers


if __name__ == "__main__":
    main()
