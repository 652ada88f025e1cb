"""Training by maskrcnn-benchmark's conventions."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vovnet.detection import distributed
from vovnet.detection.config.data import DataRecipe
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.config.parts import shown
from vovnet.detection.config.schema import Recipe
from vovnet.detection.config.solver import SolverRecipe
from vovnet.detection.data.collation import Batch
from vovnet.detection.data.datasets import checked
from vovnet.detection.data.loader import batch_loader
from vovnet.detection.data.protocol import DetectionDataset
from vovnet.detection.data.sampler import aspect_groups
from vovnet.detection.legacy.data import LegacyCocoDataset, legacy_train_transforms
from vovnet.detection.legacy.sampler import LegacyBatchStream
from vovnet.detection.training.optimizer import build_sgd, learning_rate_factor
from vovnet.detection.training.rules import TrainingRules
from vovnet.detection.training.run import Run
from vovnet.errors import InputError
from vovnet.terminal.streams import say


class LegacyRules(TrainingRules):
    """The reference's data, order of images, optimizer and schedule."""

    dataset_class = LegacyCocoDataset
    takes_transforms = False

    def check_training(self, recipe: Recipe, resume: bool) -> None:
        """Refuse what the reference cannot do, and a pretrained backbone without ``init``.

        timm's weights are for RGB images in 0..1. The reference starts from networks for BGR in 0..255;
        ``vovnet convert --input bgr255`` makes such a start of other weights.
        """
        legacy_train_transforms(recipe.data)
        _check_solver(recipe.solver)
        if recipe.log.validation_losses:
            raise InputError(
                "log.validation_losses: legacy conventions learn from polygons, which validation data does not have; "
                "expected false, got true"
            )
        if recipe.model.pretrained and recipe.init is None and not resume:
            raise InputError(_no_start(recipe.model))

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
        """Return batches in the reference's order.

        If an iteration has several passes, each pass of this process stands for one of the reference's GPUs.
        """
        dataset = checked(dataset)
        groups = aspect_groups(dataset) if data.aspect_ratio_groups else [0] * len(dataset)
        stream = LegacyBatchStream(
            groups, batch_size, seed=seed, rank=rank, world_size=world_size, start=start, stop=stop, passes=passes
        )
        transforms = legacy_train_transforms(data)
        return batch_loader(dataset, transforms, stream, workers=data.workers, timeout=data.timeout)

    def build_optimizer(self, model: nn.Module, solver: SolverRecipe, network: ModelRecipe | None = None) -> SGD:
        """Return SGD with momentum over every parameter that is trained, in up to two groups: weights, biases.

        Reference solver/build.py:7-20, which makes a group of each parameter and looks for "bias" in its name: norms'
        biases are biases, and norms' weights decay like any others.

        Raises:
            InputError: the recipe asks for another optimizer, or for groups of other parameters.
        """
        _check_solver(solver)
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        weights = [parameter for name, parameter in trained if name.rpartition(".")[2] != "bias"]
        biases = [parameter for name, parameter in trained if name.rpartition(".")[2] == "bias"]
        return build_sgd(solver, weights, biases)

    def build_schedule(self, updates: Optimizer, solver: SolverRecipe) -> LambdaLR:
        """Return the schedule as a torch scheduler, which is stepped once an iteration, after the update.

        The reference steps its own before the forward pass (engine/trainer.py:66), so its first update has the factor
        of 1 finished update, and so has ours. The factors are those of solver/lr_scheduler.py:39-52.
        """
        return LambdaLR(updates, lambda finished: learning_rate_factor(solver, finished + 1))

    def step(self, run: Run, batches: Sequence[Batch]) -> dict[str, float]:
        """Run one iteration, or skip it without update and schedule step if an image has no object.

        Reference engine/trainer.py:59-61. There each process decides for itself. Here all processes skip the iteration
        together, because otherwise they would wait for each other's gradients.
        """
        empty = [int(target["image_id"]) for _, targets in batches for target in targets if not len(target["boxes"])]
        if distributed.mean_over_processes(torch.tensor(float(len(empty)), device=run.device)) > 0:
            ids = [number for part in distributed.gather(empty) for number in part]
            run.iteration += 1
            if distributed.rank() == 0:
                say(f"iteration {run.iteration} left out: no object is on image {ids}")
            return {}
        return super().step(run, batches)


def _no_start(model: ModelRecipe) -> str:
    """Return what to say to a training without initial weights, with the way to some that can be downloaded today."""
    resnet = model.backbone.startswith("resnet")
    owner = "timm's " if resnet else "pytorchcv's " if model.backbone.startswith("vovnet") else ""
    file = f"{owner}weights of {model.backbone}"
    stride = " model.stride_in_1x1=false" if resnet and model.stride_in_1x1 is not False else ""
    return (
        f"init: conventions: legacy needs weights for BGR images in 0..255: convert {file} with `vovnet convert FILE "
        f"OUT --input bgr255` and give init=OUT{stride}, or convert the published backbone without --input "
        "(docs/how-to/reproduce.md has the addresses)"
    )


def _check_solver(solver: SolverRecipe) -> None:
    if solver.norm_weight_decay is not None:
        raise InputError(
            f"solver.norm_weight_decay: legacy conventions treat norms' weights like others; expected null, got "
            f"{solver.norm_weight_decay:g} (model.conventions=torchvision has it)"
        )
    plain = SolverRecipe()
    for key in ("optimizer", "optimizer_args", "layer_decay", "backbone_lr_factor"):
        if getattr(solver, key) != getattr(plain, key):
            raise InputError(
                f"solver.{key}: legacy conventions train with SGD alone, as maskrcnn-benchmark does; expected "
                f"{shown(getattr(plain, key))}, got {shown(getattr(solver, key))} "
                "(model.conventions=torchvision has it)"
            )
