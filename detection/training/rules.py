"""How a detector is trained: torchvision's rules, and which rules a recipe's ``model.conventions`` stands for."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vovnet.adapters.layers import ParameterFacts, parameter_facts
from vovnet.detection.config.data import DataRecipe
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.config.schema import Recipe
from vovnet.detection.config.solver import SolverRecipe
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.data.collation import Batch
from vovnet.detection.data.loader import training_loader
from vovnet.detection.data.protocol import DetectionDataset
from vovnet.detection.training import optimizer
from vovnet.detection.training.iteration import step
from vovnet.detection.training.run import Run
from vovnet.detection.training.timm_optimizer import check_optimizer
from vovnet.errors import InputError


class TrainingRules:
    """torchvision's rules. A subclass overrides the steps in which its conventions differ."""

    dataset_class: type[CocoDataset] = CocoDataset
    """Reads the training data of a recipe."""
    takes_transforms: bool = True
    """True if transforms of the user's own can come before those of the recipe."""

    def check_training(self, recipe: Recipe, resume: bool) -> None:
        """Refuse a recipe that these rules cannot train.

        Raises:
            InputError: a value of the recipe has no counterpart in these rules.
        """
        check_optimizer(recipe.solver)

    def training_batches(
        self,
        dataset: DetectionDataset,
        data: DataRecipe,
        *,
        batch_size: int,
        passes: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        stop: int | None = None,
    ) -> Generator[Batch]:
        """Return the batches of a run; closing the generator ends its loader processes.

        Args:
            dataset: follows the protocol of :mod:`vovnet.detection.data`.
            data: transforms, workers, and whether the images of a batch have similar aspect ratios.
            batch_size: images per batch.
            passes: batches that this process takes in each iteration.
            seed: seed of the order and of the transforms.
            rank: rank of this process.
            world_size: number of processes.
            start: number of batches that this process has had before, in a resumed run.
            stop: number of batches, counted from 0, after which there are no more; None never ends.
        """
        return training_loader(
            dataset, data, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size, start=start, stop=stop
        )

    def build_optimizer(self, model: nn.Module, solver: SolverRecipe, network: ModelRecipe | None = None) -> Optimizer:
        """Return the optimizer over every parameter that is trained.

        Args:
            model: the detector.
            solver: names the optimizer.
            network: the recipe of the detector, for optimizers that treat parts of the backbone differently.
        """
        facts = None
        if network is not None and (solver.optimizer != "sgd" or solver.layer_decay is not None):
            facts = _backbone_facts(model, solver, network)
        return optimizer.build_optimizer(model, solver, facts)

    def build_schedule(self, updates: Optimizer, solver: SolverRecipe) -> LambdaLR:
        """Return the learning-rate schedule, which is stepped once an iteration, after the update."""
        return optimizer.build_schedule(updates, solver)

    def step(self, run: Run, batches: Sequence[Batch]) -> dict[str, float]:
        """Run one iteration and return its losses, or nothing if the iteration was skipped."""
        return step(run, batches)


def _backbone_facts(model: nn.Module, solver: SolverRecipe, network: ModelRecipe) -> ParameterFacts:
    body: nn.Module = model.backbone.body  # type: ignore[union-attr, assignment]
    try:
        facts = parameter_facts(body, network.backbone, network.backbone_args)
    except InputError as error:
        raise InputError(f"model.{error}") from error
    if solver.layer_decay is not None and not facts.layers:
        raise InputError(
            f"solver.layer_decay: timm's {network.backbone} has no group_matcher, which would say which layer a "
            "parameter belongs to; expected null (solver.backbone_lr_factor works with every backbone)"
        )
    return facts


RULES: dict[str, Callable[[], TrainingRules]] = {"torchvision": TrainingRules}
"""Training rules by name of conventions. ``vovnet/detection/__init__.py`` adds those of ``legacy``."""


def rules_of(model: ModelRecipe) -> TrainingRules:
    """Return the rules that ``model.conventions`` names."""
    return RULES[model.conventions]()
