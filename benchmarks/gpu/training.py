"""A training step of VoVNet-39 and ResNet-50 detectors: time and memory, with and without ``memory_efficient``."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.batches import make_batch, wait
from benchmarks.common import timed
from benchmarks.gpu.detectors import build_detector, operations_of
from benchmarks.gpu.setting import Setting, milli, over
from benchmarks.gpu.steps import Result, Step
from vovnet.memory import Memory, memory_efficient

PRECISIONS = ["fp32", "bf16"]
"""PyTorch's default, and autocast."""


@dataclass(frozen=True)
class Detector:
    """A row of the table.

    Attributes:
        title: its name in the table.
        backbone: name of a timm network.
        memory: argument of ``memory_efficient``; None leaves timm's layers.
        operators: value of ``VOVNET_OPS``.
    """

    title: str
    backbone: str
    memory: Memory | None = None
    operators: str = "auto"


DETECTORS = (
    Detector("V-39, timm's layers", "vovnet39"),
    Detector("V-39, `memory_efficient`", "vovnet39", "normal"),
    Detector("V-39, `memory_efficient`, `VOVNET_OPS=off`", "vovnet39", "normal", "off"),
    Detector("V-39, `memory_efficient`, `low`", "vovnet39", "low"),
    Detector("R-50", "resnet50"),
)


def steps(setting: Setting) -> list[Step]:
    """Return a step per precision and detector."""
    chosen = setting.size(PRECISIONS, PRECISIONS[:1])

    def step(precision: str, detector: Detector) -> Step:
        return Step(f"{precision}, {detector.title}", lambda: _measure(setting, precision, detector))

    return [step(precision, detector) for precision in chosen for detector in DETECTORS]


def _measure(setting: Setting, precision: str, row: Detector) -> Result:
    images, rounds = setting.size(2, 1), setting.size(7, 1)
    size = setting.size((800, 1344), (64, 96))
    setting.free_memory()
    with patch.dict(os.environ, VOVNET_OPS=row.operators):
        detector = build_detector(row.backbone, size, setting).train()
        one = _training_step(detector, precision, _batches(setting, images, size))
        operations = operations_of(one)  # of the layers as they are: nothing is computed twice
        if row.memory is not None:
            memory_efficient(detector, row.memory)
        for _ in range(setting.size(2, 0)):
            one()
        peak = _peak(setting, one)
        times = [timed(one) for _ in range(rounds)]
    median = statistics.median(times)
    floor = setting.ceilings.floor(setting.products(precision), operations=operations)
    speed = (milli(median), milli(min(times)), f"{images / median:.1f}", peak)
    return Result([(precision, row.title, *speed, milli(floor), over(median, floor))])


def _batches(setting: Setting, images: int, size: tuple[int, int]) -> list[tuple[list[Tensor], list[dict[str, Any]]]]:
    """Return some batches on the device, as a loader would have put them there."""
    batches = []
    for number in range(3):
        pixels, targets = make_batch(number, size=size, images=images, objects=8, masks=False)
        moved = [{key: target[key].to(setting.device) for key in ("boxes", "labels")} for target in targets]
        batches.append(([image.to(setting.device) / 255 for image in pixels], moved))
    return batches


def _training_step(detector: torch.nn.Module, precision: str, batches: list[Any]) -> Callable[[], None]:
    parameters = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    # The learning rate is too small to change anything: random weights would not train.
    optimizer = torch.optim.SGD(parameters, lr=1e-9, momentum=0.9, weight_decay=1e-4)
    count = 0

    def one() -> None:
        nonlocal count
        images, targets = batches[count % len(batches)]
        count += 1
        with torch.autocast(images[0].device.type, torch.bfloat16, enabled=precision == "bf16"):
            losses = detector(images, targets)
        loss = torch.stack([value.float() for value in losses.values()]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        wait(loss.device)
        if not torch.isfinite(loss):
            raise ArithmeticError(f"the loss is {loss.item()}")

    return one


def _peak(setting: Setting, work: Callable[[], None]) -> str:
    """Return the most memory that a step allocates, or a dash on the CPU, where PyTorch does not count it."""
    if setting.cpu:
        return "–"
    torch.cuda.reset_peak_memory_stats()
    work()
    return f"{torch.cuda.max_memory_allocated() / 2**30:.2f}"
