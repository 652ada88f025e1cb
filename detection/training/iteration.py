"""One training iteration, from images to updated weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vovnet.detection import distributed
from vovnet.detection.config.solver import SolverRecipe
from vovnet.detection.data.collation import Batch
from vovnet.detection.inference_mode import to_input
from vovnet.detection.training.run import Run
from vovnet.detection.training.signals import agree_to_stop
from vovnet.errors import InputError, StoppedError


class NonFiniteLossError(StoppedError, ArithmeticError):
    """The loss became NaN or infinite; the message names the iteration and the images."""


def step(run: Run, batches: Sequence[Batch]) -> dict[str, float]:
    """Run forward and backward for each batch, then update the weights once.

    Returns:
        The losses, averaged over batches and processes: their sum as ``loss``, and each part under torchvision's name.

    Raises:
        NonFiniteLossError: a loss or gradient is not finite; nothing has been updated.
    """
    solver = run.recipe.solver
    run.wrapped.train()
    run.optimizer.zero_grad(set_to_none=True)
    summed: dict[str, Tensor] = {}
    for number, (images, targets) in enumerate(batches, start=1):
        inputs = [to_input(image, run.device) for image in images]
        truths = [{k: v.to(run.device, non_blocking=True) for k, v in model_targets(t).items()} for t in targets]
        with _gradients_stay_local(run, number < len(batches)):
            with autocast(solver, run.device):
                losses = _losses(run, inputs, truths)
            loss = torch.stack([value.float() for value in losses.values()]).sum() / len(batches)
            run.scaler.scale(loss).backward()
        for name, value in losses.items():
            summed[name] = summed.get(name, 0) + value.detach().float() / len(batches)
    means = _agree_on_losses(run, summed, batches)
    run.scaler.unscale_(run.optimizer)
    gradients = [p.grad for p in run.detector.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if solver.clip_grad_norm is not None:
        nn.utils.clip_grads_with_norm_(run.detector.parameters(), solver.clip_grad_norm, norm)
    # With fp16 such gradients are normal now and then, and the scaler skips the update.
    if not run.scaler.is_enabled() and not torch.isfinite(norm):
        raise _not_finite(run, batches, f"gradient norm {norm:g}")
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.schedule.step()
    if run.ema is not None:
        run.ema.update_parameters(run.detector)
    run.iteration += 1
    return means


def _losses(run: Run, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the detector's losses.

    Raises:
        InputError: a batch norm has one value per channel, of which there is no variance.
    """
    try:
        losses: dict[str, Tensor] = run.wrapped(images, targets)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        height, width = images[0].shape[-2:]
        raise InputError(
            f"model.norm={run.recipe.model.norm}: a batch norm got a single value per channel in iteration "
            f"{run.iteration + 1}, from a batch of {len(images)} ({width}×{height} pixels); raise solver.batch_size, "
            "train on larger images (data.train_min_sizes), or use group norms (model.norm=gn, model.fpn_norm=gn)"
        ) from error
    return losses


def model_targets(target: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the entries of a target that a detector reads."""
    return {key: target[key] for key in ("boxes", "labels", "masks", "keypoints", "polygons") if key in target}


def _agree_on_losses(run: Run, summed: Mapping[str, Tensor], batches: Sequence[Batch]) -> dict[str, float]:
    """Return the mean losses of all processes; they also agree whether to stop or to save after this iteration."""
    run.note_time()
    wishes = torch.tensor([float(run.stop_signal), float(run.checkpoint_is_old)], device=run.device)
    *values, stop, old = distributed.mean_over_processes(torch.stack([*summed.values(), *wishes])).tolist()
    if stop:
        agree_to_stop(run)
    run.saving = old > 0
    losses = {"loss": sum(values), **dict(zip(summed, values, strict=True))}
    if not math.isfinite(losses["loss"]):
        raise _not_finite(run, batches, ", ".join(f"{name} {value:g}" for name, value in losses.items()))
    return losses


def _not_finite(run: Run, batches: Sequence[Batch], values: str) -> NonFiniteLossError:
    """Return the error for NaN or infinity in a loss or gradient; all processes call this together."""
    local = [int(target["image_id"]) for _, targets in batches for target in targets]
    ids = [number for part in distributed.gather(local) for number in part]
    return NonFiniteLossError(
        f"the loss is not finite at iteration {run.iteration + 1}, image ids {ids} ({values}); the last checkpoint in "
        f"{run.output} is intact; lower solver.base_lr, set solver.clip_grad_norm, or look at these images"
    )


def autocast(solver: SolverRecipe, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Return the context in which a training computes its losses."""
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = dtypes.get(solver.amp)
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def _gradients_stay_local(run: Run, local: bool) -> contextlib.AbstractContextManager[None]:
    """Return a context without gradient exchange, which only the last of the accumulated backward passes needs."""
    if local and isinstance(run.wrapped, DistributedDataParallel):
        return run.wrapped.no_sync()
    return contextlib.nullcontext()
