"""Locks that a dead process does not hold."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import forked, killed, wait_for_ever

from vovnet.folders.locks import held_lock


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held_lock(path) as descriptor:
        assert descriptor is not None
        assert not os.get_inheritable(descriptor)
        with pytest.raises(BlockingIOError), held_lock(path):
            pass
    with held_lock(path, create=False):
        pass


def test_the_lock_of_a_killed_process_is_free_although_its_forked_child_lives(tmp_path: Path) -> None:
    path = tmp_path / "lock"

    def hold_and_fork(say: int) -> None:
        with held_lock(path):
            if (child := os.fork()) == 0:
                wait_for_ever(os.open(os.devnull, os.O_WRONLY))
            os.write(say, f"{child}\n".encode())
            wait_for_ever(say)

    with forked(hold_and_fork) as (process, told):
        child = int(told)
        try:
            with pytest.raises(BlockingIOError), held_lock(path):
                pass
            killed(process)
            os.kill(child, 0)  # it lives
            with held_lock(path):
                pass
        finally:
            os.kill(child, 9)


def test_a_forked_child_that_leaves_the_block_releases_nothing(tmp_path: Path) -> None:
    path, parent = tmp_path / "lock", os.getpid()
    try:
        with held_lock(path):
            child = os.fork()
            if child == 0:
                raise KeyboardInterrupt
            os.waitpid(child, 0)
            with pytest.raises(BlockingIOError), held_lock(path):
                pass
    finally:
        if os.getpid() != parent:
            os._exit(0)


def test_a_file_that_its_holder_removed_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening and locking the former holder may remove the file; a lock on that one would protect nothing."""
    path, real, removed = tmp_path / "lock", fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        if not removed:
            path.unlink()
            removed.append(path)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with held_lock(path) as descriptor:
        assert descriptor is not None
        assert os.path.samestat(os.fstat(descriptor), path.stat())


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_only_plain_files_are_locked(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "lock"
    (tmp_path / "target").write_text("mine")
    {"link": lambda: path.symlink_to("target"), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    with pytest.raises(OSError), held_lock(path):  # noqa: PT011 (the error's number depends on the kind)
        pass
    assert (tmp_path / "target").read_text() == "mine"


def test_a_file_system_without_locks_gives_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with held_lock(tmp_path / "lock") as first, held_lock(tmp_path / "lock") as second:
        assert (first, second) == (None, None)


def test_windows_locks_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def locking(descriptor: int, mode: int, size: int) -> None:
        calls.append((mode, size, os.lseek(descriptor, 0, os.SEEK_CUR)))
        if len(calls) > 1:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    with held_lock(tmp_path / "lock") as descriptor:
        assert descriptor is not None
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 0
        with pytest.raises(BlockingIOError), held_lock(tmp_path / "lock"):
            pass
    assert {call[:2] for call in calls} == {(2, 1)}
