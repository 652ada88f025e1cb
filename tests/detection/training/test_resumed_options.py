"""Each option of the solver with EMA and accumulation: a run that is stopped and resumed equals one that is not."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Squares, assert_same_runs, short_recipe, tiny_model

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
