"""Files that are downloaded by URL: whole and checked or absent, once, and errors that show the ways out."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import itertools
import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPMessage, HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from file_server import FileServer, Served, serving
from hostile import refused
from support import contents
from zips import HOSTILE, hostile_archives, zipped

from vovnet.checkpoints import download, partial_file, transfer
from vovnet.checkpoints.download import Checksum, fetch, fetch_source, unpack_source
from vovnet.checkpoints.sources import IMAGENET_SOURCES, Source
from vovnet.folders.locks import held_lock
from vovnet.terminal import streams

BODY = hashlib.shake_128(b"a file").digest(200_000)
SHA1, SHA256 = hashlib.sha1(BODY).hexdigest(), hashlib.sha256(BODY).hexdigest()
NAME = "weights.pth"
OTHERWISE = "or take vovnet39.other"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as one:
        yield one


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a process that has said nothing yet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    streams.said.clear()
    return tmp_path / "torch" / "hub" / "checkpoints"


def get(url: str, *, sha1: str | None = None, **options: Any) -> Path:
    checksum = None if sha1 is None else Checksum("sha1", sha1)
    return fetch(url, progress=False, otherwise=OTHERWISE, checksum=checksum, **options)


def failed(call: Callable[[], object], url: str, *words: str) -> str:
    """The error of a call: it names the address and the other sources."""
    return refused(call, url, OTHERWISE, *words)


def statuses(server: FileServer) -> list[int]:
    return [seen.status for seen in server.log]


# A file as it is, and in an archive.


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("checksum", [None, Checksum("sha1", SHA1), Checksum("sha256", SHA256[:8])], ids=str)
def test_a_file_is_fetched_once_and_told_of_once(
    server: FileServer, cache: Path, capsys: pytest.CaptureFixture[str], packed: bool, checksum: Checksum | None
) -> None:
    url = server.put(f"{NAME}.zip", zipped([(NAME, BODY)])) if packed else server.put(NAME, BODY) + "?dl=1"
    path = fetch(url, "mind its licence", name="net.tag", checksum=checksum, progress=False)
    assert path == cache / NAME
    assert path.read_bytes() == BODY
    told = capsys.readouterr()
    assert told.out == ""
    digits = SHA1 if checksum and checksum.algorithm == "sha1" else SHA256
    (line,) = told.err.splitlines()
    assert all(part in line for part in ("net.tag", str(path), url, digits, "mind its licence"))
    server.stop()
    assert fetch(url, checksum=checksum, progress=False) == path
    assert capsys.readouterr().err == ""
    streams.said.clear()  # as in another process
    for expected in (1, 0):
        assert fetch(url, checksum=checksum, progress=False) == path
        told_again = capsys.readouterr().err
        assert told_again.count(url) == told_again.count(str(path)) == expected
    assert statuses(server) == [200]
    assert list(contents(cache)) == [NAME]


@pytest.mark.parametrize("watched", [True, False])
def test_a_bar_where_somebody_watches(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], watched: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: watched)
    fetch(server.put(NAME, BODY))
    told = capsys.readouterr().err
    assert ("100%" in told) == watched
    assert SHA256 in told.splitlines()[-1]


def test_one_process_of_a_machine_tells(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    get(server.put(NAME, BODY))
    assert capsys.readouterr().err == ""


def test_a_redirect_is_followed(server: FileServer) -> None:
    server.put("elsewhere", BODY)
    url = server.put(NAME, Served(status=302, headers={"Location": "/elsewhere"}))
    assert get(url, sha1=SHA1).read_bytes() == BODY


def test_a_redirect_is_followed_by_the_next_connection_too(server: FileServer, cache: Path) -> None:
    server.put("elsewhere", Served(BODY, cuts=[1000] * 6))
    url = server.put(NAME, Served(status=302, headers={"Location": "/elsewhere"}))
    failed(lambda: get(url), url, "5,000 bytes are kept")
    assert get(url, sha1=SHA1).read_bytes() == BODY
    assert server.log[-1] == ("/elsewhere", "bytes=6000-", 206)


def test_a_redirect_stays_encrypted() -> None:
    follow = transfer._StaysEncrypted().redirect_request
    request = urllib.request.Request("https://host.invalid/a")
    nothing: Any = None
    assert follow(request, nothing, 302, "", HTTPMessage(), "https://other.invalid/b") is not None
    with pytest.raises(urllib.error.URLError):
        follow(request, nothing, 302, "", HTTPMessage(), "http://other.invalid/b")


# What is not the file.


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 429, 500, 503])
def test_an_answer_without_the_file(server: FileServer, cache: Path, status: int) -> None:
    url = server.put(NAME, Served(b"no", status=status))
    failed(lambda: get(url), url, str(status), f"'{cache / NAME}'")
    assert contents(cache) == {}
    (cache / NAME).write_bytes(BODY)  # what the message says helps
    assert get(url, sha1=SHA1) == cache / NAME


def test_a_status_that_has_no_file(server: FileServer, cache: Path) -> None:
    url = server.put(NAME, Served(BODY, status=203))
    failed(lambda: get(url), url, "203")
    assert contents(cache) == {}


@pytest.mark.parametrize(
    "to", ["https://[gone/x.pth", "http://host:port/x.pth", f"http://{'a' * 64}.invalid/x.pth", "gone://host/x.pth"]
)
def test_a_redirect_to_what_is_no_address(server: FileServer, cache: Path, to: str) -> None:
    url = server.put(NAME, Served(status=302, headers={"Location": to}))
    failed(lambda: get(url), url)
    assert contents(cache) == {}


def test_redirects_without_an_end(server: FileServer) -> None:
    url = server.put(NAME, Served(status=302, headers={"Location": f"/{NAME}"}))
    failed(lambda: get(url), url)


def test_a_web_page_is_not_the_file(server: FileServer, cache: Path) -> None:
    """A dead link of Dropbox may answer with a page and status 200."""
    page = Served(b"<!DOCTYPE html><html>gone</html>", headers={"Content-Type": "text/html; charset=utf-8"})
    url = server.put(NAME, page)
    failed(lambda: get(url), url, "web page")
    assert contents(cache) == {}


def test_a_page_in_between_does_not_harm_what_is_kept(server: FileServer, cache: Path) -> None:
    url = server.put(NAME, Served(BODY, cuts=[1000] * 9))
    failed(lambda: get(url), url)
    file = server.files[f"/{NAME}"]
    server.put(NAME, Served(b"log in", headers={"Content-Type": "text/html"}))
    failed(lambda: get(url), url, "web page", "5,000 bytes")
    file.cuts.clear()
    server.files[f"/{NAME}"] = file
    assert get(url, sha1=SHA1).read_bytes() == BODY
    assert server.log[-1] == (f"/{NAME}", "bytes=5000-", 206)


def test_nobody_answers(server: FileServer, cache: Path) -> None:
    url = server.put(NAME, BODY)
    server.stop()
    for address in (url, f"http://host.invalid/{NAME}"):
        failed(lambda address=address: get(address), address)  # type: ignore[misc]
    assert contents(cache) == {}


def test_offline_nobody_is_asked(server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    url = server.put(NAME, BODY)
    failed(lambda: get(url), url, "HF_HUB_OFFLINE", str(cache / NAME))
    assert server.log == []
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(BODY)
    assert get(url, sha1=SHA1) == cache / NAME


@pytest.mark.parametrize("announced", [True, False])
def test_a_file_that_is_too_large(
    server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch, announced: bool
) -> None:
    monkeypatch.setattr(download, "_MARGIN", 0)
    headers = {} if announced else {"Content-Length": "", "ETag": ""}
    url = server.put(NAME, Served(BODY, headers=headers))
    failed(lambda: get(url, most=len(BODY) - 1), url, f"{len(BODY) - 1:,}")
    assert contents(cache) == {}
    assert get(url, most=len(BODY)).read_bytes() == BODY


@pytest.mark.parametrize("packed", [False, True])
def test_another_checksum_is_refused_and_nothing_is_kept(server: FileServer, cache: Path, packed: bool) -> None:
    other = BODY[:-1] + b"x"
    url = server.put(f"{NAME}.zip", zipped([(NAME, other)])) if packed else server.put(NAME, other)
    message = failed(lambda: get(url, sha1=SHA1), url, SHA1, hashlib.sha1(other).hexdigest())
    assert (f"{NAME} in it" in message) == packed
    assert contents(cache) == {}
    server.put(url.rpartition("/")[2], zipped([(NAME, BODY)]) if packed else BODY)
    assert get(url, sha1=SHA1).read_bytes() == BODY
    assert [seen.range for seen in server.log] == [None, None]


@pytest.fixture(scope="module")
def archives() -> dict[str, bytes]:
    return hostile_archives(NAME, BODY)


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_archive_of_something_else_leaves_nothing(
    server: FileServer, tmp_path: Path, archives: dict[str, bytes], kind: str
) -> None:
    before = contents(tmp_path)
    url = server.put(f"{NAME}.zip", archives[kind])
    failed(lambda: get(url, sha1=SHA1, most=len(BODY)), url)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("content", [BODY[:-1], b"", BODY + b"x"])
def test_a_damaged_file_in_the_cache_is_named_with_the_mend(server: FileServer, cache: Path, content: bytes) -> None:
    url = server.put(NAME, BODY)
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(content)
    refused(lambda: get(url, sha1=SHA1), str(cache / NAME), "remove it")
    assert server.log == []
    (cache / NAME).unlink()
    assert get(url, sha1=SHA1).read_bytes() == BODY


# A connection that breaks off.


def test_a_download_goes_on_where_it_broke_off(server: FileServer, cache: Path) -> None:
    url = server.put(NAME, Served(BODY, cuts=[1000, 500, 0]))
    assert get(url, sha1=SHA1).read_bytes() == BODY
    assert [seen.range for seen in server.log] == [None, "bytes=1000-", "bytes=1500-", "bytes=1500-"]
    assert list(contents(cache)) == [NAME]


def test_the_next_call_goes_on(server: FileServer, cache: Path) -> None:
    url = server.put(NAME, Served(BODY, cuts=[1000] * transfer._ATTEMPTS))
    failed(lambda: get(url), url, "5,000 bytes are kept", str(len(BODY)))
    assert set(contents(cache)) == {f"{NAME}.part", f"{NAME}.part.state"}
    assert get(url, sha1=SHA1).read_bytes() == BODY
    assert server.log[-1] == (f"/{NAME}", "bytes=5000-", 206)
    assert list(contents(cache)) == [NAME]


def test_an_archive_goes_on_too(server: FileServer, cache: Path) -> None:
    url = server.put(f"{NAME}.zip", Served(zipped([(NAME, BODY)]), cuts=[1000] * 7))
    failed(lambda: get(url), url)
    assert get(url, sha1=SHA1).read_bytes() == BODY
    assert statuses(server) == [200] + [206] * 7
    assert list(contents(cache)) == [NAME]


def test_without_ranges_it_begins_again(server: FileServer, cache: Path) -> None:
    url = server.put(NAME, Served(BODY, ranges=False, cuts=[1000] * 6))
    failed(lambda: get(url), url)
    assert get(url, sha1=SHA1).read_bytes() == BODY
    assert statuses(server) == [200] * 7


def test_a_server_that_names_no_version_is_asked_for_the_whole(server: FileServer, cache: Path) -> None:
    url = server.put(NAME, Served(BODY, headers={"ETag": ""}, cuts=[1000] * 6))
    message = failed(lambda: get(url), url)
    assert "kept" not in message
    assert contents(cache) == {}
    assert get(url, sha1=SHA1).read_bytes() == BODY
    assert [seen.range for seen in server.log] == [None] * 7


def test_a_weak_etag_names_no_version(server: FileServer) -> None:
    url = server.put(NAME, Served(BODY, headers={"ETag": 'W/"1"'}, cuts=[1000]))
    assert get(url, sha1=SHA1).read_bytes() == BODY
    assert [seen.range for seen in server.log] == [None, None]


def test_the_date_of_change_names_a_version(server: FileServer) -> None:
    date = {"ETag": "", "Last-Modified": "Tue, 01 Sep 2020 10:00:00 GMT"}
    url = server.put(NAME, Served(BODY, headers=date, cuts=[1000]))
    assert get(url, sha1=SHA1).read_bytes() == BODY
    assert server.log[-1] == (f"/{NAME}", "bytes=1000-", 206)


@pytest.mark.parametrize("headers", [{}, {"ETag": '"same"'}])
def test_another_version_is_not_mixed_in(server: FileServer, cache: Path, headers: dict[str, str]) -> None:
    url = server.put(NAME, Served(bytes(len(BODY)), headers=headers, cuts=[1000] * 5))
    failed(lambda: get(url), url)
    server.put(NAME, Served(BODY, headers=headers))
    if headers:  # a server that lies; the checksum notices, and the next try begins again
        failed(lambda: get(url, sha1=SHA1), url, SHA1)
        assert contents(cache) == {}
    assert get(url, sha1=SHA1).read_bytes() == BODY


def test_another_address_with_the_same_name_begins_again(server: FileServer) -> None:
    url = server.put(f"a/{NAME}", Served(bytes(len(BODY)), headers={"ETag": '"1"'}, cuts=[1000] * 5))
    failed(lambda: get(url), url)
    assert get(server.put(f"b/{NAME}", Served(BODY, headers={"ETag": '"1"'}))).read_bytes() == BODY


def test_a_complete_file_that_was_not_placed_is_not_fetched_again(
    server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object, **options: object) -> str:
        raise KeyboardInterrupt

    url = server.put(NAME, BODY)
    with monkeypatch.context() as patched:
        patched.setattr(download, "_move", killed)
        with pytest.raises(KeyboardInterrupt):
            get(url)
    assert (cache / f"{NAME}.part").read_bytes() == BODY
    assert get(url, sha1=SHA1).read_bytes() == BODY
    assert statuses(server) == [200, 416]


def test_more_than_the_file_is_kept(server: FileServer, cache: Path) -> None:
    url = server.put(NAME, Served(BODY, cuts=[1000] * 5))
    failed(lambda: get(url), url)
    with (cache / f"{NAME}.part").open("ab") as file:
        file.write(bytes(len(BODY)))
    assert get(url, sha1=SHA1).read_bytes() == BODY
    assert statuses(server)[-2:] == [416, 200]


@pytest.mark.parametrize("state", [b"", b"{", b"[]", b'{"url": 1}', b"\xff" * 9, b'{"validator": null}'])
def test_a_damaged_state_begins_again(server: FileServer, cache: Path, state: bytes) -> None:
    url = server.put(NAME, Served(BODY, cuts=[1000] * 5))
    failed(lambda: get(url), url)
    (cache / f"{NAME}.part.state").write_bytes(state)
    assert get(url, sha1=SHA1).read_bytes() == BODY
    assert server.log[-1].range is None


def test_nothing_is_written_through_a_link(server: FileServer, cache: Path, tmp_path: Path) -> None:
    url = server.put(NAME, Served(BODY, cuts=[1000] * 5))
    failed(lambda: get(url), url)
    (cache / f"{NAME}.part").rename(tmp_path / "elsewhere")
    (cache / f"{NAME}.part").symlink_to(tmp_path / "elsewhere")
    assert get(url, sha1=SHA1).read_bytes() == BODY
    assert (tmp_path / "elsewhere").read_bytes() == BODY[:5000]
    assert not (cache / NAME).is_symlink()


@pytest.mark.parametrize("part", ["bytes 0-199999/200000", "bytes 1000-199999/*", "nonsense", ""])
def test_another_part_than_the_missing_one(server: FileServer, part: str) -> None:
    url = server.put(NAME, Served(BODY, headers={"Content-Range": part}, cuts=[1000]))
    assert get(url, sha1=SHA1).read_bytes() == BODY
    assert [seen.range for seen in server.log] == [None, "bytes=1000-", None]


def test_a_server_that_stops_sending(server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_TIMEOUT", 0.05)
    hold = threading.Event()
    url = server.put(NAME, Served(BODY, hold=hold))
    failed(lambda: get(url), url, "timed out")
    assert len(server.log) == transfer._ATTEMPTS
    hold.set()
    monkeypatch.undo()


LOST = [errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.ECONNRESET, errno.ETIMEDOUT, errno.EIO]


@pytest.mark.parametrize("number", LOST, ids=errno.errorcode.get)
@pytest.mark.parametrize("lasting", [False, True])
def test_a_network_that_is_lost(
    server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch, number: int, lasting: bool
) -> None:
    """The system may give any error while the body comes; it is none of the disk."""
    read, calls = HTTPResponse.read1, itertools.count()

    def lost(response: HTTPResponse, n: int) -> bytes:
        call = next(calls)
        if lasting or call == 1:
            raise OSError(number, os.strerror(number))
        return read(response, 1000 if call == 0 else n)

    monkeypatch.setattr(HTTPResponse, "read1", lost)
    url = server.put(NAME, BODY)
    if lasting:
        message = failed(lambda: get(url), url, os.strerror(number))
        assert "Errno" not in message
        assert len(server.log) == transfer._ATTEMPTS
    else:
        assert get(url, sha1=SHA1).read_bytes() == BODY
        assert [seen.range for seen in server.log] == [None, "bytes=1000-"]


def test_a_server_that_trickles(server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never stops for the length of a timeout, and would take hours."""
    now = iter(range(0, 10**9, 20))
    monkeypatch.setattr(transfer, "_clock", lambda: float(next(now)))
    monkeypatch.setattr(transfer, "_SLOWEST", len(BODY))
    url = server.put(NAME, Served(BODY, blocks=1000))
    failed(lambda: get(url), url, "seconds", "kept")
    assert len(server.log) == 1


def test_a_full_disk_is_the_systems_error(server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "receive", full)
    with pytest.raises(OSError, match="No space left") as caught:
        get(server.put(NAME, BODY))
    assert caught.value.filename == str(cache / NAME)
    assert contents(cache) == {}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has this file")
def test_a_disk_that_is_full_while_the_body_comes(
    server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open
    full = Path("/dev/full")
    monkeypatch.setattr(Path, "open", lambda path, mode="r": opened(full if path.suffix == ".part" else path, mode))
    with pytest.raises(OSError, match="No space left") as caught:
        get(server.put(NAME, BODY))
    assert caught.value.filename == str(cache / NAME)
    assert len(server.log) == 1


# Several at once.


def both(call: Callable[[], Path]) -> tuple[threading.Thread, list[object]]:
    """Start a call in a thread, and return the list that its result or error comes to."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def test_who_comes_second_waits_for_the_first(server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold, waits = threading.Event(), threading.Event()
    monkeypatch.setattr(partial_file, "_POLL", 0.01)
    monkeypatch.setattr(partial_file, "say", lambda text: waits.set())
    served = Served(BODY, hold=hold)
    url = server.put(NAME, served)
    first, one = both(lambda: get(url, sha1=SHA1))
    assert served.reached.wait(60)
    second, other = both(lambda: get(url, sha1=SHA1))
    assert waits.wait(60)
    hold.set()
    first.join()
    second.join()
    assert one == other == [cache / NAME]
    assert (cache / NAME).read_bytes() == BODY
    assert statuses(server) == [200]
    assert list(contents(cache)) == [NAME]


def test_who_comes_second_goes_on_if_the_first_fails(
    server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold, waits = threading.Event(), threading.Event()
    monkeypatch.setattr(partial_file, "_POLL", 0.01)
    monkeypatch.setattr(partial_file, "say", lambda text: waits.set())
    served = Served(BODY, hold=hold, cuts=[1000] * transfer._ATTEMPTS)
    url = server.put(NAME, served)
    first, one = both(lambda: get(url, sha1=SHA1))
    assert served.reached.wait(60)
    second, other = both(lambda: get(url, sha1=SHA1))
    assert waits.wait(60)
    hold.set()
    first.join()
    second.join()
    assert isinstance(one[0], ValueError)
    assert other == [cache / NAME]
    assert server.log[-1] == (f"/{NAME}", "bytes=5000-", 206)


def test_who_waits_outlasts_one_who_tries_again(
    server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That one brings nothing until all of its connections have timed out."""
    looked = threading.Event()
    times: list[float] = []

    def clock() -> float:
        times.append(0.0 if len(times) < 2 else 2 * transfer._ATTEMPTS * transfer._TIMEOUT)
        if len(times) > 2:
            looked.set()
        return times[-1]

    url = server.put(NAME, BODY)
    cache.mkdir(parents=True)
    monkeypatch.setattr(partial_file, "_POLL", 0.01)
    monkeypatch.setattr(partial_file, "_clock", clock)
    with held_lock(cache / f"{NAME}.part.state"):
        waiting, result = both(lambda: get(url))
        assert looked.wait(60)
    waiting.join()
    assert result == [cache / NAME]


def test_waiting_has_an_end(server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 10**9, 20))
    monkeypatch.setattr(partial_file, "_clock", lambda: float(next(now)))
    monkeypatch.setattr(partial_file, "_POLL", 0)
    hold = threading.Event()
    served = Served(BODY, hold=hold)
    url = server.put(NAME, served)
    first, one = both(lambda: get(url))
    assert served.reached.wait(60)
    refused(lambda: get(url), f"{NAME}.part", "another process")
    hold.set()
    first.join()
    assert one == [cache / NAME]


def test_a_file_system_without_locks(server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def no_lock(path: Path) -> Iterator[None]:
        path.touch()
        yield None

    monkeypatch.setattr(partial_file, "held_lock", no_lock)
    url = server.put(NAME, Served(BODY, cuts=[1000] * 5))
    message = failed(lambda: get(url), url)
    assert "kept" not in message
    assert contents(cache) == {}
    assert get(url, sha1=SHA1).read_bytes() == BODY
    assert list(contents(cache)) == [NAME]


def test_what_a_killed_download_left_is_removed_by_the_next(server: FileServer, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / ".tmp-0123456789abcdef.pth").write_bytes(BODY[:100])
    get(server.put(NAME, BODY))
    assert list(contents(cache)) == [NAME]


# A source of the table.


@pytest.fixture
def source(server: FileServer) -> Source:
    url = server.put(f"{NAME}.zip", zipped([(NAME, BODY)]))
    return dataclasses.replace(IMAGENET_SOURCES[1], url=url, sha1=SHA1, tensor_bytes=len(BODY))


def test_a_source_has_its_checksum_and_bound(source: Source, server: FileServer, cache: Path) -> None:
    assert fetch_source(source).read_bytes() == BODY
    (cache / NAME).unlink()
    small = dataclasses.replace(source, tensor_bytes=len(BODY) - download._MARGIN - 1)
    refused(lambda: fetch_source(small), source.url, "vovnet39.in1k", "VOVNET_HUB_NAMESPACE")
    other = dataclasses.replace(source, sha1="0" * 40)
    refused(lambda: fetch_source(other), source.url, "0" * 40, "vovnet39.in1k")
    assert contents(cache) == {}


def test_a_sources_archive_of_the_user_is_unpacked_once(source: Source, cache: Path, tmp_path: Path) -> None:
    archive = tmp_path / f"{NAME}.zip"
    archive.write_bytes(zipped([(NAME, BODY)]))
    for _ in range(2):
        assert unpack_source(archive, source) == cache / NAME
        assert (cache / NAME).read_bytes() == BODY
    before = contents(cache)
    archive.write_bytes(zipped([(NAME, b"another")]))
    refused(lambda: unpack_source(archive, source), str(archive), SHA1)  # and not ignored for the file in the cache
    assert contents(cache) == before
    (cache / NAME).unlink()
    refused(lambda: unpack_source(archive, source), str(archive), SHA1)
    assert contents(cache) == {}


@pytest.mark.parametrize("one", IMAGENET_SOURCES, ids=lambda one: one.name)
def test_only_what_a_checksum_tells_gets_into_the_cache_from_the_user(one: Source, cache: Path, tmp_path: Path) -> None:
    """The name of an archive is no proof that its file is the publisher's, and the next user would get it as theirs."""
    archive = tmp_path / f"{one.file}.zip"
    archive.write_bytes(zipped([(one.file, BODY)]))
    refused(lambda: unpack_source(archive, one), str(archive), *([one.sha1] if one.sha1 else ["name the .pth file"]))
    assert contents(cache) == {}
