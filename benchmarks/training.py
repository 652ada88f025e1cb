"""Training images/s: our step, and torchvision's detector built by hand over timm's ``vovnet39a``.

    python -m benchmarks.training [--detector KIND]

Ours is what ``vovnet train`` runs: the recipe's detector, put together by ``training.preparation.prepare``
(channels-last weights among the rest) and stepped by ``training.iteration.step``. Theirs is what a user would write
with timm and torchvision, stepped by the loop of torchvision's references. Both have the same parameters, norms,
images, targets, optimizer and warm-up. Neither resizes in the step: ours does that in the loader, so theirs is spared
it too.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from benchmarks.batches import CLASSES, Batch, make_batch, wait
from benchmarks.common import Ratio, environment, positive, speed_ratio, throughput_table, timed
from vovnet.detection.checkpoints.folder import save_detector
from vovnet.detection.config.categories import Category
from vovnet.detection.config.detectors import DETECTORS
from vovnet.detection.config.loading import load_recipe
from vovnet.detection.config.schema import Recipe
from vovnet.detection.models.build import build_detector
from vovnet.detection.training.iteration import model_targets, step
from vovnet.detection.training.preparation import prepare
from vovnet.detection.training.rules import rules_of
from vovnet.detection.training.run import Run
from vovnet.timing.rounds import interleave

GOAL = 1.0
OURS, HAND = "vovnet", "torchvision over timm"
KEYPOINTS = 17
"""Keypoints of an object, as COCO's persons have."""

Loop = Callable[[Batch], dict[str, float]]


def recipe_for(detector: str, batch_size: int, min_size: int, max_size: int, norm: str = "frozen_bn") -> Recipe:
    """The recipe that the package ships for VoVNet-39, at other sizes."""
    return load_recipe(
        f"{detector}_vovnet39_fpn",
        [
            f"model.norm={norm}",
            f"model.min_size={min_size}",
            f"model.max_size={max_size}",
            f"data.train_min_sizes=[{min_size}]",
            f"data.train_max_size={max_size}",
            f"solver.batch_size={batch_size}",
        ],
    )


def build_ours(recipe: Recipe, categories: int, device: torch.device) -> Run:
    """Return a run as ``vovnet train`` prepares it, with random weights instead of pretrained ones.

    Speed does not depend on the weights, so nothing is downloaded. A detector with random weights and frozen norms is
    saved, and the run starts from it (``init``).
    """
    named = [Category(id=number, name=f"class {number}") for number in range(1, categories + 1)]
    model = replace(recipe.model, num_classes=categories)
    if DETECTORS[recipe.model.detector].needs_keypoints:
        model = replace(model, num_keypoints=KEYPOINTS)
        for category in named:
            category["keypoints"] = [f"point {number}" for number in range(KEYPOINTS)]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        torch.manual_seed(0)
        save_detector(folder, build_detector(model, download=False), model, named)
        return prepare(replace(recipe, init=folder), rules_of(recipe.model), Path(folder), device, named, resume=False)


class HandBackbone(nn.Module):
    """timm's feature extractor with torchvision's FPN, in as few lines as possible."""

    def __init__(self, residual: bool, frozen: bool, one_stage: bool) -> None:
        super().__init__()
        levels = (2, 3, 4) if one_stage else (1, 2, 3, 4)
        body: Any = timm.create_model("vovnet39a", features_only=True, out_indices=levels, residual=residual)
        self.body = freeze_batch_norm_2d(body) if frozen else body
        extra = LastLevelP6P7(256, 256) if one_stage else LastLevelMaxPool()
        self.fpn = FeaturePyramidNetwork(body.feature_info.channels(), 256, extra)
        self.out_channels = 256

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.fpn({str(level): feature for level, feature in enumerate(self.body(images))})


def build_by_hand(run: Run, *, residual: bool) -> nn.Module:
    """Return torchvision's detector over timm's ``vovnet39a``, with the parameters that ``run`` starts from.

    Args:
        run: our run; its sizes and weights are used.
        residual: give ``vovnet39a`` the identity that it lacks, so that both networks compute the same.
    """
    model = run.recipe.model
    kind = DETECTORS[model.detector]
    backbone = HandBackbone(residual, model.norm == "frozen_bn", kind.one_stage)
    arguments = {"min_size": model.min_size, "max_size": model.max_size, "_skip_resize": True}
    if kind.needs_keypoints:
        arguments["num_keypoints"] = KEYPOINTS
    detector: nn.Module = getattr(detection, kind.torchvision)(backbone, len(run.categories) + 1, **arguments)
    detector.load_state_dict(run.detector.state_dict())
    return detector.to(run.device)


def loop_by_hand(detector: nn.Module, recipe: Recipe, device: torch.device) -> Loop:
    """Return the step of torchvision's ``train_one_epoch`` (references/detection/engine.py), with one learning rate."""
    solver = recipe.solver
    optimizer = torch.optim.SGD(
        [parameter for parameter in detector.parameters() if parameter.requires_grad],
        lr=solver.base_lr * solver.batch_size / solver.reference_batch_size,
        momentum=solver.momentum,
        weight_decay=solver.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, solver.warmup_factor, total_iters=solver.warmup_iterations)
    detector.train()

    def one(batch: Batch) -> dict[str, float]:
        images = [image.to(device).float() / 255 for image in batch[0]]
        targets = [{key: value.to(device) for key, value in model_targets(target).items()} for target in batch[1]]
        losses = detector(images, targets)
        loss = sum(losses.values())
        total = loss.item()
        if not math.isfinite(total):
            raise ArithmeticError(f"the loss of the detector built by hand is {total}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        return {"loss": total, **{name: value.item() for name, value in losses.items()}}

    return one


def contestant(loop: Loop, options: argparse.Namespace) -> Callable[[int], float]:
    """Return a function of a round's number that returns the seconds of a step."""
    device, kind = torch.device(options.device), DETECTORS[options.detector]

    def one_round(number: int) -> float:
        batch = make_batch(
            number % 2**31,
            size=options.size,
            images=options.batch_size,
            objects=options.objects,
            masks=kind.needs_masks,
            keypoints=KEYPOINTS if kind.needs_keypoints else 0,
        )

        def work() -> None:
            loop(batch)
            wait(device)

        wait(device)
        return timed(work)

    return one_round


def compare(options: argparse.Namespace) -> Ratio:
    """Run the benchmark, print its table, and return the ratio."""
    height, width = options.size
    device = torch.device(options.device)
    recipe = recipe_for(options.detector, options.batch_size, min(height, width), max(height, width), options.norm)
    recipe.solver.channels_last = options.channels_last != "none"
    run = build_ours(recipe, CLASSES, device)
    hand = build_by_hand(run, residual=options.residual)
    if options.channels_last == "both":
        hand.to(memory_format=torch.channels_last)
    contestants = {
        OURS: contestant(lambda batch: step(run, [batch]), options),
        HAND: contestant(loop_by_hand(hand, recipe, device), options),
    }
    seconds = interleave(contestants, options.rounds, warmup=options.warmup)
    images = dict.fromkeys(seconds, options.batch_size)
    ratio = speed_ratio(seconds, images, OURS, HAND, GOAL)
    print(
        f"\ntraining step of {DETECTORS[options.detector].title}, {options.batch_size} x {height}x{width} "
        f"pixels, {options.norm}, by hand over vovnet39a{' with residual=True' if options.residual else ''}, "
        f"channels-last weights: {options.channels_last}\n{throughput_table(seconds, images)}\n{ratio}"
    )
    return ratio


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.training", description=(__doc__ or "").split("\n")[0])
    options.add_argument("--detector", choices=list(DETECTORS), default="faster_rcnn")
    options.add_argument("--size", type=positive, nargs=2, default=[320, 416], metavar=("HEIGHT", "WIDTH"))
    options.add_argument("--batch-size", type=positive, default=2)
    options.add_argument("--rounds", type=positive, default=8, help="pairs of steps that are measured")
    options.add_argument("--warmup", type=int, default=2, help="pairs before them")
    options.add_argument("--objects", type=positive, default=8, help="objects on an image")
    options.add_argument("--norm", choices=["frozen_bn", "bn"], default="frozen_bn", help="norms of both backbones")
    options.add_argument("--residual", action="store_true", help="timm's vovnet39a with the identity that it lacks")
    options.add_argument(
        "--channels-last",
        choices=["ours", "both", "none"],
        default="ours",
        help="whose weights are channels-last; in `vovnet train` they are by default",
    )
    options.add_argument("--device", default="cpu")
    options.add_argument("--threads", type=positive, help="torch threads; by default torch's own choice")
    return options


def main(arguments: Sequence[str] | None = None) -> Ratio:
    """Parse the command line and run."""
    options = parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    print(environment("vovnet", "torch", "torchvision", "timm", threads=torch.get_num_threads()))
    return compare(options)


if __name__ == "__main__":
    main()
