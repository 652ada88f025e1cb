"""How long a run is: epochs and fractions as iterations, and a limit of time in seconds."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from vovnet.detection.config.parts import shown
from vovnet.detection.config.schema import Recipe
from vovnet.detection.config.solver import SolverRecipe
from vovnet.errors import InputError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


def with_iterations(recipe: Recipe, images: int) -> Recipe:
    """Return the recipe with its length, steps and evaluations in iterations, so that recipe.yaml repeats the run.

    Args:
        recipe: may count in epochs.
        images: the number of training images; each is in an epoch once.

    Raises:
        InputError: a step is not within the length, or is neither a whole iteration nor a fraction.
    """
    solver, log = recipe.solver, recipe.log
    one = images / solver.batch_size
    length = solver.max_iterations if solver.epochs is None else max(1, math.ceil(solver.epochs * one))
    every = log.evaluate_every
    if log.evaluate_epochs is not None:
        every = max(1, round(log.evaluate_epochs * one))
    by_steps = solver.schedule == "steps"
    steps: list[float] = [_iteration(step, solver, length, one) for step in solver.steps] if by_steps else solver.steps
    if steps == solver.steps and solver.epochs is None and log.evaluate_epochs is None:
        return recipe
    return replace(
        recipe,
        solver=replace(solver, epochs=None, max_iterations=length, steps=steps),
        log=replace(log, evaluate_epochs=None, evaluate_every=every),
    )


def _iteration(step: float, solver: SolverRecipe, length: int, epoch: float) -> int:
    if 0 < step < 1:
        return round(step * length)
    if solver.epochs is None:
        if step != int(step):
            raise InputError(f"solver.steps: expected iterations, or fractions of the length, got {step}")
        return int(step)
    if step > solver.epochs:
        raise InputError(
            f"solver.steps: with solver.epochs={solver.epochs:g} they are epochs, or fractions below 1 of the length; "
            f"expected at most {solver.epochs:g}, got {shown(step)}; try 'solver.steps=[0.67, 0.89]'"
        )
    return round(step * epoch)


def seconds_of(text: str) -> float:
    """Return the seconds of a duration such as ``2h``, ``1h30m``, ``90m``, ``1.5d`` or ``300``.

    Raises:
        InputError: the text is no duration above 0.
    """
    found = _DURATION.fullmatch(text.strip().lower())
    parts = found.groups() if found else ()
    seconds = sum(float(part) * _UNITS[unit] for part, unit in zip(parts, "dhms", strict=False) if part)
    if not 0 < seconds < math.inf:
        raise InputError(f"--time-limit: expected a duration such as 2h, 90m, 1h30m or 300 (seconds), got {text!r}")
    return seconds
