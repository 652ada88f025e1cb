"""Prepare a training run: build its parts, whose state :mod:`.resuming` restores from ``last.pt``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import PARAM_LIST as ParamList
from torch.optim.swa_utils import AveragedModel

from vovnet.detection import distributed
from vovnet.detection.checkpoints.config_json import compose_config
from vovnet.detection.checkpoints.initialize import load_matching, network_text
from vovnet.detection.config.categories import Category, keypoint_count, plain_categories
from vovnet.detection.config.detectors import DETECTORS
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.config.schema import Recipe
from vovnet.detection.models.build import build_detector
from vovnet.detection.training.batch_memory import with_passes_that_fit
from vovnet.detection.training.box_loss import set_box_loss
from vovnet.detection.training.compiling import compile_backbone
from vovnet.detection.training.iteration import autocast
from vovnet.detection.training.resuming import check_same_run, check_same_transforms, load_everywhere, restore_run
from vovnet.detection.training.rules import TrainingRules
from vovnet.detection.training.run import Run
from vovnet.errors import InputError
from vovnet.memory import has_osa_blocks, memory_efficient
from vovnet.ops.build import loader as kernels
from vovnet.processes.devices import computes_with_bf16
from vovnet.terminal.streams import echo


def prepare(
    recipe: Recipe,
    rules: TrainingRules,
    output: Path,
    device: torch.device,
    categories: Sequence[Category],
    resume: bool,
    *,
    transforms: str | None = None,
    automatic: bool = False,
) -> Run:
    """Build the detector, the optimizer and the other parts of a run; with ``resume``, restore their state.

    With ``automatic`` the batch is divided into passes that fit into the memory; a resumed run repeats its own.

    Raises:
        InputError: the recipe cannot be used with these categories or processes, or the checkpoint is of another run.
    """
    _check_batch_size(recipe)
    _check_norms(recipe.model, device)
    recipe = _with_precision(_with_classes(recipe, categories), device)
    state = load_everywhere(output / "last.pt", categories) if resume else None
    if state is not None:
        if automatic:
            passes = int(state["recipe"]["solver"]["accumulate"])
            recipe = replace(recipe, solver=replace(recipe.solver, accumulate=passes))
        check_same_run(recipe, state, output)
        check_same_transforms(transforms, state.get("transforms"))
    torch.manual_seed(recipe.solver.seed)
    if recipe.solver.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch demands it for cuBLAS
        torch.use_deterministic_algorithms(True)
    with distributed.patience():  # a process may download weights or build kernels for all
        detector = _detector(recipe, categories, device, resumed=state is not None)
    if automatic and state is None:
        recipe, line = with_passes_that_fit(recipe, detector, device)
        if distributed.rank() == 0:
            echo(line)
    optimizer = rules.build_optimizer(detector, recipe.solver, recipe.model)
    _compile(detector, recipe, device)
    wrapped: nn.Module = detector
    if distributed.world_size() > 1:
        wrapped = DistributedDataParallel(detector, device_ids=[device] if device.type == "cuda" else None)
    run = Run(
        recipe=recipe,
        output=output,
        device=device,
        detector=detector,
        wrapped=wrapped,
        categories=plain_categories(categories),
        optimizer=optimizer,
        schedule=rules.build_schedule(optimizer, recipe.solver),
        scaler=torch.amp.GradScaler(device.type, enabled=recipe.solver.amp == "fp16"),
        ema=_moving_average(detector, recipe.solver.ema),
        transforms=transforms,
    )
    # Each process samples its own anchors and boxes.
    torch.manual_seed(recipe.solver.seed + distributed.rank())
    if state is not None:
        restore_run(run, state)
    return run


def _detector(recipe: Recipe, categories: Sequence[Category], device: torch.device, resumed: bool) -> nn.Module:
    """Return the detector on the device, with the weights that the training starts from unless the run is resumed."""
    solver = recipe.solver
    # A resumed run has its backbone's weights in the checkpoint, and one with `init` gets others.
    detector = build_detector(recipe.model, download=not resumed and recipe.init is None)
    if recipe.init is not None and not resumed:
        start = load_matching(detector, recipe.init, recipe.model.conventions)
        if distributed.rank() == 0:
            echo(f"init: {start}")
            if network := network_text(recipe):
                echo(f"init: the network is torchvision's: {network}")
    compose_config(detector, recipe.model, categories)  # refuses before the training what could not be stored after it
    set_box_loss(detector, solver, categories)
    detector.to(device)
    if solver.memory != "plain" and has_osa_blocks(detector):
        memory_efficient(detector, solver.memory)
        kernels.available(device)  # builds them now rather than in the first iteration
    if solver.channels_last:
        detector.to(memory_format=torch.channels_last)
        if DETECTORS[recipe.model.detector].needs_keypoints:
            predictor: Any = detector.get_submodule("roi_heads.keypoint_predictor")
            predictor.register_forward_hook(_contiguous)
    return detector


def _compile(detector: nn.Module, recipe: Recipe, device: torch.device) -> None:
    """Compile the backbone if the recipe asks for it."""
    solver = recipe.solver
    if solver.compile:
        images = solver.batch_size // (distributed.world_size() * solver.accumulate)
        with distributed.patience():
            gain = compile_backbone(detector, recipe, device, images, lambda: autocast(solver, device))
        if distributed.rank() == 0:
            echo(gain)


def _contiguous(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    # torchvision's keypointrcnn_loss views the heat maps, which fails in channels-last memory.
    return output.contiguous()


def _check_batch_size(recipe: Recipe) -> None:
    parts = distributed.world_size() * recipe.solver.accumulate
    size = recipe.solver.batch_size
    if size % parts:
        raise InputError(
            f"solver.batch_size: expected a multiple of processes × solver.accumulate = {parts}, got {size}; "
            f"try {max(1, round(size / parts)) * parts}"
        )


def _check_norms(model: ModelRecipe, device: torch.device) -> None:
    if distributed.world_size() > 1 and device.type == "cpu":
        for key in ("norm", "fpn_norm", "head_norm"):
            if getattr(model, key) == "sync_bn":
                raise InputError(
                    f"model.{key}=sync_bn: PyTorch synchronises batch norms on GPUs only; on {device} use bn or gn"
                )


def _with_classes(recipe: Recipe, categories: Sequence[Category]) -> Recipe:
    """Return the recipe with the number of classes and, for a detector of keypoints, of keypoints of the data."""
    model, number = recipe.model, len(categories)
    _check_number("model.num_classes", model.num_classes, number, "categories")
    model = replace(model, num_classes=number)
    if DETECTORS[model.detector].needs_keypoints:
        points = keypoint_count(categories, "training data")
        if points is None:
            raise InputError("training data: no category names its keypoints; use another model.detector")
        _check_number("model.num_keypoints", model.num_keypoints, points, "keypoints")
        model = replace(model, num_keypoints=points)
    return replace(recipe, model=model)


def _check_number(key: str, wanted: int | None, number: int, what: str) -> None:
    if wanted is not None and wanted != number:
        raise InputError(
            f"{key}: the recipe says {wanted}, the training data has {number} {what}; leave it out to take the data's"
        )


def _with_precision(recipe: Recipe, device: torch.device) -> Recipe:
    """Return the recipe with its meaning on this device for ``amp: auto``, so that recipe.yaml repeats the run."""
    if recipe.solver.amp != "auto":
        return recipe
    amp: Literal["bf16", "none"] = "bf16" if computes_with_bf16(device) else "none"
    return replace(recipe, solver=replace(recipe.solver, amp=amp))


def _moving_average(detector: nn.Module, decay: float | None) -> AveragedModel | None:
    if decay is None:
        return None

    def average(kept: ParamList, current: ParamList, updates: Tensor | int) -> None:
        # The decay grows over the first updates, so that the random start soon has no weight.
        done = int(updates)
        torch._foreach_lerp_(kept, current, 1 - min(decay, (1 + done) / (10 + done)))

    return AveragedModel(detector, multi_avg_fn=average)
