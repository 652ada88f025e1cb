"""Values of a recipe that the right type does not rule out. The model part is checked where the detector is built."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vovnet.errors import InputError

if TYPE_CHECKING:
    from vovnet.detection.config.schema import DataRecipe, LogRecipe, Recipe, SolverRecipe


def check_recipe(recipe: Recipe) -> None:
    """Refuse what cannot work.

    Raises:
        InputError: the message names the key, what was expected and what stands there.
    """
    _check_solver(recipe.solver)
    _check_data(recipe.data)
    _check_log(recipe.log)


def _check_solver(solver: SolverRecipe) -> None:
    _one_of("solver.schedule", solver.schedule, ("steps", "cosine"))
    _one_of("solver.amp", solver.amp, ("none", "auto", "bf16", "fp16"))
    _one_of("solver.memory", solver.memory, ("plain", "normal", "low"))
    for name in ("max_iterations", "batch_size", "reference_batch_size", "accumulate"):
        _at_least(f"solver.{name}", getattr(solver, name), 1)
    for name in ("warmup_iterations", "seed", "base_lr", "gamma", "weight_decay", "bias_lr_factor"):
        _at_least(f"solver.{name}", getattr(solver, name), 0)
    for name in ("norm_weight_decay", "bias_weight_decay"):
        _at_least(f"solver.{name}", getattr(solver, name) or 0, 0)
    for name in ("momentum", "warmup_factor", "ema"):
        _share(f"solver.{name}", getattr(solver, name) or 0)
    if solver.nesterov and not solver.momentum:
        raise InputError("solver.nesterov: expected a solver.momentum above 0 with it, got 0")
    if solver.clip_grad_norm is not None and not solver.clip_grad_norm > 0:
        raise InputError(f"solver.clip_grad_norm: expected a number above 0 or null, got {solver.clip_grad_norm}")
    if any(later <= earlier for earlier, later in zip(solver.steps, solver.steps[1:], strict=False)):
        raise InputError(f"solver.steps: expected rising iterations, got {solver.steps}")


def _check_data(data: DataRecipe) -> None:
    _at_least("data.workers", data.workers, 0)
    _at_least("data.train_max_size", data.train_max_size, 1)
    for name in ("flip", "vertical_flip", "colour"):
        _share(f"data.{name}", getattr(data, name))
    if not data.train_min_sizes or min(data.train_min_sizes) < 1:
        raise InputError(f"data.train_min_sizes: expected one or more sizes above 0, got {data.train_min_sizes}")
    if data.scale_jitter is not None and not (
        len(data.scale_jitter) == 2 and 0 < data.scale_jitter[0] <= data.scale_jitter[1]
    ):
        raise InputError(f"data.scale_jitter: expected [low, high] with 0 < low <= high, got {data.scale_jitter}")


def _check_log(log: LogRecipe) -> None:
    _at_least("log.log_every", log.log_every, 1)
    _at_least("log.evaluate_every", log.evaluate_every, 0)
    _at_least("log.checkpoint_every", log.checkpoint_every, 1)


def _one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{key}: expected one of {', '.join(choices)}, got '{value}'")


def _at_least(key: str, value: float, low: float) -> None:
    # Written so that NaN is refused too.
    if not low <= value < math.inf:
        raise InputError(f"{key}: expected at least {low}, got {value}")


def _share(key: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InputError(f"{key}: expected a number from 0 to 1, got {value}")
