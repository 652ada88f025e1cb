"""The latency of detectors and backbones for one image."""

from __future__ import annotations

import os
import statistics
import warnings
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import vovnet
from benchmarks.batches import wait
from benchmarks.common import timed
from benchmarks.gpu.detectors import build_backbone, build_detector, operations_of
from benchmarks.gpu.setting import Setting, milli, over
from benchmarks.gpu.steps import Result, Step
from benchmarks.gpu.training import PRECISIONS

NETWORKS = ("vovnet39", "resnet50")
PLAIN, COMPILED = "timm's layers", "`torch.compile`"
Change = Callable[[nn.Module], nn.Module]


def _fused(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its kernels are for CPUs: on a GPU it is PyTorch with folded norms
        return vovnet.fuse(model)


def _compiled(model: nn.Module) -> nn.Module:
    torch.compiler.reset()
    compiled: Any = torch.compile(model, dynamic=False)
    return compiled


CHANGES: dict[str, Change] = {
    PLAIN: lambda model: model,
    "`memory_efficient`": vovnet.memory_efficient,
    "`vovnet.fuse`": _fused,
    COMPILED: _compiled,
}


def steps(setting: Setting) -> list[Step]:
    """Return a step per precision, network and change. Compiling takes longest and comes last."""
    detectors = [("vovnet39", name) for name in (PLAIN, "`memory_efficient`", "`vovnet.fuse`")] + [("resnet50", PLAIN)]
    rows = [("Faster R-CNN", *row) for row in detectors] + [("backbone", net, PLAIN) for net in NETWORKS]
    if not setting.cpu:  # there it takes a minute
        rows += [("backbone", net, COMPILED) for net in NETWORKS]
    precisions = setting.size(PRECISIONS, PRECISIONS[:1])
    rows_of_all = [(precision, *row) for precision in precisions for row in rows]
    return [_step(setting, *row) for row in sorted(rows_of_all, key=lambda row: row[-1] == COMPILED)]


def _step(setting: Setting, precision: str, what: str, net: str, change: str) -> Step:
    title = f"{net} {what}, {change}"
    return Step(f"{precision}, {title}", lambda: _measure(setting, precision, what, net, change, title))


@torch.inference_mode()
def _measure(setting: Setting, precision: str, what: str, net: str, change: str, title: str) -> Result:
    size, rounds = setting.size((800, 1344), (64, 96)), setting.size(21, 1)
    setting.free_memory()
    torch.manual_seed(1)
    image = torch.rand(1, 3, *size, device=setting.device).contiguous(memory_format=torch.channels_last)
    model: nn.Module
    given: Tensor | list[Tensor]
    if what == "backbone":
        model, given = build_backbone(net, setting.device), image
    else:
        model, given = build_detector(net, size, setting).eval(), list(image)
    # On the CPU vovnet.fuse would compile kernels, which a GPU does not use.
    operators = patch.dict(os.environ, VOVNET_OPS=setting.size("auto", "off"))
    with operators, torch.autocast(setting.device.type, torch.bfloat16, enabled=precision == "bf16"):
        operations = operations_of(lambda: model(given))
        changed = CHANGES[change](model)

        def work() -> None:
            changed(given)
            wait(setting.device)

        for _ in range(setting.size(5, 0)):
            work()
        times = [timed(work) for _ in range(rounds)]
    median = statistics.median(times)
    floor = setting.ceilings.floor(setting.products(precision), operations=operations)
    return Result([(precision, title, milli(median), milli(min(times)), milli(floor), over(median, floor))])
