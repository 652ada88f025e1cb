"""Each kernel alone, on VoVNet-39's aggregations: its time, and how far it is from its floor."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu.setting import Setting, micro, over
from benchmarks.gpu.steps import Result, Row, Step
from benchmarks.operators import KINDS, Aggregation, aggregations, precision
from vovnet.ops import cuda

ROUNDS, WARMUP = 21, 3


@dataclass(frozen=True)
class Kernel:
    """A kernel on one aggregation.

    Attributes:
        name: of the kernel.
        call: runs it; elsewhere than on a GPU this is plain PyTorch.
        moved: the bytes that it must read and write at least.
        operations: the multiplications and additions of its products.
    """

    name: str
    call: Callable[[], object]
    moved: int
    operations: int


def steps(setting: Setting) -> list[Step]:
    """Return a step per kind of numbers and aggregation, the first kind first."""
    cases = aggregations(1, setting.size((800, 1344), (64, 96)))
    cases = setting.size(cases, cases[-1:])

    def step(kind: str, case: Aggregation) -> Step:
        return Step(f"{kind}, {case.name}", lambda: _measure(setting, kind, case))

    return [step(kind, case) for kind in setting.kinds for case in cases]


def kernels_of(case: Aggregation, kind: str, device: torch.device) -> list[Kernel]:
    """Return the four kernels with tensors for an aggregation."""
    n, h, w = case.shape
    columns, rows, item = sum(case.widths), case.out_channels, KINDS[kind].itemsize

    def draw(*shape: int) -> Tensor:
        values = torch.randn(shape, device=device).to(KINDS[kind])
        return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values

    inputs = [draw(n, channels, h, w) for channels in case.widths]
    weight, bias, grad = draw(rows, columns, 1, 1) / math.sqrt(columns), draw(rows), draw(n, rows, h, w)
    ours = torch.ops.vovnet
    _, mask = ours.osa_aggregate(inputs, weight, bias, None, True, True)
    every, none = [True] * len(inputs), [False] * len(inputs)
    maps, result, matrix = n * h * w * columns * item, n * h * w * rows * item, rows * columns * item
    bits, products = n * h * w * rows // 8, case.operations(False)
    return [
        Kernel(
            "forward",
            lambda: ours.osa_aggregate(inputs, weight, bias, None, True, True),
            maps + matrix + rows * item + result + bits,
            products,
        ),
        Kernel(
            "input gradients",
            lambda: ours.osa_aggregate_backward(grad, None, inputs, weight, every, False, False),
            result + matrix + maps,
            products,
        ),
        Kernel(
            "weight gradient",
            lambda: ours.osa_aggregate_backward(grad, None, inputs, weight, none, True, False),
            result + maps + matrix,
            products,
        ),
        Kernel(
            "gradient of the ReLU, and its sum",
            lambda: cuda.gradient_before_relu(grad, mask, True),
            2 * result + bits + 4 * rows,
            0,
        ),
    ]


def _measure(setting: Setting, kind: str, case: Aggregation) -> Result:
    with precision(kind):
        return Result([_row(setting, kind, case, kernel) for kernel in kernels_of(case, kind, setting.device)])


def _row(setting: Setting, kind: str, case: Aggregation, kernel: Kernel) -> Row:
    for _ in range(WARMUP):
        kernel.call()
    times = [setting.gpu.clock(kernel.call) for _ in range(setting.size(ROUNDS, 3))]
    median = statistics.median(times)
    floor = setting.ceilings.floor(kind, moved=kernel.moved, operations=kernel.operations)
    rates = (f"{kernel.moved / median / 1e9:.1f}", f"{kernel.operations / median / 1e12:.2f}")
    least = "–" if floor is None else micro(floor)
    return (kernel.name, kind, case.name, micro(median), micro(min(times)), *rates, least, over(median, floor))
