"""The command that a stopped run prints is the one that was used, and a shell reads it back."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vovnet.detection.training import command
from vovnet.detection.training.command import how_to_resume

RUN = Path("my runs/it's 1")


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher, and no program is found by its name."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(command.shutil, "which", lambda name: None)


def started(monkeypatch: pytest.MonkeyPatch, module: str | None, *argv: str, before: tuple[str, ...] = ()) -> None:
    """Let this process look as if it had been started as ``python -m MODULE`` or as a script."""
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=module and SimpleNamespace(name=module)))
    monkeypatch.setattr(sys, "argv", list(argv))
    monkeypatch.setattr(sys, "orig_argv", [*before, "-m", "given", *argv[1:]] if module else ["python", *argv])


def words() -> list[str]:
    return shlex.split(how_to_resume(RUN).partition(": ")[2])


def test_the_command_line_is_repeated_with_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("my recipe.yaml", "data.train=[{images: 'a b', annotations: c.json}]", "--output", str(RUN))
    started(monkeypatch, None, "bin/vovnet", "train", *arguments, "--overwrite", "--device", "cpu")
    assert words() == ["bin/vovnet", "train", *arguments, "--device", "cpu", "--resume"]
    started(monkeypatch, "vovnet.cli.__main__", "cli/__main__.py", "train", *arguments, "--resume", before=("py", "-u"))
    assert words() == ["py", "-u", "-m", "vovnet.cli", "train", *arguments, "--resume"]


def test_a_program_on_the_path_is_named_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command.shutil, "which", lambda name: str(tmp_path / name))
    started(monkeypatch, None, str(tmp_path / "vovnet"), "train", "bccd", "--output", "out")
    assert words() == ["vovnet", "train", "bccd", "--output", "out", "--resume"]


def test_another_command_that_trains_names_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, None, "vovnet", "quickstart")
    assert words() == ["vovnet", "train", str(RUN / "recipe.yaml"), "--output", str(RUN), "--resume"]


def test_auto_resume_is_the_same_command_again(monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, None, "vovnet", "train", "bccd", "--auto-resume", "--output", "out")
    assert words() == ["vovnet", "train", "bccd", "--auto-resume", "--output", "out"]
    assert "the same command" in how_to_resume(RUN)


def test_the_module_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, "vovnet.detection.train.__main__", "x/__main__.py", "bccd", "--output", "o", before=("py",))
    assert words() == ["py", "-m", "vovnet.detection.train", "bccd", "--output", "o", "--resume"]


@pytest.mark.parametrize(
    ("launcher", "expected"),
    [
        (["/v/bin/python", "/v/bin/torchrun", "--nproc-per-node", "2"], ["/v/bin/torchrun", "--nproc-per-node", "2"]),
        (
            ["python", "-m", "torch.distributed.run", "--nnodes=2"],
            ["python", "-m", "torch.distributed.run", "--nnodes=2"],
        ),
        (["slurmstepd"], ["torchrun", "--nproc-per-node", "4"]),
        ([], ["torchrun", "--nproc-per-node", "4"]),
    ],
)
def test_torchrun_is_repeated_with_its_options(
    launcher: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    line = (
        [*launcher, "-m", "vovnet.detection.train", "bccd", "--output", "o"] if "torch" in str(launcher) else launcher
    )
    monkeypatch.setattr(command, "_command_of", lambda process: line)
    started(monkeypatch, "vovnet.detection.train.__main__", "x/__main__.py", "bccd", "--output", "o", before=("py",))
    assert words() == [*expected, "-m", "vovnet.detection.train", "bccd", "--output", "o", "--resume"]


def test_python_is_told_what_to_call(monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, None, "my_training.py", "train")
    call = how_to_resume(RUN).partition(": ")[2].partition(")")[0] + ")"
    told: dict[str, Any] = {}
    eval(call, {"train": lambda recipe, output, resume: told.update(output=output, resume=resume), "recipe": None})
    assert told == {"output": str(RUN), "resume": True}


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_a_process_is_asked_for_its_command() -> None:
    assert command._command_of(os.getpid())[1:] == sys.orig_argv[1:]
    assert command._command_of(2**30) == []
