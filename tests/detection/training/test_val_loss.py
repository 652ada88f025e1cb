"""Losses on validation data: those of the detector's own training mode, and nothing of the training changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Squares, assert_same_runs, lines_of, losses_of, short_recipe
from torch import nn
from torchvision import tv_tensors

from vovnet.detection.checkpoints.folder import load_detector
from vovnet.detection.training.callbacks import Callback
from vovnet.detection.training.engine import train
from vovnet.detection.training.run import Run


class WithCrowd(Squares):
    """A crowd beside each square, from which nothing is learned."""

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, dict[str, Any]]:
        image, target = super().__getitem__(index)
        boxes = torch.cat([target["boxes"], torch.tensor([[40.0, 40.0, 60.0, 60.0]])])
        target["boxes"] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(64, 64))
        target["labels"] = torch.tensor([1, 1])
        target["iscrowd"] = torch.tensor([0, 1])
        return image, target


class KilledAt(Callback):
    def __init__(self, iteration: int) -> None:
        self.at = iteration

    def evaluation(self, run: Run, metrics: Any) -> None:
        if run.iteration == self.at:
            raise KeyboardInterrupt


def expected_losses(run: Path) -> dict[str, float]:
    """The losses of the last weights in training mode, with norms as in evaluation, an image at a time."""
    detector = load_detector(run)
    detector.load_state_dict(torch.load(run / "last.pt", weights_only=True)["model"])
    detector.train()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    sums: dict[str, float] = {}
    for index in range(len(Squares())):
        image, target = Squares()[index]
        torch.manual_seed(index)
        with torch.no_grad():
            losses = detector([image / 255], [{"boxes": target["boxes"], "labels": target["labels"]}])
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + float(value) / len(Squares())
    return sums


def test_they_are_the_detectors_and_change_nothing_of_the_training(tmp_path: Path) -> None:
    recipe = short_recipe(ema=None, evaluate_every=2)
    data: dict[str, Any] = {"train_dataset": Squares(), "val_dataset": WithCrowd(), "progress": False}
    train(recipe, tmp_path / "plain", **data)
    recipe.log.validation_losses = True
    train(recipe, tmp_path / "run", **data)
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "plain")
    lines = [line for line in lines_of(tmp_path / "run") if "val_loss" in line]
    assert [line["iteration"] for line in lines] == [2, 3]
    assert all("box_ap" in line for line in lines)
    expected = expected_losses(tmp_path / "run")
    assert len(expected) == 4
    assert lines[-1]["val_loss"] == pytest.approx(sum(expected.values()), rel=1e-4)
    for name, value in expected.items():
        assert lines[-1][f"val_{name}"] == pytest.approx(value, rel=1e-4), name
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "killed", callbacks=[KilledAt(2)], **data)
    train(recipe, tmp_path / "killed", resume=True, **data)
    assert_same_runs(tmp_path / "killed", tmp_path / "run")
