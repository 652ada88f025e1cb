"""What a training run finds in its folder, and what it makes of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vovnet.detection import distributed
from vovnet.detection.training.claim import Resume, claimed_run, resume_mode
from vovnet.errors import InputError

STARTED = ["recipe.yaml", "metrics.jsonl", "curves.png", "tensorboard/events.out.tfevents.1.host.2.0"]
KILLED = [".tmp-0123456789abcdef.safetensors", ".vovnet-lock"]


def put(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old")
    return folder


def outcome(folder: Path, resume: Resume = "auto", overwrite: bool = False) -> bool:
    with claimed_run(folder, resume=resume, overwrite=overwrite) as claimed:
        claimed.begin()
        return claimed.resumes


@pytest.mark.parametrize("found", [[], ["recipe.yaml"], STARTED, KILLED, [*STARTED, *KILLED]])
def test_auto_resume_starts_anew_over_what_holds_no_trained_state(tmp_path: Path, found: list[str]) -> None:
    run = put(tmp_path / "run", found)
    assert outcome(run) is False
    assert not run.exists() or os.listdir(run) == []


@pytest.mark.parametrize("found", [["last.pt"], [*STARTED, *KILLED, "last.pt"], ["last.pt", "best.pt", "notes.txt"]])
def test_auto_resume_goes_on_from_a_checkpoint(tmp_path: Path, found: list[str]) -> None:
    run = put(tmp_path / "run", found)
    assert outcome(run) is True
    assert set(found) - set(KILLED) <= {str(path.relative_to(run)) for path in run.rglob("*")}


@pytest.mark.parametrize(
    "found", [["thesis.txt"], ["best.pt"], ["model.safetensors"], ["tensorboard"], [*STARTED, "tensorboard/thesis.txt"]]
)
def test_auto_resume_refuses_what_is_not_of_an_interrupted_start(tmp_path: Path, found: list[str]) -> None:
    run = put(tmp_path / "run", found)
    with pytest.raises(InputError, match="--output"):
        outcome(run)
    assert sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()) == sorted(found)


def test_a_link_is_no_log_of_ours(tmp_path: Path) -> None:
    run = put(tmp_path / "run", ["recipe.yaml"])
    put(tmp_path / "elsewhere", ["events.out.tfevents.1"])
    (run / "tensorboard").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="tensorboard"):
        outcome(run)


def test_one_option_at_a_time(tmp_path: Path) -> None:
    assert [resume_mode(*options) for options in ((False, False), (True, False), (False, True))] == [
        False,
        True,
        "auto",
    ]
    with pytest.raises(InputError, match="--resume and --auto-resume"):
        resume_mode(True, True)
    with pytest.raises(InputError, match="--auto-resume and --overwrite"):
        outcome(tmp_path, "auto", overwrite=True)
    with pytest.raises(InputError, match="--resume and --overwrite"):
        outcome(tmp_path, True, overwrite=True)


def fail(folder: Path, written: list[str], *, begin: bool = True, overwrite: bool = False) -> list[str]:
    def start() -> None:
        with claimed_run(folder, resume=False, overwrite=overwrite) as claimed:
            if begin:
                claimed.begin()
            put(folder, written)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        start()
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_start_that_fails_does_not_block_the_next(tmp_path: Path) -> None:
    assert fail(tmp_path / "a", [], begin=False) == []
    assert fail(tmp_path / "a", ["recipe.yaml", "tensorboard/events.out.tfevents.1"]) == []
    assert not (tmp_path / "a").exists()
    assert fail(tmp_path / "b", ["recipe.yaml", "metrics.jsonl"]) == ["metrics.jsonl", "recipe.yaml"], "losses stay"
    assert fail(tmp_path / "c", ["recipe.yaml", "last.pt"]) == ["last.pt", "recipe.yaml"]


def test_a_start_that_fails_removes_no_recipe_of_the_user(tmp_path: Path) -> None:
    put(tmp_path, ["recipe.yaml"])
    assert fail(tmp_path, [], begin=False, overwrite=True) == ["recipe.yaml"]
    assert fail(tmp_path, ["recipe.yaml"], overwrite=True) == ["recipe.yaml"]


def test_other_processes_follow_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "from_main", lambda value: (None, True))
    assert outcome(tmp_path / "run") is True
    assert not (tmp_path / "run").exists(), "only the first one touches the folder"
    monkeypatch.setattr(distributed, "from_main", lambda value: ("--output: not empty", False))
    with pytest.raises(InputError, match="--output"):
        outcome(tmp_path / "run")
