"""Measure the device's limits: bytes per second of a copy, and operations per second of a matrix product."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.gpu.setting import Setting
from benchmarks.gpu.steps import Result, Step
from benchmarks.operators import KINDS, precision

REPETITIONS, WARMUP = 20, 3


def steps(setting: Setting) -> list[Step]:
    """Return a step for the copy, and one for the product of each kind of numbers."""
    products = [Step(kind, lambda kind=kind: _product(setting, kind)) for kind in setting.kinds]  # type: ignore[misc]
    return [Step("copy", lambda: _copy(setting)), *products]


def _copy(setting: Setting) -> Result:
    count = setting.size(2**30, 2**22)  # far more than the L2 cache has
    source = torch.randint(0, 256, (count,), dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    rate = 2 * count / _least(setting, lambda: target.copy_(source))
    return Result([(f"copy of {count / 2**20:.0f} MiB", f"{rate / 1e9:.1f} GB/s")], {"copy": rate})


def _product(setting: Setting, kind: str) -> Result:
    side = setting.size(4096 if kind == "fp32" else 8192, 256)
    left, right, out = (torch.randn(side, side, device=setting.device).to(KINDS[kind]) for _ in range(3))
    with precision(kind):
        rate = 2 * side**3 / _least(setting, lambda: torch.mm(left, right, out=out))
    return Result([(f"product {side}×{side}×{side}, {kind}", f"{rate / 1e12:.2f} TFLOP/s")], {kind: rate})


def _least(setting: Setting, work: Callable[[], object]) -> float:
    for _ in range(WARMUP):
        work()
    return min(setting.gpu.clock(work) for _ in range(REPETITIONS))
