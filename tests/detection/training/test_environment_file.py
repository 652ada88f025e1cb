"""``environment.json``: complete at the start, and kept where a run that is resumed goes on elsewhere."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Squares, short_recipe

from vovnet.detection.training import engine, environment_file
from vovnet.detection.training.engine import train


@pytest.fixture(autouse=True)
def without_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "plot_curves", lambda log, out: None)


def run_to(output: Path, iterations: int, resume: bool = False) -> Any:
    recipe = short_recipe(max_iterations=iterations)
    train(recipe, output, train_dataset=Squares(), resume=resume, progress=False, device="cpu")
    return json.loads((output / "environment.json").read_text())


def test_it_says_what_a_run_was_trained_with(tmp_path: Path) -> None:
    found = run_to(tmp_path, 1)
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["versions"]["python"] == platform.python_version()
    assert (found["device"], found["threads"], found["processes"]) == ("cpu", torch.get_num_threads(), 1)
    assert (found["from_iteration"], found["earlier"]) == (0, [])
    assert found["processor"]
    assert "checkout" in found


def test_a_run_that_goes_on_elsewhere_keeps_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_to(tmp_path, 1)
    assert run_to(tmp_path, 2, resume=True) == first
    machine = environment_file.describe_machine
    monkeypatch.setattr(environment_file, "describe_machine", lambda *names: {**machine(*names), "processor": "Z80"})
    moved = run_to(tmp_path, 3, resume=True)
    assert (moved["processor"], moved["from_iteration"]) == ("Z80", 2)
    assert [part["processor"] for part in moved["earlier"]] == [first["processor"]]
    assert moved["earlier"][0]["from_iteration"] == 0


@pytest.mark.parametrize("text", ["", "[1]", '{"earlier": 5', "[" * 9999, '{"earlier": 5}', '{"from_iteration": 1}'])
def test_a_damaged_file_ends_no_run(text: str, tmp_path: Path) -> None:
    run_to(tmp_path, 1)
    (tmp_path / "environment.json").write_text(text)
    assert run_to(tmp_path, 2, resume=True)["versions"]["timm"] == metadata.version("timm")
