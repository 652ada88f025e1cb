"""The claim to an output folder: one command at a time, and nothing left by one that failed or was killed."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest
from processes import forked, killed, wait_for_ever

from vovnet.errors import InputError
from vovnet.folders import claim
from vovnet.folders.claim import claimed_folder
from vovnet.folders.temporary import LOCK_FILE, temporary_path


def enter(folder: Path, **options: bool) -> list[str]:
    with claimed_folder(folder, **options) as claimed:
        return sorted(os.listdir(claimed))


def test_claims_a_folder(tmp_path: Path) -> None:
    run = tmp_path / "new" / "run"
    with claimed_folder(run) as claimed:
        assert claimed == run
        (run / "x").touch()
    assert os.listdir(run) == ["x"], "the lock is gone"
    with pytest.raises(InputError, match="--overwrite"):
        enter(run)
    with pytest.raises(InputError, match="expected one of them"):
        enter(run, overwrite=True, resume=True)
    assert enter(run, overwrite=True) == [LOCK_FILE, "x"]
    assert enter(run, resume=True) == [LOCK_FILE, "x"]
    assert os.listdir(run) == ["x"]
    for path in (run / "x", run / "x" / "y"):
        with pytest.raises(InputError, match="expected a folder"):
            enter(path)


def test_claiming_a_folder_touches_nothing_in_it(tmp_path: Path) -> None:
    (tmp_path / "writable").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        enter(tmp_path)
    enter(tmp_path, overwrite=True)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("writable", "mine")]


@pytest.mark.parametrize("existing", [0, 1, 2, 3])
def test_a_failed_start_leaves_no_folder(tmp_path: Path, existing: int) -> None:
    folders = [tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"]
    folders[existing].mkdir(parents=True, exist_ok=True)
    with pytest.raises(ZeroDivisionError), claimed_folder(folders[-1]):
        raise ZeroDivisionError
    assert [folder.exists() for folder in folders] == [number <= existing for number in range(4)]
    with claimed_folder(folders[-1]):
        (folders[-1] / "result").touch()
    assert os.listdir(folders[-1]) == ["result"], "results stay"


def hold(folder: Path, leftover: str = ".bin"):
    def body(say: int) -> None:
        with claimed_folder(folder):
            temporary_path(folder, leftover).write_text("half")
            wait_for_ever(say)

    return body


def test_a_second_command_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with forked(hold(run)) as (process, _):
        for options in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(InputError, match=f"--output .*another command .*process {process} ") as caught:
                enter(run, **options)
            assert "\n" not in str(caught.value)
        assert len(os.listdir(run)) == 2, "the lock and the file that the first one writes"
        killed(process)
        assert len(os.listdir(run)) == 2
        assert enter(run) == [LOCK_FILE], "what is left of a killed command is nobody's"
    assert os.listdir(run) == []


def test_a_second_thread_is_refused_but_the_holder_may_call_others(tmp_path: Path) -> None:
    refused = []

    def second() -> None:
        try:
            enter(tmp_path, overwrite=True)
        except InputError as error:
            refused.append(error)

    with claimed_folder(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert len(refused) == 1
        assert enter(tmp_path, overwrite=True) == [LOCK_FILE]
        assert os.listdir(tmp_path) == [LOCK_FILE], "the inner claim has released nothing"


def test_a_forked_child_neither_has_nor_ends_the_claim(tmp_path: Path) -> None:
    run, parent, answers = tmp_path / "run", os.getpid(), os.pipe()
    try:
        with claimed_folder(run):
            child = os.fork()
            if child == 0:
                try:
                    enter(run, overwrite=True)
                except InputError:
                    os.write(answers[1], b"refused")
                raise KeyboardInterrupt
            os.waitpid(child, 0)
            assert os.read(answers[0], 100) == b"refused"
            assert os.listdir(run) == [LOCK_FILE]
    finally:
        if os.getpid() != parent:
            os._exit(0)
    assert not run.exists()


def test_patience_waits_for_a_dying_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with forked(hold(run)) as (process, _):
        monkeypatch.setattr(claim.time, "sleep", lambda seconds: killed(process))
        with claimed_folder(run, patience=60):
            assert os.listdir(run) == [LOCK_FILE]


def test_without_locks_there_is_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    half = temporary_path(tmp_path, ".bin")
    half.write_text("half")
    with pytest.warns(RuntimeWarning, match=r"--output .*no locks") as warned, claimed_folder(tmp_path):
        assert half.exists(), "it may be somebody's"
    assert len(warned) == 1
    assert os.listdir(tmp_path) == [half.name]


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe"])
def test_nothing_is_written_through_a_lock_that_is_something_else(tmp_path: Path, kind: str) -> None:
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("mine")
    run.mkdir()
    lock = run / LOCK_FILE
    if kind == "hard link":
        os.link(victim, lock)
        enter(run)
    else:
        lock.symlink_to(victim) if kind == "link" else os.mkfifo(lock)
        with pytest.raises(InputError, match=LOCK_FILE):
            enter(run)
    assert victim.read_text() == "mine"


def test_a_name_that_is_ours_but_a_link_counts(tmp_path: Path) -> None:
    temporary_path(tmp_path).symlink_to(tmp_path)
    with pytest.raises(InputError, match="not empty"):
        enter(tmp_path)
