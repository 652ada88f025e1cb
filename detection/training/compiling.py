"""Compile the backbone of a training, and measure what that gives."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from vovnet.detection.config.data import DataRecipe
from vovnet.detection.config.schema import Recipe
from vovnet.errors import InputError

BACKEND = "inductor"
"""torch.compile's backend."""

_STRIDE = 32
_Autocast = Callable[[], AbstractContextManager[None]]


def compile_backbone(
    detector: nn.Module, recipe: Recipe, device: torch.device, images: int, autocast: _Autocast
) -> str:
    """Compile the timm network of a detector in place, for images of any size, and return what it gave as one line.

    A forward and a backward pass is timed before and after, with random images of the training's size. It changes
    neither weights nor statistics.

    Args:
        detector: a detector on its device. Its parameters and their names stay.
        recipe: the run's recipe.
        device: the detector's device.
        images: images of a pass.
        autocast: returns the context in which the training computes losses.

    Raises:
        InputError: PyTorch cannot compile the network as one graph, or has no compiler.
    """
    body = detector.get_submodule("backbone.body")
    height, width = _size(recipe.data)
    batch = torch.zeros(images, recipe.model.in_chans, height, width, device=device)
    with _unchanged(body):
        _pass(body, batch, autocast)
        before = _seconds(lambda: _pass(body, batch, autocast), device)
        body.compile(backend=BACKEND, fullgraph=True, dynamic=True)
        try:
            first = _seconds(lambda: _pass(body, batch, autocast), device)
        except Exception as error:  # of the compiler, of the C++ compiler that it calls, or of Triton
            cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise InputError(
                f"solver.compile: {recipe.model.backbone} cannot be compiled as one graph on {device} ({cause}); "
                "expected false"
            ) from error
        after = _seconds(lambda: _pass(body, batch, autocast), device)
    return (
        f"compiled the backbone in {first:.1f} s: forward and backward of {images} images of {width}×{height} in "
        f"{after:.3g} s, before {before:.3g} s ({before / after:.2f}×)"
    )


def _pass(body: nn.Module, batch: Tensor, autocast: _Autocast) -> None:
    with autocast():
        maps = body(batch)
    torch.stack([one.float().mean() for one in maps]).sum().backward()


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    _wait_for(device)
    start = time.perf_counter()
    work()
    _wait_for(device)
    return max(time.perf_counter() - start, 1e-9)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def uncompiled(recipe: Recipe) -> Iterator[None]:
    """Compute without the compiled graph in a ``with`` block: an evaluation has other images, and no second graph."""
    if not recipe.solver.compile:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def _unchanged(body: nn.Module) -> Iterator[None]:
    """Train a network in a ``with`` block, and afterwards restore its mode and buffers and drop its gradients."""
    modes = {module: module.training for module in body.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in body.buffers()]
    body.train()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for buffer, value in buffers:
            buffer.copy_(value)
        for parameter in body.parameters():
            parameter.grad = None


def _size(data: DataRecipe) -> tuple[int, int]:
    """Return height and width in pixels of a landscape image of 4:3, padded as a detector does."""
    if data.scale_jitter is not None:
        return _padded(data.train_max_size), _padded(data.train_max_size)
    short = sorted(data.train_min_sizes)[len(data.train_min_sizes) // 2]
    return _padded(min(short, data.train_max_size)), _padded(min(short * 4 / 3, data.train_max_size))


def _padded(side: float) -> int:
    return max(2, -(-int(side) // _STRIDE)) * _STRIDE
