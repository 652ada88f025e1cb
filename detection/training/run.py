"""A training run: its parts, and how they are saved."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from vovnet.detection import distributed
from vovnet.detection.checkpoints.folder import save_detector
from vovnet.detection.config.categories import Category
from vovnet.detection.config.loading import recipe_to_dict
from vovnet.detection.config.schema import Recipe
from vovnet.detection.training.state import random_state, save_state

RUN_FILES = (
    *("recipe.yaml", "environment.json", "metrics.jsonl", "curves.png"),
    *("last.pt", "best.pt", "model.safetensors", "config.json"),
)

TIME_IS_UP = 1000
"""Stands for a signal in :attr:`Run.stop_signal` when the time limit is over; no signal has such a number."""


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
    transforms: str | None = None
    """The name of the user's own transforms."""
    iteration: int = 0
    """Finished optimizer steps."""
    best: float = -math.inf
    """The best evaluation so far: mask AP for Mask R-CNN, otherwise box AP."""
    evaluates: bool = True
    """False if there is no validation data."""
    evaluated: int = 0
    """The iteration of the last evaluation that was finished."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """The metrics of that evaluation, as :func:`vovnet.detection.evaluate` returns them."""
    reference: float = -math.inf
    """The score that a better evaluation exceeds by ``solver.min_delta``."""
    stale: int = 0
    """Evaluations since then."""
    saved: int = 0
    """The iteration of ``last.pt``; 0 if there is none."""
    saved_at: float = field(default_factory=time.monotonic)
    """When it was written, or when the run began, in seconds of :func:`time.monotonic`."""
    saving: bool = False
    """True if all processes have agreed to write ``last.pt`` after this iteration, because the last is too old."""
    loggers: dict[str, dict[str, str]] = field(default_factory=dict)
    """What names this run's records in the loggers: the logger's name → an id and the like, for a resumed run."""
    seconds_before: float = 0.0
    """How long the run took until ``last.pt`` was written, if it is resumed."""
    began: float = field(default_factory=lambda: time.monotonic())
    """When this process began to train, in seconds of :func:`time.monotonic`."""
    median_object: float | None = None
    """The median side in pixels of the training data's objects, if it is known."""
    median_image: tuple[float, float] | None = None
    """The median height and width in pixels of its images, if they are known."""
    deadline: float = math.inf
    """When the run stops for lack of time, in seconds of :func:`time.monotonic`."""
    stop_signal: int = 0
    """The signal that asked this process to stop, :data:`TIME_IS_UP`, or 0."""
    stopping: bool = False
    """True if all processes have agreed to stop after this iteration."""

    @property
    def seconds(self) -> float:
        """How long the run has taken, with its evaluations, in seconds; of a resumed run, all its parts together."""
        return self.seconds_before + time.monotonic() - self.began

    @property
    def evaluation_due(self) -> bool:
        """True if the recipe asks for an evaluation after this iteration, and it has not been finished."""
        every = self.recipe.log.evaluate_every
        asked = self.at_end or (every > 0 and self.iteration % every == 0)
        return self.evaluates and asked and self.iteration > self.evaluated

    @property
    def at_end(self) -> bool:
        """True after the last iteration, and when the run ends early."""
        return self.iteration >= self.recipe.solver.max_iterations or self.exhausted

    @property
    def exhausted(self) -> bool:
        """True if the last ``solver.patience`` evaluations were no better than one before."""
        patience = self.recipe.solver.patience
        return patience is not None and self.stale >= patience

    def note_time(self) -> None:
        """Ask this process to stop if its time is up."""
        if not self.stop_signal and time.monotonic() >= self.deadline:
            self.stop_signal = TIME_IS_UP

    @property
    def checkpoint_due(self) -> bool:
        """True if ``last.pt`` is to be written after this iteration."""
        regular = self.iteration % self.recipe.log.checkpoint_every == 0
        # Before an evaluation, so that neither an error in it nor a kill loses work, and resuming repeats it.
        return regular or self.saving or self.stopping or self.at_end or self.evaluation_due

    @property
    def checkpoint_is_old(self) -> bool:
        """True if this process wrote no checkpoint for ``log.checkpoint_minutes``."""
        minutes = self.recipe.log.checkpoint_minutes
        return minutes > 0 and time.monotonic() - self.saved_at >= 60 * minutes

    @property
    def last_lr(self) -> float:
        """The first parameter group's learning rate in the last update."""
        return float(self.schedule.base_lrs[0] * self.schedule.lr_lambdas[0](max(0, self.schedule.last_epoch - 1)))

    @property
    def eval_model(self) -> nn.Module:
        """The detector that is evaluated and published: the moving average if the recipe asks for one."""
        return self.detector if self.ema is None else self.ema.module


@distributed.patience()
def save_run(run: Run) -> None:
    """Write ``last.pt``, and before the first evaluation also ``model.safetensors`` and ``config.json``."""
    states = distributed.gather(random_state())
    if distributed.rank() == 0:
        _write(run, states)
    run.saved, run.saved_at, run.saving = run.iteration, time.monotonic(), False


def _write(run: Run, states: Sequence[Mapping[str, Any]]) -> None:
    save_state(
        run.output / "last.pt",
        {
            "recipe": recipe_to_dict(run.recipe),
            "categories": run.categories,
            "transforms": run.transforms,
            "iteration": run.iteration,
            "best": run.best,
            "evaluated": run.evaluated,
            "reference": run.reference,
            "stale": run.stale,
            "seconds": run.seconds,
            "loggers": {name: dict(names) for name, names in run.loggers.items()},
            "metrics": run.metrics,
            "model": run.detector.state_dict(),
            "ema": None if run.ema is None else run.ema.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "schedule": {"last_epoch": run.schedule.last_epoch},
            "scaler": run.scaler.state_dict(),
            "random": list(states),
            "processes": distributed.world_size(),
        },
    )
    if run.best == -math.inf:
        publish(run)


@distributed.patience()
def save_if_best(run: Run, score: float) -> None:
    """If no earlier score was as good, write the weights that were evaluated to ``best.pt`` and publish them.

    Scores that are not better are counted for ``solver.patience``.
    """
    if score > run.reference + run.recipe.solver.min_delta:
        run.reference, run.stale = score, 0
    else:
        run.stale += 1
    if not score > run.best:
        return
    run.best = score
    if distributed.rank() == 0:
        save_state(
            run.output / "best.pt",
            {
                "recipe": recipe_to_dict(run.recipe),
                "categories": run.categories,
                "iteration": run.iteration,
                "metrics": run.metrics,
                "model": run.eval_model.state_dict(),
            },
        )
        publish(run)


def publish(run: Run) -> None:
    """Write ``model.safetensors`` and ``config.json``, so that ``load_detector`` reads the run's folder."""
    recipe = run.recipe
    sizes = run.median_object, run.median_image, recipe.data.crop
    save_detector(run.output, run.eval_model, recipe.model, run.categories, *sizes)
