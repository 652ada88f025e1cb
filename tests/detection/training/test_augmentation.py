"""Runs with mixed, repeated and weighted data: stopped and resumed, they equal those that were not."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from vovnet.detection.config.data import DataRecipe
from vovnet.detection.config.schema import Recipe
from vovnet.detection.training.batch_sheet import write_batch_sheet
from vovnet.detection.training.callbacks import Callback
from vovnet.detection.training.engine import train
from vovnet.detection.training.run import Run
from vovnet.detection.training.signals import TrainingInterrupted
from vovnet.errors import InputError
from vovnet.results.lettering import category_colour


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


TRANSFORMS = v2.Compose([v2.RandomPhotometricDistort(), v2.RandomRotation(15), v2.RandomIoUCrop()])


def darker(image: Tensor, target: dict[str, Any]) -> Any:
    return image // 2, target


def test_own_transforms_resume_exactly(tmp_path: Path) -> None:
    options: dict[str, Any] = {"train_dataset": Squares(), "progress": False, "transforms": TRANSFORMS}
    recipe, whole, parts = recipe_of({"workers": 1}), tmp_path / "whole", tmp_path / "parts"
    train(recipe, whole, **options)
    with pytest.raises(TrainingInterrupted):
        train(recipe, parts, callbacks=[InterruptAt(2)], **options)
    for other in (None, darker):
        with pytest.raises(InputError, match=r"transforms.*Compose"):
            train(recipe, parts, resume=True, **options | {"transforms": other})
    train(recipe, parts, resume=True, show_batch=tmp_path / "sheet.png", **options)
    tiny_runs.assert_same_runs(parts, whole)
    assert "ransform" not in (whole / "recipe.yaml").read_text()
    train(recipe, tmp_path / "without", **options | {"transforms": None})
    assert (tmp_path / "without" / "metrics.jsonl").read_bytes() != (whole / "metrics.jsonl").read_bytes()


def test_transforms_are_tried_before_the_first_iteration(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^transforms: train_dataset\[0\]: labels"):
        train(
            recipe_of({}),
            tmp_path / "run",
            train_dataset=Squares(),
            progress=False,
            transforms=lambda image, target: (image, target | {"labels": target["labels"].float()}),
        )
    assert not (tmp_path / "run").exists()


def test_the_reference_has_no_transforms(tmp_path: Path) -> None:
    recipe = recipe_of({})
    recipe.model.conventions = "legacy"
    with pytest.raises(InputError, match=r"transforms.*conventions"):
        train(recipe, tmp_path, train_dataset=Squares(), progress=False, transforms=darker)


def test_a_sheet_of_the_first_images(tmp_path: Path) -> None:
    """It has the images of the first batches, and a run is the same with and without it."""
    options: dict[str, Any] = {"train_dataset": Squares(), "progress": False}
    recipe = recipe_of({"mosaic": 0.5}, max_iterations=2)
    train(recipe, tmp_path / "with", show_batch=tmp_path / "sheet.png", **options)
    train(recipe, tmp_path / "without", **options)
    tiny_runs.assert_same_runs(tmp_path / "with", tmp_path / "without")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 4 * 384  # two iterations of two images in a row


def test_objects_are_drawn_where_they_are(tmp_path: Path) -> None:
    image = torch.zeros(3, 384, 384, dtype=torch.uint8)
    masks = torch.zeros(1, 384, 384, dtype=torch.uint8)
    masks[0, 100:150, 200:260] = 1
    target = {"boxes": torch.tensor([[200.0, 100, 260, 150]]), "labels": torch.tensor([1]), "masks": masks}
    write_batch_sheet([([image], [target])], [{"id": 7, "name": ""}], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        drawn = torch.from_numpy(np.array(sheet.convert("RGB")))
    drawn = drawn[44 : 44 + 384, 10 : 10 + 384]  # below the title
    colour = torch.tensor(category_colour(7))
    assert (drawn[100, 210:250] == colour).all()  # the upper side of the box
    inside = drawn[110:140, 210:250]
    assert (inside == inside[0, 0]).all()  # the mask is translucent
    assert inside.sum() > 0
    assert (drawn[200:, :] == 0).all()


@pytest.mark.parametrize("name", ["sheet.jpg", "nowhere/sheet.png", "folder.png"])
def test_sheets_that_cannot_be_written(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match="--show-batch"):
        train(recipe_of({}), tmp_path / "run", train_dataset=Squares(), progress=False, show_batch=tmp_path / name)
    assert not (tmp_path / "run").exists()
