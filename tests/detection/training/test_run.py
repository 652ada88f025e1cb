"""A run that is killed at any moment, and resumed, leaves what a run without interruption leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support import contents
from tiny_runs import Squares, assert_same_runs, short_recipe
from torch import nn

from vovnet.detection.training import engine, run
from vovnet.detection.training.callbacks import Callback, MetricsFile
from vovnet.detection.training.engine import train
from vovnet.detection.training.run import Run

Moment = tuple[int, int, str]
"""The iteration, the iteration of the last evaluation, and what the run does."""


class Killed(BaseException):
    """Ends a run as a kill does: nothing handles it."""


class Killer(Callback):
    """Ends the run at a moment of its life when that moment comes for the first time in one of its iterations."""

    def __init__(self) -> None:
        self.scores = (0.0, 0.4421, 0.6)
        self.only: set[Moment] | None = set()
        self.survived: list[Moment] = []
        self.run: Run | None = None

    def start(self, run: Run) -> None:
        self.run = run

    def at(self, moment: str) -> None:
        assert self.run is not None
        now = (self.run.iteration, self.run.evaluated, moment)
        if now not in self.survived and (self.only is None or now in self.only):
            self.survived.append(now)
            raise Killed(now)

    def score(self, detector: nn.Module, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Stand for ``evaluate``: a score that rises and falls, and a number that tells other weights apart."""
        assert self.run is not None
        self.at("in the evaluation")
        weights = sum(parameter.double().abs().sum().item() for parameter in detector.parameters())
        return {"bbox": {"AP": self.scores[self.run.iteration], "AP50": weights}}


@pytest.fixture
def killer(monkeypatch: pytest.MonkeyPatch) -> Killer:
    """Has every write of a run, its evaluations and its steps ask whether the run shall end there."""
    killer = Killer()
    save, write = torch.save, MetricsFile._write

    def around(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            killer.at(f"before {name}")
            result = function(*arguments, **options)
            killer.at(f"after {name}")
            return result

        return wrapped

    def half_a_file(state: Mapping[str, Any], file: Any) -> None:
        file.write(b"half a file")
        killer.at("in a checkpoint" if "schedule" in state else "in the best weights")
        file.seek(0)
        save(state, file)

    def half_a_line(self: MetricsFile, values: Mapping[str, Any]) -> None:
        before = self.path.read_bytes()
        with self.path.open("a") as file:
            file.write(json.dumps(values)[:15])
        killer.at(f"in a line of {'losses' if 'loss' in values else 'scores'}")
        self.path.write_bytes(before)
        write(self, values)
        killer.at(f"after a line of {'losses' if 'loss' in values else 'scores'}")

    monkeypatch.setattr(torch, "save", half_a_file)
    monkeypatch.setattr(MetricsFile, "_write", half_a_line)
    monkeypatch.setattr(engine, "evaluate", killer.score)
    monkeypatch.setattr(engine, "plot_curves", around("the curves", lambda log, out: None))  # slow
    monkeypatch.setattr(engine, "save_run", around("a checkpoint", engine.save_run))
    monkeypatch.setattr(engine, "save_if_best", around("the best weights", engine.save_if_best))
    monkeypatch.setattr(run, "publish", around("publishing", run.publish))
    return killer


def lived(output: Path, killer: Killer) -> bool:
    """Start the run, or resume it if it has a checkpoint; True if it comes to its end."""
    resume = (output / "last.pt").exists()
    data: dict[str, Any] = {"train_dataset": Squares(), "val_dataset": Squares(), "progress": False}
    try:
        metrics = train(
            short_recipe(max_iterations=2), output, resume=resume, overwrite=not resume, callbacks=[killer], **data
        )
    except Killed:
        return False
    assert metrics["bbox"]["AP"] == killer.scores[2]
    return True


def test_a_run_that_dies_once_at_every_moment_leaves_what_an_unbroken_run_leaves(
    killer: Killer, tmp_path: Path
) -> None:
    assert lived(tmp_path / "unbroken", killer)
    killer.only = None
    while not lived(tmp_path / "run", killer):
        pass
    assert len(killer.survived) > 30
    assert_same_runs(tmp_path / "run", tmp_path / "unbroken")


@pytest.mark.parametrize("moment", ["in the evaluation", "after the best weights", "after a line of scores"])
def test_a_worse_evaluation_is_not_the_best_because_a_better_one_was_killed(
    moment: str, killer: Killer, tmp_path: Path
) -> None:
    killer.scores = (0.0, 0.4421, 0.0)
    assert lived(tmp_path / "unbroken", killer)
    killer.only = {(1, evaluated, moment) for evaluated in (0, 1)}
    assert not lived(tmp_path / "run", killer)
    assert lived(tmp_path / "run", killer)
    assert_same_runs(tmp_path / "run", tmp_path / "unbroken")
    assert torch.load(tmp_path / "run" / "best.pt", weights_only=True)["iteration"] == 1


def test_a_finished_run_that_is_resumed_does_not_evaluate_again(killer: Killer, tmp_path: Path) -> None:
    assert lived(tmp_path / "run", killer)
    before = contents(tmp_path / "run")
    killer.only = {(2, evaluated, "in the evaluation") for evaluated in (0, 1, 2)}
    assert lived(tmp_path / "run", killer)
    after = contents(tmp_path / "run")
    assert {name for name in before if before[name] != after.get(name)} <= {"curves.png"}
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("box_ap50") == 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fifty_kills_at_random_moments_change_nothing(repository: Path, tmp_path: Path) -> None:
    script = repository / "tests" / "helpers" / "killed_runs.py"
    paths = os.pathsep.join(map(str, (repository, script.parent)))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path), "50", "7"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) >= 50
