"""Each option of the solver with EMA and accumulation: a run that is stopped and resumed equals one that is not."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Squares, assert_same_runs, short_recipe, tiny_model

from vovnet.detection.config.loading import load_recipe
from vovnet.detection.config.schema import Recipe
from vovnet.detection.training.callbacks import Callback
from vovnet.detection.training.engine import train
from vovnet.detection.training.run import Run
from vovnet.detection.training.signals import TrainingInterrupted
from vovnet.errors import InputError


class StopAt(Callback):
    def __init__(self, iteration: int) -> None:
        self.at = iteration

    def iteration(self, run: Run, losses: Mapping[str, float]) -> None:
        if run.iteration == self.at:
            signal.raise_signal(signal.SIGINT)


def go(recipe: Recipe, output: Path, **settings: Any) -> dict[str, Any]:
    return train(recipe, output, train_dataset=Squares(), val_dataset=Squares(), progress=False, **settings)


def recipe_of(backbone: str, **solver: Any) -> Recipe:
    recipe = short_recipe(evaluate_every=2, **{"accumulate": 2, "batch_size": 4, "ema": 0.5, **solver})
    recipe.model = tiny_model(backbone, box_score_thresh=0.0)
    return recipe


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("test_convnext", {"optimizer": "adamw", "layer_decay": 0.8, "base_lr": 1e-3, "weight_decay": 0.05}),
    ("test_resnet", {"optimizer": "lamb", "backbone_lr_factor": 0.1, "clip_grad_norm": 1.0}),
    ("test_resnet", {"optimizer": "muon", "optimizer_args": {"betas": [0.9, 0.9]}, "warmup_iterations": 2}),
]


@pytest.mark.parametrize(("backbone", "solver"), OPTIONS)
def test_a_stopped_run_goes_on_as_if_it_had_not(backbone: str, solver: dict[str, Any], tmp_path: Path) -> None:
    recipe = recipe_of(backbone, **solver)
    go(recipe, tmp_path / "unbroken")
    with pytest.raises(TrainingInterrupted):
        go(recipe, tmp_path / "run", callbacks=[StopAt(1)])
    go(recipe, tmp_path / "run", resume=True)
    assert_same_runs(tmp_path / "run", tmp_path / "unbroken")


def test_an_optimizer_that_cannot_be_used_is_refused_before_the_folder_has_anything(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"solver\.optimizer: .*'lamb'"):
        go(recipe_of("test_resnet", optimizer="lambo"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def evaluations(run: Path) -> list[int]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["iteration"] for line in lines if "box_ap" in line]


def test_epochs_are_counted_as_iterations_in_what_a_run_leaves(tmp_path: Path) -> None:
    """Four images in batches of two: an epoch has two iterations."""
    counted = recipe_of("test_resnet", batch_size=2, accumulate=1, epochs=2, steps=[0.5, 1.5], max_iterations=90_000)
    counted.log.evaluate_epochs = 1
    go(counted, tmp_path / "epochs")
    assert evaluations(tmp_path / "epochs") == [2, 4]
    written = load_recipe(tmp_path / "epochs" / "recipe.yaml")
    assert (written.solver.epochs, written.log.evaluate_epochs) == (None, None)
    plain = recipe_of("test_resnet", batch_size=2, accumulate=1, max_iterations=4, steps=[2, 3])
    go(plain, tmp_path / "iterations")
    assert_same_runs(tmp_path / "epochs", tmp_path / "iterations")
    go(counted, tmp_path / "epochs", resume=True)


class Never(StopAt):
    """Stops a run in its evaluation after an iteration, before its checkpoint: as a kill there would leave it."""

    def evaluation(self, run: Run, metrics: Mapping[str, Any]) -> None:
        if run.iteration == self.at:
            raise KeyboardInterrupt

    def iteration(self, run: Run, losses: Mapping[str, float]) -> None:
        pass


@pytest.mark.parametrize("stop", [StopAt(1), StopAt(2), Never(2), Never(3)])
def test_early_stopping_is_the_same_after_a_stop(stop: StopAt, tmp_path: Path) -> None:
    """No AP is higher than the first by more than 1, so two more evaluations end the run."""
    recipe = recipe_of("test_resnet", patience=2, min_delta=1.0, max_iterations=9, batch_size=2, accumulate=1)
    recipe.log.evaluate_every = 1
    go(recipe, tmp_path / "unbroken")
    assert evaluations(tmp_path / "unbroken") == [1, 2, 3]
    with pytest.raises((TrainingInterrupted, KeyboardInterrupt)):
        go(recipe, tmp_path / "run", callbacks=[stop])
    go(recipe, tmp_path / "run", resume=True)
    assert_same_runs(tmp_path / "run", tmp_path / "unbroken")
    go(recipe, tmp_path / "run", resume=True)  # nothing is left to do
    assert evaluations(tmp_path / "run") == [1, 2, 3]
    recipe.solver.patience = 3
    go(recipe, tmp_path / "run", resume=True)
    assert evaluations(tmp_path / "run") == [1, 2, 3, 4]


def test_early_stopping_needs_something_to_evaluate(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"solver\.patience: .*data\.val"):
        train(recipe_of("test_resnet", patience=1), tmp_path, train_dataset=Squares(), progress=False)


def test_a_time_limit_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    recipe = recipe_of("test_resnet")
    go(recipe, tmp_path / "unbroken")
    with pytest.raises(TrainingInterrupted, match="time limit after iteration 1 of 3") as caught:
        go(recipe, tmp_path / "run", time_limit=1e-9)
    assert caught.value.exit_code == 124
    go(recipe, tmp_path / "run", resume=True, time_limit=3600.0)
    assert_same_runs(tmp_path / "run", tmp_path / "unbroken")
