"""The built-in callbacks: a broken extra costs only its own log, and damaged lines are not carried along."""

from __future__ import annotations

import builtins
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Squares, short_recipe

from vovnet.detection.training import callbacks, engine, iteration, rules
from vovnet.detection.training import run as run_module
from vovnet.detection.training.callbacks import Callback, MetricsFile
from vovnet.detection.training.engine import train
from vovnet.detection.training.metrics_log import read_metrics


@pytest.fixture(autouse=True)
def without_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "plot_curves", lambda log, out: None)


def run_to(output: Path, *callbacks: Callback, progress: bool = False) -> list[int]:
    """Train without validation data; the iterations in the log."""
    train(short_recipe(), output, train_dataset=Squares(), callbacks=callbacks, progress=progress)
    return [record["iteration"] for record in read_metrics(output / "metrics.jsonl")]


class Clock:
    """Takes the place of the module ``time``, and goes on only where a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_lines_have_seconds_speed_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    for module in (callbacks, engine, run_module):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(callbacks, "memory_in_use", lambda device: 5 * 2**30)
    step, evaluate = iteration.step, engine.evaluate

    def timed_step(*arguments: Any) -> Any:
        clock.now += 1
        return step(*arguments)

    def timed_evaluation(*arguments: Any, **options: Any) -> Any:
        clock.now += 100
        return evaluate(*arguments, **options)

    monkeypatch.setattr(rules, "step", timed_step)
    monkeypatch.setattr(engine, "evaluate", timed_evaluation)
    recipe = short_recipe(evaluate_every=4, max_iterations=6)
    recipe.log.log_every = 2
    train(recipe, tmp_path, train_dataset=Squares(), val_dataset=Squares(), progress=False)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    losses = [line for line in lines if "loss" in line]
    assert [line["seconds"] for line in losses] == [2, 4, 106]
    assert [line["images_per_second"] for line in losses] == [2, 2, 2]
    assert {line["memory"] for line in losses} == {5 * 2**30}
    assert [line["seconds"] for line in lines if "box_ap" in line] == [104, 206]

    clock.now += 10_000
    recipe.solver.max_iterations = 8
    train(recipe, tmp_path, train_dataset=Squares(), val_dataset=Squares(), progress=False, resume=True)
    assert [line["seconds"] for line in read_metrics(tmp_path / "metrics.jsonl")][-2:] == [208, 308]


def test_memory_that_the_system_does_not_tell_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "memory_in_use", lambda device: None)
    run_to(tmp_path)
    assert all("memory" not in line and "seconds" in line for line in read_metrics(tmp_path / "metrics.jsonl"))


@pytest.mark.parametrize(
    "error",
    [ImportError("no protobuf"), AttributeError("np.bool8"), RuntimeError(""), SystemExit(1), OSError(5, "I/O")],
)
@pytest.mark.parametrize("package", ["torch.utils.tensorboard", "tqdm"])
def test_a_package_that_fails_at_its_import_is_done_without(
    package: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def broken(name: str, *arguments: Any) -> Any:
        if name == package:
            raise error
        return original(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", broken)
    hook = threading.excepthook
    with pytest.warns(RuntimeWarning, match=type(error).__name__) as warned:
        assert run_to(tmp_path, progress=True) == [1, 2, 3]
    assert len([one for one in warned if "the run goes on without it" in str(one.message)]) == 1
    assert threading.excepthook is hook


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), OSError(32, "Broken pipe"), ValueError("closed")])
def test_a_run_outlives_the_terminal_of_its_progress_bar(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone:
        encoding = "utf-8"

        def write(self, text: str) -> None:
            raise error

        def flush(self) -> None:
            raise error

        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(engine, "announce", lambda *arguments: monkeypatch.setattr(sys, "stderr", Gone()))
    assert run_to(tmp_path, progress=True) == [1, 2, 3]


DAMAGED = [
    b'{"iteration": 2, "lo',
    b"\xff\xfe{}",
    b"\0" * 40,
    b"[1, 2]",
    b"null",
    b'{"loss": 1}',
    b"",
    b"[" * 9999,
    b'{"iteration": "1"}',
    b'{"iteration": true}',
    b'{"iteration": 1.5}',
    b'{"iteration": ' + b"9" * 5000 + b"}",
]


@pytest.mark.parametrize("line", DAMAGED, ids=lambda line: ascii(line[:20]))
def test_a_damaged_line_is_left_out(line: bytes, tmp_path: Path) -> None:
    good = [{"iteration": 1, "loss": 0.1 + 0.2}, {"iteration": 2, "loss": float("1e-7")}]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(json.dumps(good[0]).encode() + b"\n" + line + b"\n" + json.dumps(good[1]).encode() + b"\n" + line)
    assert read_metrics(path) == good

    class Resumed:
        iteration, evaluation_due = 2, False

    resumed: Any = Resumed()
    MetricsFile(path, 1).start(resumed)
    assert path.read_text() == "".join(json.dumps(one) + "\n" for one in good)
