"""A whole recipe: everything that decides a training run, as typed data with bounds.

Its parts are in ``model.py``, ``data.py`` and ``solver.py``; ``log`` and the keys outside of every part are here. The
fields are the only place that names a key, its type, its default and its bounds. The tables of
docs/reference/recipes.md and the JSON Schema for editors are generated from them (tests/helpers/recipe_reference.py).
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from vovnet.detection.config.data import DataRecipe
from vovnet.detection.config.fields import MAX_ITERATIONS, Backend, Flag, Integer, Iteration, Number, PathText
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.config.parts import recipe_part
from vovnet.detection.config.solver import SolverRecipe


@recipe_part("log")
class LogRecipe:
    """When a run writes what."""

    log_every: Integer = Field(default=20, ge=1, le=MAX_ITERATIONS)
    """Iterations between two lines of losses."""
    evaluate_every: Iteration = 5000
    """Iterations between two evaluations. There is always one at the end; 0 means only that one."""
    evaluate_epochs: Annotated[Number, Field(gt=0, le=100_000)] | None = None
    """The same in epochs, in place of ``evaluate_every``; ``recipe.yaml`` has it as iterations."""
    evaluate_backend: Backend = "pycocotools"
    """Program that computes COCO's numbers: ``pycocotools``, or ``faster`` (faster-coco-eval, an extra), which gives
    the same ones sooner."""
    validation_losses: Flag = False
    """Compute the losses on the validation data at each evaluation, too: ``val_loss`` and its parts."""
    checkpoint_every: Integer = Field(default=1000, ge=1, le=MAX_ITERATIONS)
    """Iterations between two writes of ``last.pt``."""
    checkpoint_minutes: Number = Field(default=5.0, ge=0, le=1e6)
    """Minutes after which ``last.pt`` is written even so; 0 writes it by ``checkpoint_every`` alone."""
    loggers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] | None = None
    """Programs that get the numbers as well, such as ``[tensorboard, wandb]``; null is TensorBoard if it is installed,
    and ``[]`` is none."""


@recipe_part("")
class Recipe:
    """A whole training run."""

    model: ModelRecipe = field(default_factory=ModelRecipe)
    """The detector."""
    data: DataRecipe = field(default_factory=DataRecipe)
    """The data for training and evaluation."""
    solver: SolverRecipe = field(default_factory=SolverRecipe)
    """Length, learning rate and optimizer."""
    log: LogRecipe = field(default_factory=LogRecipe)
    """When a run writes what."""
    init: PathText | None = None
    """Weights to start from: a detector's folder or Hub name, or ``torchvision:NAME``, whose network the recipe then
    takes; predictors for another number of classes start anew and are listed. Or a backbone's folder in timm's form, as
    ``vovnet convert`` writes it (docs/how-to/reproduce.md), where everything but the backbone starts anew."""
