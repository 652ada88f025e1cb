"""How many images of a training fit into the memory at once, for ``solver.batch_size: auto``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vovnet.detection import distributed
from vovnet.detection.config.detectors import DETECTORS
from vovnet.detection.config.fields import AUTO
from vovnet.detection.config.schema import Recipe
from vovnet.detection.training.iteration import autocast
from vovnet.errors import InputError

_OBJECTS = 20
"""Objects in each image of a trial."""
_COPIES = 4
"""What a training keeps for each parameter: its gradient, two states of an optimizer, and the moving average."""
_BACKWARD = 1.5
"""Memory of a backward pass on a CPU, in what the forward pass keeps for it: gradients of activations come on top."""
_SHARE = 0.7
"""Part of the memory that is free on a CPU that a training may take; loaders and the system need the rest."""


def with_reference_batch(recipe: Recipe) -> Recipe:
    """Return a recipe whose batch is ``reference_batch_size`` if it is ``auto``; any other recipe unchanged.

    Raises:
        InputError: the recipe trains in a way that cannot be tried.
    """
    if recipe.solver.batch_size is not AUTO:
        return recipe
    if recipe.model.conventions == "legacy":
        raise InputError("solver.batch_size: expected a number with legacy conventions, got auto")
    norms = (recipe.model.norm, recipe.model.fpn_norm, recipe.model.head_norm)
    if "sync_bn" in norms and distributed.world_size() > 1:  # processes that try other numbers would wait forever
        raise InputError("solver.batch_size: expected a number with sync_bn in several processes, got auto")
    return replace(recipe, solver=replace(recipe.solver, batch_size=recipe.solver.reference_batch_size, accumulate=1))


def with_passes_that_fit(recipe: Recipe, detector: nn.Module, device: torch.device) -> tuple[Recipe, str]:
    """Return the recipe with the fewest passes an iteration whose images fit into the memory, and why as one line.

    Images of the largest size of the training are tried. Neither weights nor statistics change.

    Raises:
        InputError: not a single image fits, or the system does not tell its memory.
    """
    share = recipe.solver.batch_size // distributed.world_size()
    with _unchanged(detector):
        try_it = _on_gpu if device.type == "cuda" else _on_cpu
        most, why = try_it(recipe, detector, device, share)
    most = min(distributed.gather(most))
    if most < 1:
        raise InputError(f"solver.batch_size: auto: a single image of the training does not fit ({why})")
    images = max(number for number in range(1, share + 1) if share % number == 0 and number <= most)
    line = (
        f"batch size auto: {recipe.solver.batch_size} images an iteration (solver.reference_batch_size) in passes of "
        f"{images} in each process, solver.accumulate={share // images} ({why})"
    )
    return replace(recipe, solver=replace(recipe.solver, accumulate=share // images)), line


def _on_gpu(recipe: Recipe, detector: nn.Module, device: torch.device, share: int) -> tuple[int, str]:
    """Try passes of fewer and fewer images until one finds memory."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in detector.parameters())
    held = torch.empty(size * (_COPIES - 1), dtype=torch.uint8, device=device)  # the pass itself makes the gradients
    for images in (number for number in range(share, 0, -1) if share % number == 0):
        try:
            _pass(recipe, detector, device, images)
        except torch.OutOfMemoryError:
            detector.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            continue
        gib = torch.cuda.max_memory_allocated(device) / 2**30
        del held
        return images, f"tried on {device}: {gib:.1f} GiB"
    return 0, f"tried on {device}"


def _on_cpu(recipe: Recipe, detector: nn.Module, device: torch.device, share: int) -> tuple[int, str]:
    """Count what one image keeps for the backward pass, and divide the memory that is free by it.

    A system without enough memory ends the process instead of raising an error, so it is not tried.
    """
    free = available_memory() if device.type == "cpu" else None
    if free is None:
        raise InputError(f"solver.batch_size: the memory of {device} is unknown here; expected a number, got auto")
    free //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    own = {parameter.untyped_storage().data_ptr() for parameter in detector.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _pass(recipe, detector, device, 1)
    image = _BACKWARD * sum(size for place, size in kept.items() if place not in own)
    weights = _COPIES * sum(parameter.numel() * parameter.element_size() for parameter in detector.parameters())
    most = int((_SHARE * free - weights) / image)
    return min(most, share), f"{free / 2**30:.1f} GiB are free, and an image takes about {image / 2**20:.0f} MiB"


def available_memory() -> int | None:
    """Return the bytes of memory that are free for this process, by Linux and its container, or None elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no container, or one without a limit
        return free
    return min(free, max(0, limit - used))


def _pass(recipe: Recipe, detector: nn.Module, device: torch.device, images: int) -> None:
    data, channels = recipe.data, recipe.model.in_chans
    long = data.train_max_size
    short = long if data.scale_jitter is not None else min(max(data.train_min_sizes), long)
    targets = [_target(recipe, short, long, device) for _ in range(images)]
    inputs = [torch.rand(channels, short, long, device=device) for _ in range(images)]
    with autocast(recipe.solver, device):
        losses = detector(inputs, targets)
    torch.stack([value.float() for value in losses.values()]).sum().backward()


def _target(recipe: Recipe, height: int, width: int, device: torch.device) -> dict[str, Tensor]:
    facts = DETECTORS[recipe.model.detector]
    corner = torch.rand(_OBJECTS, 2) * torch.tensor([width / 2, height / 2])
    boxes = torch.cat([corner, corner + torch.tensor([width / 4, height / 4])], dim=1)
    target: dict[str, Any] = {"boxes": boxes, "labels": torch.ones(_OBJECTS, dtype=torch.int64)}
    if facts.needs_masks:
        target["masks"] = torch.zeros(_OBJECTS, height, width, dtype=torch.uint8)
    if facts.needs_keypoints:
        points = corner[:, None].expand(-1, recipe.model.num_keypoints or 1, -1)
        target["keypoints"] = torch.cat([points, torch.ones_like(points[..., :1])], dim=2)
    return {key: value.to(device) for key, value in target.items()}


@contextmanager
def _unchanged(detector: nn.Module) -> Iterator[None]:
    """Train a detector in a ``with`` block, and afterwards restore buffers and mode and drop its gradients."""
    training = detector.training
    buffers = [(buffer, buffer.clone()) for buffer in detector.buffers()]
    detector.train()
    try:
        yield
    finally:
        detector.train(training)
        for buffer, value in buffers:
            buffer.copy_(value)
        detector.zero_grad(set_to_none=True)
