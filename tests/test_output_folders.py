"""Every command that takes an output folder: it owns the folder, and a start that fails leaves none behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from support import command, contents

from vovnet.folders.claim import claimed_folder
from vovnet.folders.temporary import temporary_path

NOWHERE = "no/such"
TRAIN = ("train", "quickstart", "solver.max_iterations=1")
DATA = ("--images", NOWHERE, "--annotations", f"{NOWHERE}.json")
COMMANDS = {
    "quickstart": ("quickstart",),
    "train": TRAIN,
    "train --auto-resume": (*TRAIN, "--auto-resume"),
    "train --resume": (*TRAIN, "--resume"),
    "evaluate": ("evaluate", "--weights", NOWHERE, *DATA),
    "predict": ("predict", f"{NOWHERE}.png", "--weights", NOWHERE),
    "export-web": ("export-web", NOWHERE),
    "benchmark": ("benchmark", "cpu", "--no-huge-pages", "--case", NOWHERE),
}
FAILURES: dict[str, tuple[str, ...]] = {
    "data": (*TRAIN, f"data.train=[{{images: {NOWHERE}, annotations: {NOWHERE}.json}}]"),
    "no data": (*TRAIN, "data.train=[]"),
    "recipe": ("train", NOWHERE),
    "key": (*TRAIN, "solver.nothing=1"),
    "rules": ("train", "faster_rcnn_V_39_FPN_2x"),
    "device": (*TRAIN, "--device", "cuda:99"),
    "init": (*TRAIN, f"init={NOWHERE}"),
    "nothing to resume": (*TRAIN, "--resume"),
    "no run to overwrite": (*TRAIN, "data.train=[]", "--overwrite"),
    "auto-resume": (*TRAIN, "data.train=[]", "--auto-resume"),
    "weights": COMMANDS["evaluate"],
    "images": COMMANDS["predict"],
    "page": COMMANDS["export-web"],
    "case": COMMANDS["benchmark"],
}


@pytest.mark.parametrize("arguments", FAILURES.values(), ids=FAILURES)
def test_a_start_that_fails_leaves_no_folder_and_a_folder_that_is_there_as_it_was(
    arguments: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command(*arguments, "--output", "runs/new").refused()
    assert not (tmp_path / "runs").exists()
    (tmp_path / "empty").mkdir()
    command(*arguments, "--output", "empty").refused()
    assert contents(tmp_path) == {}
    assert (tmp_path / "empty").is_dir()


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_a_folder_in_use_is_refused_before_anything_else(
    arguments: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other command is this thread, and the command under test thinks that it is another."""
    from vovnet.folders import claim

    monkeypatch.chdir(tmp_path)
    (tmp_path / NOWHERE).mkdir(parents=True)  # predict needs to know that it is no classifier
    used = tmp_path / "used"
    with claimed_folder(used):
        half = temporary_path(used)
        half.write_text("its own")
        monkeypatch.setattr(claim.threading, "get_ident", lambda: -1)
        monkeypatch.setattr(claim.time, "monotonic", iter(range(0, 10**9, 1000)).__next__)
        monkeypatch.setattr(claim.time, "sleep", lambda seconds: None)
        command(*arguments, "--output", used).refused("--output", used, "another command")
        monkeypatch.undo()
        assert half.read_text() == "its own"
