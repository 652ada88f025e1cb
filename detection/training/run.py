"""A training run: its parts, and how they are saved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from vovnet.detection import distributed
from vovnet.detection.checkpoints.folder import save_detector
from vovnet.detection.config.loading import recipe_to_dict
from vovnet.detection.config.schema import Category, Recipe
from vovnet.detection.training.state import random_state, save_state

RUN_FILES = ("recipe.yaml", "metrics.jsonl", "last.pt", "best.pt", "model.safetensors", "config.json", "curves.png")


@dataclass
class Run:
    """The state of a training run; the training loop changes it, and callbacks receive it."""

    recipe: Recipe
    output: Path
    device: torch.device
    detector: nn.Module
    """The detector itself; its state dict is saved."""
    wrapped: nn.Module
    """The detector, or the DistributedDataParallel module around it."""
    categories: list[Category]
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    scaler: torch.amp.GradScaler
    ema: AveragedModel | None
    iteration: int = 0
    """Finished optimizer steps."""
    best: float = -math.inf
    """The best evaluation so far: mask AP for Mask R-CNN, otherwise box AP."""
    stop_signal: int = 0
    """The signal that asked this process to stop, or 0."""
    stopping: bool = False
    """True if all processes have agreed to stop after this iteration."""

    @property
    def last_lr(self) -> float:
        """The first parameter group's learning rate in the last update."""
        return float(self.schedule.base_lrs[0] * self.schedule.lr_lambdas[0](max(0, self.schedule.last_epoch - 1)))

    @property
    def eval_model(self) -> nn.Module:
        """The detector that is evaluated and published: the moving average if the recipe asks for one."""
        return self.detector if self.ema is None else self.ema.module


def save_run(run: Run) -> None:
    """Write ``last.pt``, and before the first evaluation also ``model.safetensors`` and ``config.json``."""
    states = distributed.gather(random_state())
    if distributed.rank() != 0:
        return
    save_state(
        run.output / "last.pt",
        {
            "recipe": recipe_to_dict(run.recipe),
            "categories": run.categories,
            "iteration": run.iteration,
            "best": run.best,
            "model": run.detector.state_dict(),
            "ema": None if run.ema is None else run.ema.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "schedule": {"last_epoch": run.schedule.last_epoch},
            "scaler": run.scaler.state_dict(),
            "random": states,
            "processes": distributed.world_size(),
        },
    )
    if run.best == -math.inf:
        publish(run)


def save_if_best(run: Run, score: float, metrics: Mapping[str, Any]) -> bool:
    """If no earlier score was as good, write the weights to ``best.pt``, publish them and return True."""
    if not score > run.best:
        return False
    run.best = score
    if distributed.rank() == 0:
        save_state(
            run.output / "best.pt",
            {
                "recipe": recipe_to_dict(run.recipe),
                "categories": run.categories,
                "iteration": run.iteration,
                "metrics": dict(metrics),
                "model": run.eval_model.state_dict(),
            },
        )
        publish(run)
    return True


def publish(run: Run) -> None:
    """Write ``model.safetensors`` and ``config.json``, so that ``load_detector`` reads the run's folder."""
    save_detector(run.output, run.eval_model, run.recipe.model, run.categories)
