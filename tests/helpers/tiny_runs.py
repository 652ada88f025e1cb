"""Training runs of a second: a recipe and a dataset that need no file, and the comparison of two runs' files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torchvision import tv_tensors

from vovnet.detection.config.data import DataRecipe
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.config.schema import LogRecipe, Recipe
from vovnet.detection.config.solver import SolverRecipe
from vovnet.detection.training.metrics_log import MEASURED


class Squares:
    """A dataset that follows the protocol: one bright square in each image."""

    categories = ({"id": 7, "name": "square"},)
    count = 4

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, dict[str, Any]]:
        pixels = torch.zeros(3, 64, 64, dtype=torch.uint8)
        left = 4 * index
        pixels[:, 10:42, left : left + 32] = 200
        boxes = torch.tensor([[left, 10, left + 32, 42]], dtype=torch.float32)
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(64, 64)),
            "labels": torch.tensor([1]),
            "image_id": 100 + index,
        }
        return tv_tensors.Image(pixels), target


def tiny_model(backbone: str, **settings: Any) -> ModelRecipe:
    """A Faster R-CNN that computes little, for images of 64 pixels."""
    return ModelRecipe(
        backbone=backbone,
        fpn_channels=8,
        min_size=64,
        max_size=64,
        box_representation_size=16,
        rpn_pre_nms_top_n_train=50,
        rpn_post_nms_top_n_train=20,
        rpn_pre_nms_top_n_test=50,
        rpn_post_nms_top_n_test=20,
        box_batch_size_per_image=8,
        **settings,
    )


def short_recipe(*, evaluate_every: int = 1, checkpoint_every: int = 100, **solver: Any) -> Recipe:
    """A recipe of three iterations of a network that timm keeps for tests."""
    settings = {"base_lr": 0.01, "batch_size": 2, "reference_batch_size": 2, "max_iterations": 3, "steps": []}
    return Recipe(
        model=tiny_model("test_resnet", box_score_thresh=0.0),
        data=DataRecipe(train_min_sizes=[56, 64], train_max_size=64, colour=0.2, workers=0),
        solver=SolverRecipe(**{**settings, "warmup_iterations": 0, "ema": 0.5, **solver}),
        log=LogRecipe(log_every=1, evaluate_every=evaluate_every, checkpoint_every=checkpoint_every),
    )


def assert_same_runs(run: Path, unbroken: Path) -> None:
    """Compare two runs, of which one was stopped and resumed: all files but the curves and the times are the same."""
    assert lines_of(run) == lines_of(unbroken), "metrics.jsonl"
    for name in ("config.json", "recipe.yaml"):
        assert (run / name).read_bytes() == (unbroken / name).read_bytes(), name
    # The order of entries in a safetensors header is random.
    _assert_same(load_file(run / "model.safetensors"), load_file(unbroken / "model.safetensors"), "model.safetensors")
    for name in ("last.pt", "best.pt"):
        assert (run / name).exists() == (unbroken / name).exists(), name
        if (unbroken / name).exists():
            _assert_same(_loaded(run / name), _loaded(unbroken / name), name)
    assert not list(run.glob(".tmp-*"))


def lines_of(run: Path) -> list[dict[str, Any]]:
    """The objects of ``metrics.jsonl`` without what was measured: times, speed and memory."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def losses_of(run: Path) -> list[dict[str, Any]]:
    """The lines of losses among :func:`lines_of`."""
    return [line for line in lines_of(run) if "loss" in line]


def _loaded(path: Path) -> Any:
    state = torch.load(path, weights_only=True)
    state.pop("seconds", None)
    return state


def _assert_same(one: Any, other: Any, where: str) -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            _assert_same(one[key], other[key], f"{where}: {key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for position, (left, right) in enumerate(zip(one, other, strict=True)):
            _assert_same(left, right, f"{where}: {position}")
    else:
        assert one == other, where
