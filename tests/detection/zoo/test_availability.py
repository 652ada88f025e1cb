"""Whether a source answers: every way in which a server can answer, or not, without a download."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hostile import refused
from local_hub import Hub

from vovnet.detection.zoo.availability import Answer, check_sources
from vovnet.detection.zoo.sources import Group, Source

GROUP = Group("Weights", ("load NAME",), "this", "that")
SIZE = 1000
TIMEOUT = 5.0  # of what answers at once
SHORT = 0.2  # of what never answers


class Server:
    """A server on the loopback; ``asked`` has method and path of each request, ``held`` ends the slow answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.held = threading.Event()
        owner = self

        class Handler(_Handler):
            server_state = owner

        class Listener(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64  # else the system lets some of the many wait for a second

        self.http = Listener(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.held.set()
        self.http.shutdown()
        self.http.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_state: Server

    def do_HEAD(self) -> None:
        self.server_state.asked.append((self.command, self.path))
        name = self.path.strip("/").partition(".")[0]
        if name == "slow":
            self.server_state.held.wait()
        status = int(name) if name.isdecimal() else 405 if name.startswith("headless") else 200
        if name in ("moved", "loop"):
            self._say(302, {"Location": "/loop.pth" if name == "loop" else "/ok.pth"})
        elif name == "page":
            self._say(200, {"Content-Type": "text/html; charset=utf-8", "Content-Length": str(SIZE)})
        else:
            length = {"wrong": SIZE - 1}.get(name, SIZE)
            self._say(status, {} if name == "silent" else {"Content-Length": str(length)})

    def do_GET(self) -> None:
        self.server_state.asked.append((self.command, self.path))
        name = self.path.strip("/").partition(".")[0]
        if name == "headless" and self.headers["Range"] == "bytes=0-0":
            self._say(206, {"Content-Range": f"bytes 0-0/{SIZE}", "Content-Length": "1"})
            self.wfile.write(b"\0")
        elif name == "headless-whole":
            self._say(200, {"Content-Length": str(SIZE)})
        else:
            self._say(int(name) if name.isdecimal() else 404, {"Content-Length": "0"})

    def _say(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


def source(url: str | None = None, *, repository: str | None = None, size: int | None = SIZE) -> Source:
    download = None if size is None else range(size, size + 1)
    return Source("it", "net", GROUP, "me", "mit", url=url, repository=repository, size=size, download=download)


Ask = Callable[[str], Answer]


@pytest.fixture
def ask(server: Server) -> Ask:
    def ask(name: str, timeout: float = TIMEOUT) -> Answer:
        (answer,) = check_sources([source(f"{server.address}/{name}")], timeout=timeout)
        return answer

    return ask


def test_a_file_that_is_there(ask: Ask, server: Server) -> None:
    answer = ask("ok.pth")
    assert (answer.answers, answer.size, answer.differs) == (True, SIZE, False)
    assert server.asked == [("HEAD", "/ok.pth")]


def test_redirects_are_followed_without_a_download(ask: Ask, server: Server) -> None:
    answer = ask("moved.pth")
    assert (answer.answers, answer.size) == (True, SIZE)
    assert server.asked == [("HEAD", "/moved.pth"), ("HEAD", "/ok.pth")]
    assert not ask("loop.pth").answers


@pytest.mark.parametrize("status", [403, 404, 410, 429, 500, 503])
def test_a_status_that_is_no_answer(ask: Ask, server: Server, status: int) -> None:
    answer = ask(f"{status}.pth")
    assert not answer.answers
    assert str(status) in answer.reason
    # Some servers forbid HEAD alone.
    assert [method for method, _ in server.asked] == (["HEAD", "GET"] if status == 403 else ["HEAD"])


@pytest.mark.parametrize("name", ["headless.pth", "headless-whole.pth"])
def test_a_server_that_refuses_head_is_asked_for_one_byte(ask: Ask, server: Server, name: str) -> None:
    answer = ask(name)
    assert (answer.answers, answer.size) == (True, SIZE)
    assert server.asked == [("HEAD", f"/{name}"), ("GET", f"/{name}")]


def test_a_server_that_does_not_say_the_size(ask: Ask) -> None:
    answer = ask("silent.pth")
    assert (answer.answers, answer.size, answer.differs) == (True, None, False)


def test_another_size_is_said(ask: Ask) -> None:
    answer = ask("wrong.pth")
    assert answer.answers
    assert answer.differs
    assert "differs" in str(answer)


def test_a_web_page_is_no_file(ask: Ask) -> None:
    answer = ask("page.pth")
    assert not answer.answers
    assert "web page" in answer.reason


def test_a_server_that_is_too_slow(server: Server) -> None:
    (answer,) = check_sources([source(f"{server.address}/slow.pth")], timeout=SHORT)
    assert not answer.answers
    assert f"{SHORT:g} seconds" in answer.reason


def test_nobody_listens_or_the_address_is_none() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}/a.pth", "no address", "http://127.0.0.1:port/a.pth"):
        (answer,) = check_sources([source(url)], timeout=TIMEOUT)
        assert not answer.answers
        assert answer.reason


def test_a_source_that_hangs_in_the_system_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server may take minutes, and that call has no timeout."""
    held = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: held.wait())
    (answer,) = check_sources([source("http://example.invalid/a.pth")], timeout=0.1)
    held.set()
    assert not answer.answers
    assert "0.1 seconds" in answer.reason


def test_many_are_asked_at_once_and_answer_in_order(server: Server) -> None:
    names = ["ok.pth", "404.pth", *["moved.pth"] * 30, "page.pth"]
    answers = list(check_sources([source(f"{server.address}/{name}") for name in names], timeout=TIMEOUT))
    assert [answer.answers for answer in answers] == [True, False, *[True] * 30, False]
    assert [answer.source.url for answer in answers] == [f"{server.address}/{name}" for name in names]


def test_of_what_no_file_is_published_the_answer_says_so(server: Server) -> None:
    answers = list(check_sources([source(), source(f"{server.address}/ok.pth"), source()], timeout=TIMEOUT))
    assert [answer.answers for answer in answers] == [False, True, False]
    assert str(answers[0]) == "it: no file is published"
    assert server.asked == [("HEAD", "/ok.pth")]


def test_a_time_that_is_none_is_refused() -> None:
    for timeout in (0, -1, float("nan"), float("inf")):
        refused(lambda timeout=timeout: list(check_sources([], timeout=timeout)), "timeout")  # type: ignore[misc]


# Repositories.


def asked_hub(name: str) -> Answer:
    (answer,) = check_sources([source(repository=name, size=None)], timeout=TIMEOUT)
    return answer


def test_repositories_are_asked_through_the_client(hub: Hub) -> None:
    hub.create("org/it", {"model.safetensors": b"weights"})
    hub.create("org/empty", {"README.md": b""})
    hub.create("org/gated", {"model.safetensors": b"weights"}, gated=True)
    answer = asked_hub("org/it")
    assert (answer.answers, answer.size) == (True, 7)
    for name, words in (("org/absent", "private"), ("org/empty", "model.safetensors"), ("org/gated", "terms")):
        answer = asked_hub(name)
        assert not answer.answers
        assert words in answer.reason
    assert {request.method for request in hub.log()} == {"HEAD"}
    hub.fail("org/it", status=503)
    assert "503" in asked_hub("org/it").reason


def test_offline_nothing_is_asked(hub: Hub, server: Server, offline: Callable[[], None]) -> None:
    hub.create("org/it", {"model.safetensors": b"weights"})
    offline()
    answers = list(check_sources([source(repository="org/it"), source(f"{server.address}/ok.pth")]))
    assert [answer.answers for answer in answers] == [False, False]
    assert all("HF_HUB_OFFLINE" in answer.reason for answer in answers)
    assert hub.log() == server.asked == []
