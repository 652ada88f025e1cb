"""The aggregations of VoVNet-39 on a GPU: ``osa_aggregate`` against PyTorch's own ways to the same numbers.

    python -m benchmarks.operators [--kinds fp16 bf16 fp32 tf32] [--images 1]

Times are the GPU's own, between two events: it is kept busy while the CPU queues the call, so that launching is in none
of them. Every call finds its inputs outside of the L2 cache: they rotate, and what keeps the GPU busy has filled it.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import environment, interleave, positive
from vovnet.ops import cuda, osa_aggregate
from vovnet.vovnet import model_cfgs

OURS, EAGER, LAST, COMPILED = "osa_aggregate", "eager", "eager, channels-last", "torch.compile, channels-last"
KINDS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "tf32": torch.float32}
TOLERANCE = {"fp16": 0.05, "bf16": 0.1, "fp32": 0.01, "tf32": 0.05}
"""Of a difference's norm by the result's: where rounding turns a sum's sign, the ReLU passes another gradient."""

Clock = Callable[[Callable[[], object]], float]
"""Runs something and returns its seconds on the GPU."""


@dataclass(frozen=True)
class Aggregation:
    """The 1×1 aggregation of one block: ``relu(conv1x1(cat(inputs))) (+ inputs[0])``.

    Attributes:
        name: such as "stage 4, block 1".
        shape: images, height and width of the maps.
        widths: channels of each input.
        out_channels: channels of the output.
        residual: whether the first input is added to the output.
    """

    name: str
    shape: tuple[int, int, int]
    widths: tuple[int, ...]
    out_channels: int
    residual: bool

    def operations(self, backward: bool) -> int:
        """Multiplications and additions of the products: one forward, two more (for inputs and weight) backward."""
        return (3 if backward else 1) * 2 * math.prod(self.shape) * sum(self.widths) * self.out_channels

    def least_bytes(self, item: int, backward: bool) -> int:
        """Bytes to and from memory if everything were read once and every result written once.

        Forward: inputs, weight and bias in, output out; the residual is an input already. Backward: inputs, weight, the
        output's gradient and a bit an element of the output in, the gradients of inputs, weight and bias out; the bits
        are written by the forward pass.

        Args:
            item: bytes of an element.
            backward: whether the backward pass follows.
        """
        pixels = math.prod(self.shape)
        inputs, output = pixels * sum(self.widths) * item, pixels * self.out_channels * item
        parameters = (sum(self.widths) + 1) * self.out_channels * item
        forward = inputs + parameters + output
        bits = pixels * self.out_channels // 8
        return forward + (2 * inputs + 2 * parameters + output + 2 * bits if backward else 0)


def aggregations(images: int, size: tuple[int, int]) -> list[Aggregation]:
    """Those of VoVNet-39, one of each shape and kind, in order.

    Args:
        images: in a batch.
        size: height and width of the images.
    """
    config = model_cfgs["vovnet39"]
    height, width = (((pixels + 1) // 2 + 1) // 2 for pixels in size)  # two convolutions of stride 2
    channels, found = config["stem_chs"][-1], []
    for stage, (mid, out, blocks) in enumerate(
        zip(config["stage_conv_chs"], config["stage_out_chs"], config["block_per_stage"], strict=True)
    ):
        if stage > 0:  # a 3×3 pool of stride 2 in ceil mode
            height, width = (max(pixels // 2, 1) for pixels in (height, width))
        for block in range(blocks):
            name = f"stage {stage + 2}" + (f", block {block + 1}" if blocks > 1 else "")
            widths = (channels, *[mid] * config["layer_per_block"])
            found.append(Aggregation(name, (images, height, width), widths, out, residual=block > 0))
            channels = out
    return found


@dataclass(frozen=True)
class Timing:
    """How long one way to an aggregation took, in seconds, round by round."""

    case: Aggregation
    kind: str
    backward: bool
    way: str
    seconds: Sequence[float]

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def bandwidth(self) -> float:
        """The least bytes that must move by the median: what is moved beyond them is not counted, but takes time."""
        return self.case.least_bytes(KINDS[self.kind].itemsize, self.backward) / self.median

    @property
    def rate(self) -> float:
        """Operations of the products a second."""
        return self.case.operations(self.backward) / self.median


def table(timings: Sequence[Timing]) -> str:
    """A line a timing, in groups of one aggregation; "x ours": how many times as long as the group's first it took."""
    width = max(len(timing.way) for timing in timings) + 2
    lines, group = [f"{'':{width}}  median us   least us      GB/s   TFLOP/s  x ours"], None
    for timing in timings:
        if group is None or timing.case != group.case:
            group = timing
            n, h, w = timing.case.shape
            plus = " + residual" if timing.case.residual else ""
            lines.append(
                f"{timing.case.name}: {n}x{h}x{w}, {sum(timing.case.widths)} -> {timing.case.out_channels}{plus}"
            )
        numbers = f"{1e6 * timing.median:9.1f}  {1e6 * min(timing.seconds):9.1f}  {timing.bandwidth / 1e9:8.1f}"
        ratio = timing.median / group.median
        lines.append(f"  {timing.way:{width - 2}}  {numbers}  {timing.rate / 1e12:8.2f}  {ratio:6.2f}")
    return "\n".join(lines)


def concatenated(inputs: Sequence[Tensor], weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    """The same in PyTorch's own words, as timm's block has it."""
    out = F.relu(F.conv2d(torch.cat(inputs, 1), weight, bias), inplace=True)
    return out if residual is None else out + residual


def fused(inputs: Sequence[Tensor], weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    """Ours."""
    return osa_aggregate(inputs, weight, bias, residual)


def ways() -> dict[str, tuple[Callable[..., Tensor], torch.memory_format]]:
    """Name → function and layout; what compiled other shapes before is forgotten, so that none is compiled for any."""
    torch.compiler.reset()
    compiled: Any = torch.compile(concatenated, dynamic=False)
    return {
        OURS: (fused, torch.channels_last),
        EAGER: (concatenated, torch.contiguous_format),
        LAST: (concatenated, torch.channels_last),
        COMPILED: (compiled, torch.channels_last),
    }


class Tensors:
    """An aggregation's tensors on a device, in both layouts, with sets of inputs that more than fill its L2 cache."""

    def __init__(self, case: Aggregation, dtype: torch.dtype, gpu: Gpu, backward: bool) -> None:
        generator = torch.Generator(gpu.device).manual_seed(0)
        n, h, w = case.shape
        columns = sum(case.widths)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=gpu.device).to(dtype)

        self.case, self.backward = case, backward
        self.weight = draw(case.out_channels, columns, 1, 1).div_(columns**0.5).requires_grad_(backward)
        self.bias = draw(case.out_channels).requires_grad_(backward)
        self.grad = draw(n, case.out_channels, h, w)
        copies = 2 + 2 * gpu.cache_bytes // (n * h * w * columns * dtype.itemsize)
        plain = [[draw(n, channels, h, w) for channels in case.widths] for _ in range(copies)]
        self.sets = {
            layout: [[x.contiguous(memory_format=layout).requires_grad_(backward) for x in inputs] for inputs in plain]
            for layout in (torch.channels_last, torch.contiguous_format)  # the plain ones last: they become leaves
        }

    def run(self, function: Callable[..., Tensor], layout: torch.memory_format) -> Callable[[int], list[Tensor]]:
        """What runs a way on the set of a round's number; it returns the output and, if wanted, all gradients."""
        sets, grad = self.sets[layout], self.grad.contiguous(memory_format=layout)

        def call(number: int) -> list[Tensor]:
            inputs = sets[number % len(sets)]
            out = function(inputs, self.weight, self.bias, inputs[0] if self.case.residual else None)
            if not self.backward:
                return [out]
            return [out, *torch.autograd.grad(out, [*inputs, self.weight, self.bias], grad)]

        return call


def check_equal(results: dict[str, list[Tensor]], kind: str) -> None:
    """Compare results of all ways with the eager ones.

    Raises:
        RuntimeError: one differs by more than rounding.
    """
    for name, tensors in results.items():
        for ours, eager in zip(tensors, results[EAGER], strict=True):
            ours, eager = ours.detach().float(), eager.detach().float()
            error = float((ours - eager).norm() / eager.norm())
            if not error <= TOLERANCE[kind]:
                raise RuntimeError(f"{name} differs from {EAGER} in {kind}: by {error:.1e} of the result's norm")


def measure(case: Aggregation, kind: str, backward: bool, options: argparse.Namespace, gpu: Gpu) -> list[Timing]:
    """Compare the results of all ways, then let them take turns."""
    tensors = Tensors(case, KINDS[kind], gpu, backward)
    calls = {name: tensors.run(function, layout) for name, (function, layout) in ways().items()}
    check_equal({name: call(0) for name, call in calls.items()}, kind)

    def contestant(call: Callable[[int], object]) -> Callable[[int], float]:
        return lambda number: gpu.clock(lambda: call(number))

    rounds = interleave({n: contestant(c) for n, c in calls.items()}, options.rounds, warmup=options.warmup)
    served = cuda.supported(tensors.sets[torch.channels_last][0], tensors.weight)
    shown = {OURS: OURS if served else f"{OURS} (no kernel: plain PyTorch)"}
    return [Timing(case, kind, backward, shown.get(name, name), seconds) for name, seconds in rounds.items()]


@dataclass(frozen=True)
class Gpu:
    """Where it is measured, and by which clock."""

    device: torch.device
    cache_bytes: int
    clock: Clock


def find_gpu() -> Gpu:
    """The current one.

    Raises:
        SystemExit: there is none.
    """
    if not torch.cuda.is_available() or torch.version.cuda is None:
        raise SystemExit("benchmarks.operators needs an NVIDIA GPU, and PyTorch sees none here")
    if not hasattr(torch.backends.cudnn, "conv"):
        raise SystemExit(f"benchmarks.operators needs PyTorch 2.9 or later (fp32_precision), got {torch.__version__}")
    device = torch.device("cuda", torch.cuda.current_device())
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return Gpu(device, cache, event_clock(max(2**28, 2 * cache)))


def event_clock(filler_bytes: int, fills: int = 8) -> Clock:
    """A clock on the current stream: while the GPU fills memory, the CPU queues what is measured behind it."""
    filler = torch.empty(filler_bytes, dtype=torch.uint8, device="cuda")
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def clock(work: Callable[[], object]) -> float:
        for _ in range(fills):
            filler.zero_()
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return clock


@contextmanager
def precision(kind: str) -> Iterator[None]:
    """PyTorch's settings of float32 products for a kind: TF32 for ``tf32`` alone."""
    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = conv.fp32_precision, matmul.fp32_precision
    conv.fp32_precision = matmul.fp32_precision = "tf32" if kind == "tf32" else "ieee"
    try:
        yield
    finally:
        conv.fp32_precision, matmul.fp32_precision = before


def usable_kinds(wanted: Sequence[str], capability: tuple[int, int], tf32_allowed: bool) -> list[str]:
    """Those of ``wanted`` that a GPU computes with: bf16 and TF32 from 8.0 on, TF32 if PyTorch's setting allows it."""
    refused = {kind for kind in ("bf16", "tf32") if capability < (8, 0)} | (set() if tf32_allowed else {"tf32"})
    return [kind for kind in wanted if kind not in refused]


def compare(options: argparse.Namespace, gpu: Gpu, kinds: Sequence[str]) -> list[Timing]:
    """Measure every aggregation in every kind, print a table for each kind and pass, and return all timings."""
    timings = []
    for kind in kinds:
        for backward in (False, True):
            with precision(kind):
                cases = aggregations(options.images, tuple(options.size))
                group = [timing for case in cases for timing in measure(case, kind, backward, options, gpu)]
            passes = "forward and backward" if backward else "forward"
            print(f"\n{kind}, {passes}, {options.images} x {options.size[0]}x{options.size[1]}\n{table(group)}")
            timings += group
    return timings


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.operators", description=(__doc__ or "").split("\n")[0])
    options.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="types and precisions")
    options.add_argument("--images", type=positive, default=1, help="in a batch")
    options.add_argument("--size", nargs=2, type=positive, default=[800, 1344], metavar=("HEIGHT", "WIDTH"))
    options.add_argument("--rounds", type=positive, default=51, help="that count")
    options.add_argument("--warmup", type=int, default=10, help="rounds before them")
    return options


def main(arguments: Sequence[str] | None = None) -> list[Timing]:
    """Parse the command line and run.

    Raises:
        SystemExit: there is no GPU.
    """
    options = parser().parse_args(arguments)
    gpu = find_gpu()
    capability = torch.cuda.get_device_capability(gpu.device)
    print(environment("vovnet", "torch", "triton"))
    name = torch.cuda.get_device_name(gpu.device)
    cache = f"{gpu.cache_bytes / 2**20:.0f} MiB of L2 cache"
    versions = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    print(f"{name}, compute capability {capability[0]}.{capability[1]}, {cache}, {versions}")
    kinds = usable_kinds(options.kinds, capability, torch.backends.cudnn.conv.fp32_precision == "tf32")
    if left_out := [kind for kind in options.kinds if kind not in kinds]:
        print(f"left out, as this GPU lacks them or PyTorch's settings forbid them: {', '.join(left_out)}")
    return compare(options, gpu, kinds)


if __name__ == "__main__":
    main()
