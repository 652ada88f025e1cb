"""Temporary files and folders: whose they are, and who removes them."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import forked, killed, wait_for_ever

from vovnet.files import atomic_path
from vovnet.folders.temporary import LOCK_FILE, remove_leftovers, scratch_folder, temporary_path

HEX = "0123456789abcdef"


@pytest.mark.parametrize("name", [f".tmp-{HEX}", f".tmp-{HEX}.safetensors", f".tmp-{HEX}.Ünïcode", f"vovnet-{HEX}"])
def test_our_files_and_folders_are_removed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("half")
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == []
    (tmp_path / name / "inside").mkdir(parents=True)
    (tmp_path / name / LOCK_FILE).touch()
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [
        f".tmp-{HEX[:-1]}",
        f".tmp-{HEX}0",
        f".tmp-{HEX.upper()}",
        f".tmp-{HEX}.tar.gz",
        f".tmp-{HEX}~",
        f"x.tmp-{HEX}",
        f"tmp-{HEX}",
        ".tmp-abcdefgh",
        "vovnet-notes",
    ],
)
def test_other_names_stay(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    remove_leftovers(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_links_and_what_they_lead_to_stay(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    (outside / "deep").mkdir(parents=True)
    (outside / LOCK_FILE).touch()
    (outside / "file").write_text("mine")
    folder.mkdir()
    (folder / f".tmp-{HEX}").symlink_to(outside)
    (folder / f".tmp-{HEX}.png").symlink_to(outside / "file")
    (folder / f".tmp-{HEX[::-1]}").mkdir()
    (folder / f".tmp-{HEX[::-1]}" / LOCK_FILE).touch()
    (folder / f".tmp-{HEX[::-1]}" / "link").symlink_to(outside)
    remove_leftovers(folder)
    assert sorted(os.listdir(folder)) == [f".tmp-{HEX}", f".tmp-{HEX}.png"]
    assert sorted(os.listdir(outside)) == [LOCK_FILE, "deep", "file"]


def test_a_folder_of_another_program_by_such_a_name_stays(tmp_path: Path) -> None:
    (tmp_path / f"vovnet-{HEX}").mkdir()
    (tmp_path / f"vovnet-{HEX}" / "file").write_text("mine")
    remove_leftovers(tmp_path)
    assert (tmp_path / f"vovnet-{HEX}" / "file").exists()


def write(folder: Path) -> Callable[[int], object]:
    def body(say: int) -> None:
        with atomic_path(folder / "weights.bin") as path:
            path.write_text("half")
            wait_for_ever(say)

    return body


def stage(folder: Path | None) -> Callable[[int], object]:
    def body(say: int) -> None:
        with scratch_folder(folder) as path:
            (path / "weights.bin").write_text("half")
            wait_for_ever(say)

    return body


@pytest.mark.parametrize("work", [write, stage])
def test_what_a_living_process_writes_stays_and_what_a_killed_one_left_goes(
    tmp_path: Path, work: Callable[[Path], Callable[[int], object]]
) -> None:
    with forked(work(tmp_path)) as (process, _):
        remove_leftovers(tmp_path)
        (left,) = os.listdir(tmp_path)
        killed(process)
        assert os.listdir(tmp_path) == [left]
        remove_leftovers(tmp_path)
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("system", [True, False])
def test_the_next_scratch_folder_removes_that_of_a_killed_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: bool
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    parent = None if system else tmp_path
    with forked(stage(parent)) as (process, _):
        with scratch_folder(parent):
            assert len(os.listdir(tmp_path)) == 2
        killed(process)
        with scratch_folder(parent) as path:
            assert os.listdir(tmp_path) == [path.name]
    assert os.listdir(tmp_path) == []


def test_where_nobody_knows_who_lives_everything_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    temporary_path(tmp_path, ".bin").write_text("half")
    monkeypatch.setattr(fcntl, "flock", flock)
    remove_leftovers(tmp_path)
    assert len(os.listdir(tmp_path)) == 1
    with atomic_path(tmp_path / "file") as path:
        path.write_text("whole")
    assert (tmp_path / "file").read_text() == "whole"
