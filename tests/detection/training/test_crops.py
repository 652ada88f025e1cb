"""Trainings with ``data.crop``: every kind of detector, stopped and resumed, validated in tiles of the same size."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from vovnet.detection.config.data import DataRecipe
from vovnet.detection.config.detectors import DETECTORS
from vovnet.detection.config.schema import Recipe
from vovnet.detection.data.cropping import tiles_of
from vovnet.detection.data.object_sizes import ObjectSizes
from vovnet.detection.inference_mode import limits_of
from vovnet.detection.training import engine
from vovnet.detection.training.callbacks import Callback
from vovnet.detection.training.engine import train
from vovnet.detection.training.run import Run
from vovnet.detection.training.signals import TrainingInterrupted
from vovnet.errors import InputError
from vovnet.hub import load_detector

CORNERS = ("left", "right")


class LargeSquares(tiny_runs.Squares):
    """Images of 160 × 140 pixels with two squares, as boxes, masks and keypoints."""

    categories = ({"id": 7, "name": "square", "keypoints": list(CORNERS), "skeleton": []},)  # type: ignore[assignment]
    count = 3

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, dict[str, Any]]:
        pixels, masks = torch.zeros(3, 140, 160, dtype=torch.uint8), torch.zeros(2, 140, 160, dtype=torch.uint8)
        corners = [[8 * index, 10, 8 * index + 20, 34], [110, 90 + 5 * index, 134, 110 + 5 * index]]
        for mask, (x0, y0, x1, y1) in zip(masks, corners, strict=True):
            pixels[:, y0:y1, x0:x1] = 200
            mask[y0:y1, x0:x1] = 1
        boxes = torch.tensor(corners, dtype=torch.float32)
        return tv_tensors.Image(pixels), {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(140, 160)),
            "labels": torch.tensor([1, 1]),
            "image_id": 100 + index,
            "masks": tv_tensors.Mask(masks),
            "keypoints": torch.cat((boxes.reshape(2, 2, 2), torch.full((2, 2, 1), 2.0)), dim=-1),
        }

    def image_size(self, index: int) -> tuple[int, int]:
        return 140, 160

    def object_sizes(self) -> ObjectSizes:
        shapes = np.array([[140, 160]] * self.count)
        return ObjectSizes(np.array([[20.0, 24.0], [24.0, 20.0]] * self.count), np.arange(2 * self.count) // 2, shapes)

    def image_labels(self, index: int) -> list[int]:
        return [1]


class LargeSquare(LargeSquares):
    count = 1


class InterruptAt(Callback):
    def __init__(self, iteration: int) -> None:
        self.at = iteration

    def iteration(self, run: Run, losses: Mapping[str, float]) -> None:
        if run.iteration == self.at:
            signal.raise_signal(signal.SIGINT)


def recipe_of(detector: str = "faster_rcnn", evaluate_every: int = 0, **data: Any) -> Recipe:
    recipe = tiny_runs.short_recipe(evaluate_every=evaluate_every, max_iterations=4)
    settings: dict[str, Any] = {"train_min_sizes": [56, 64], "train_max_size": 64, "workers": 0, "crop": 96}
    recipe = replace(recipe, data=DataRecipe(**settings | data))
    facts = DETECTORS[detector]
    recipe.model.detector = detector  # type: ignore[assignment]
    recipe.model.mask_head_convs, recipe.model.mask_head_channels = 1, 8
    if detector == "fcos":
        recipe.model.fpn_channels = 64  # its group norms need two channels a group
    if facts.needs_keypoints:
        recipe.model.num_keypoints, recipe.model.keypoint_head_convs, recipe.model.keypoint_head_channels = 2, 1, 8
    return recipe


@pytest.mark.parametrize("detector", DETECTORS)
def test_every_kind_of_detector_resumes_exactly(detector: str, tmp_path: Path) -> None:
    """Evaluations cut tiles, and the configuration has the size of the crops."""
    recipe = recipe_of(detector, workers=1 if detector == "faster_rcnn" else 0)
    options: dict[str, Any] = {"train_dataset": LargeSquares(), "val_dataset": LargeSquare(), "progress": False}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(recipe, whole, **options)
    with pytest.raises(TrainingInterrupted):
        train(recipe, parts, callbacks=[InterruptAt(3)], **options)
    train(recipe, parts, resume=True, **options)
    tiny_runs.assert_same_runs(parts, whole)
    preprocessing = json.loads((whole / "config.json").read_text())["preprocessing"]
    assert preprocessing["trained_crop"] == 96
    assert preprocessing["median_image"] == [96, 96]
    assert preprocessing["median_object"] == pytest.approx(480**0.5)  # 20 × 24 pixels: those of the image
    assert limits_of(load_detector(whole)).fitting_tile() == 96


def test_with_all_that_varies_images(tmp_path: Path) -> None:
    """Mosaics, pasted and repeated objects, the user's transforms, and a sheet of crops."""
    varied = {"mosaic": 0.5, "copy_paste": 0.5, "repeat_threshold": 1.0, "scale_jitter": [0.8, 1.2]}
    recipe = recipe_of("mask_rcnn", **varied)
    options: dict[str, Any] = {"train_dataset": BoxesAndMasks(), "progress": False}
    options["transforms"] = v2.Compose([v2.RandomPhotometricDistort(), v2.RandomRotation(5)])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(recipe, whole, **options)
    with pytest.raises(TrainingInterrupted):
        train(recipe, parts, callbacks=[InterruptAt(2)], **options)
    train(recipe, parts, resume=True, show_batch=tmp_path / "sheet.png", **options)
    tiny_runs.assert_same_runs(parts, whole)
    assert (tmp_path / "sheet.png").stat().st_size


class BoxesAndMasks(LargeSquares):
    categories = ({"id": 7, "name": "square"},)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, dict[str, Any]]:
        image, target = super().__getitem__(index)
        target.pop("keypoints")
        return image, target


def test_own_transforms_get_crops(tmp_path: Path) -> None:
    sizes = set()

    def seen(image: Tensor, target: dict[str, Any]) -> Any:
        sizes.add(tuple(image.shape[1:]))
        return image, target

    recipe = recipe_of()
    train(recipe, tmp_path, train_dataset=BoxesAndMasks(), transforms=seen, progress=False)
    assert sizes == {(96, 96)}


def test_evaluations_get_tiles_of_the_same_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both COCO's numbers and the losses."""
    recipe = recipe_of()
    recipe.log.validation_losses = True
    tiles, calls = [], []
    evaluate = engine.evaluate

    def watched(detector: nn.Module, *args: Any, **options: Any) -> Any:
        calls.append(options["tile"])
        return evaluate(detector, *args, **options)

    def cut(sample: Any, side: int) -> Any:
        found = list(tiles_of(sample, side))
        tiles.append(len(found))
        return found

    monkeypatch.setattr(engine, "evaluate", watched)
    monkeypatch.setattr("vovnet.detection.training.val_loss.tiles_of", cut)
    metrics = train(recipe, tmp_path, train_dataset=BoxesAndMasks(), val_dataset=BoxesAndMasks(), progress=False)
    assert calls == [96]
    assert tiles == [4] * 3  # of each image
    assert set(metrics["losses"]) > {"loss", "loss_classifier"}


def test_another_size_is_another_run(tmp_path: Path) -> None:
    options: dict[str, Any] = {"train_dataset": LargeSquares(), "progress": False}
    train(recipe_of(), tmp_path / "run", **options)
    with pytest.raises(InputError, match=r"data\.crop"):
        train(recipe_of(crop=64), tmp_path / "run", resume=True, **options)


def test_legacy_conventions_refuse_crops(tmp_path: Path) -> None:
    recipe = recipe_of()
    recipe.model.conventions = "legacy"
    with pytest.raises(InputError, match=r"^data\.crop"):
        train(recipe, tmp_path, train_dataset=LargeSquares(), progress=False)
