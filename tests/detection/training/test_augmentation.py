"""Runs with mixed, repeated and weighted data: stopped and resumed, they equal those that were not."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import torch
from torchvision import tv_tensors

from vovnet.detection.config.schema import DataRecipe, Recipe
from vovnet.detection.training.callbacks import Callback
from vovnet.detection.training.engine import train
from vovnet.detection.training.run import Run
from vovnet.detection.training.signals import TrainingInterrupted
from vovnet.errors import InputError


class Squares(tiny_runs.Squares):
    """Squares with masks, and their labels."""

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, dict[str, Any]]:
        image, target = super().__getitem__(index)
        return image, target | {"masks": tv_tensors.Mask((image[:1] > 0).to(torch.uint8))}

    def image_labels(self, index: int) -> list[int]:
        return [1] if index else []


class InterruptAt(Callback):
    def __init__(self, iteration: int) -> None:
        self.at = iteration

    def iteration(self, run: Run, losses: Mapping[str, float]) -> None:
        if run.iteration == self.at:
            signal.raise_signal(signal.SIGINT)


def recipe_of(data: dict[str, Any], **solver: Any) -> Recipe:
    recipe = tiny_runs.short_recipe(evaluate_every=0, **{"max_iterations": 4, **solver})
    settings: dict[str, Any] = {"train_min_sizes": [56, 64], "train_max_size": 64, "workers": 0}
    return replace(recipe, data=DataRecipe(**settings | data))


ALL = {"mosaic": 0.7, "mosaic_off": 0.25, "copy_paste": 0.7, "repeat_threshold": 1.0}
LOSS = {"box_loss": "focal", "focal_alpha": 0.4, "class_weights": {"square": 2.0}}


@pytest.mark.parametrize(("data", "solver"), [(ALL, {}), ({"mosaic": 0.5}, LOSS)], ids=["data", "loss"])
def test_resumed_runs_equal_unbroken_ones(data: dict[str, Any], solver: dict[str, Any], tmp_path: Path) -> None:
    recipe = recipe_of(data, **solver)
    if "copy_paste" in data:
        recipe.model.detector = "mask_rcnn"
        recipe.model.mask_head_convs, recipe.model.mask_head_channels = 1, 8
    options: dict[str, Any] = {"train_dataset": Squares(), "progress": False}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(recipe, whole, **options)
    with pytest.raises(TrainingInterrupted):
        train(recipe, parts, callbacks=[InterruptAt(2)], **options)
    train(recipe, parts, resume=True, **options)
    tiny_runs.assert_same_runs(parts, whole)


def test_what_decides_the_end_of_the_mosaics_stays(tmp_path: Path) -> None:
    options: dict[str, Any] = {"train_dataset": Squares(), "progress": False}
    train(recipe_of({"mosaic": 0.5}, max_iterations=1), tmp_path / "run", **options)
    with pytest.raises(InputError, match=r"solver\.max_iterations"):
        train(recipe_of({"mosaic": 0.5}, max_iterations=2), tmp_path / "run", resume=True, **options)


@pytest.mark.parametrize(
    ("data", "solver", "key"),
    [({"copy_paste": 0.5}, {}, "data.copy_paste"), ({}, {"class_weights": {"circle": 2.0}}, "solver.class_weights")],
)
def test_what_does_not_fit_ends_before_the_first_iteration(
    data: dict[str, Any], solver: dict[str, Any], key: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=key):
        train(recipe_of(data, **solver), tmp_path, train_dataset=tiny_runs.Squares(), progress=False)
    assert not (tmp_path / "last.pt").exists()
