"""maskrcnn-benchmark's conventions, gathered for building and training."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from vovnet.detection import distributed
from vovnet.detection.config.schema import DataRecipe, Recipe
from vovnet.detection.data.loader import Batch, batch_loader
from vovnet.detection.data.sampler import aspect_groups
from vovnet.detection.legacy.data import LegacyCocoDataset, legacy_train_transforms
from vovnet.detection.legacy.detectors import build_legacy_detector
from vovnet.detection.legacy.published_file import read_published
from vovnet.detection.legacy.sampler import LegacyBatchStream
from vovnet.detection.legacy.solver import build_legacy_optimizer, build_legacy_schedule, check_legacy_solver
from vovnet.detection.training import engine
from vovnet.detection.training.rules import Conventions
from vovnet.detection.training.run import Run
from vovnet.errors import InputError


def legacy_training_batches(
    dataset: Any,
    data: DataRecipe,
    *,
    batch_size: int,
    passes: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
) -> Iterator[Batch]:
    """Batches in the reference's order; one process with several passes an iteration plays as many of its GPUs.

    Arguments as for :func:`vovnet.detection.data.loader.training_loader`; ``passes`` is how many batches an iteration
    takes in this process.
    """
    groups = aspect_groups(dataset) if data.aspect_ratio_groups else [0] * len(dataset)
    stream = LegacyBatchStream(
        groups, batch_size, seed=seed, rank=rank, world_size=world_size, start=start, passes=passes
    )
    return batch_loader(dataset, legacy_train_transforms(data), stream, workers=data.workers)


def check_legacy_training(recipe: Recipe, resume: bool) -> None:
    """Refuse what the reference cannot do, and a pretrained backbone without ``init``.

    timm's weights are for other images and other strides: the reference starts from networks trained on BGR in 0..255
    and, for ResNets, with strides in the 1×1.
    """
    legacy_train_transforms(recipe.data)
    check_legacy_solver(recipe.solver)
    if recipe.model.pretrained and recipe.init is None and not resume:
        raise InputError(
            "init: conventions: legacy needs the published ImageNet backbone (or a detector); convert it with "
            "`vovnet convert FILE FOLDER` and give init=FOLDER (docs/reproduce.md)"
        )


def legacy_step(run: Run, batches: Sequence[Batch]) -> dict[str, float]:
    """One iteration, or none: where an image has no object the iteration passes without update or schedule step.

    Reference engine/trainer.py:59-61. There each process decides for itself; here all leave the iteration out
    together, because they would otherwise wait for each other's gradients.
    """
    empty = [int(target["image_id"]) for _, targets in batches for target in targets if not len(target["boxes"])]
    if distributed.mean_over_processes(torch.tensor(float(len(empty)), device=run.device)) > 0:
        ids = [number for part in distributed.gather(empty) for number in part]
        run.iteration += 1
        if distributed.rank() == 0:
            print(f"iteration {run.iteration} left out: no object is on image {ids}", file=sys.stderr)
        return {}
    return engine.step(run, batches)


CONVENTIONS = Conventions(
    build_detector=build_legacy_detector,
    check_training=check_legacy_training,
    category_names=False,  # a published file holds none: reference datasets/coco.py:59-64 counts ids
    channel_order="bgr",
    value_range=(0, 255),
    training_data=LegacyCocoDataset,
    training_batches=legacy_training_batches,
    build_optimizer=build_legacy_optimizer,
    build_schedule=build_legacy_schedule,
    step=legacy_step,
    read_published=read_published,
)
