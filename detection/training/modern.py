"""torchvision's conventions: the rules of every recipe that names no others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vovnet.detection.config.schema import Recipe
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.data.loader import Batch, training_loader
from vovnet.detection.models.assembly import build_modern_detector
from vovnet.detection.training import engine, optimizer
from vovnet.detection.training.rules import Conventions


def _batches(*args: Any, passes: int, **kwargs: Any) -> Iterator[Batch]:
    """Every batch is like any other, whichever of an iteration's passes it is for."""
    return training_loader(*args, **kwargs)


def _any_training(recipe: Recipe, resume: bool) -> None:
    """Whatever a recipe can say is good; its values are checked as they are used."""


CONVENTIONS = Conventions(
    build_detector=build_modern_detector,
    check_training=_any_training,
    category_names=True,
    channel_order="rgb",
    value_range=(0, 1),
    training_data=CocoDataset,
    training_batches=_batches,
    build_optimizer=optimizer.build_optimizer,
    build_schedule=optimizer.build_schedule,
    step=engine.step,
)
