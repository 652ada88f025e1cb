"""The aggregations of VoVNet-39 on a GPU: ``osa_aggregate`` compared with PyTorch's own ways to compute it.

    python -m benchmarks.operators [--kinds fp16 bf16 fp32 tf32] [--images 1]

Times are measured on the GPU between two events. The GPU is kept busy while the CPU queues the call, so the times do
not include launching. The inputs of a call are not in the L2 cache: they rotate, and the work before has filled it.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import environment, positive
from vovnet.ops import cuda, osa_aggregate
from vovnet.timing.rounds import interleave
from vovnet.vovnet import model_cfgs

OURS, EAGER, LAST, COMPILED = "osa_aggregate", "eager", "eager, channels-last", "torch.compile, channels-last"
KINDS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "tf32": torch.float32}
TOLERANCE = {"fp16": 0.05, "bf16": 0.1, "fp32": 0.01, "tf32": 0.05}
"""Largest relative norm of a difference. If rounding changes a sum's sign, the ReLU's gradient changes."""

Clock = Callable[[Callable[[], object]], float]
"""Runs a function and returns its seconds on the GPU."""


@dataclass(frozen=True)
class Aggregation:
    """The 1×1 aggregation of one block: ``relu(conv1x1(cat(inputs))) (+ inputs[0])``.

    Attributes:
        name: the block, such as "stage 4, block 1".
        shape: number of images, height and width of the maps.
        widths: channels of each input.
        out_channels: channels of the output.
        residual: the first input is added to the output.
    """

    name: str
    shape: tuple[int, int, int]
    widths: tuple[int, ...]
    out_channels: int
    residual: bool

    def operations(self, backward: bool) -> int:
        """Return the multiplications and additions of the products: one forward, two more (inputs, weight) backward."""
        return (3 if backward else 1) * 2 * math.prod(self.shape) * sum(self.widths) * self.out_channels

    def least_bytes(self, item: int, backward: bool) -> int:
        """Return the bytes to and from memory if every tensor is read and written once.

        The forward pass reads inputs, weight and bias and writes the output; the residual is one of the inputs. With a
        backward pass it also writes the mask, one bit per element of the output. The backward pass reads inputs,
        weight, mask and the output's gradient and writes the gradients of inputs, weight and bias.

        Args:
            item: bytes per element.
            backward: include the backward pass.
        """
        pixels = math.prod(self.shape)
        inputs, output = pixels * sum(self.widths) * item, pixels * self.out_channels * item
        parameters = (sum(self.widths) + 1) * self.out_channels * item
        forward = inputs + parameters + output
        bits = pixels * self.out_channels // 8
        return forward + (2 * inputs + 2 * parameters + output + 2 * bits if backward else 0)


def aggregations(images: int, size: tuple[int, int]) -> list[Aggregation]:
    """Return the aggregations of VoVNet-39 in order, one of each shape and kind.

    Args:
        images: batch size.
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
    """The seconds that one way to compute an aggregation took, one per round."""

    case: Aggregation
    kind: str
    backward: bool
    way: str
    seconds: Sequence[float]

    @property
    def median(self) -> float:
        """Median of :attr:`seconds`."""
        return statistics.median(self.seconds)

    @property
    def bandwidth(self) -> float:
        """Bytes per second, by :meth:`Aggregation.least_bytes` and the median."""
        return self.case.least_bytes(KINDS[self.kind].itemsize, self.backward) / self.median

    @property
    def rate(self) -> float:
        """Operations of the products per second."""
        return self.case.operations(self.backward) / self.median


def table(timings: Sequence[Timing]) -> str:
    """Return a table with a line per timing, grouped by aggregation; "x ours" is the ratio to the group's first."""
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
    """Compute the aggregation in plain PyTorch, as timm's block does."""
    out = F.relu(F.conv2d(torch.cat(list(inputs), 1), weight, bias), inplace=True)
    return out if residual is None else out + residual


def fused(inputs: Sequence[Tensor], weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    """Compute the aggregation with :func:`vovnet.ops.osa_aggregate`."""
    return osa_aggregate(inputs, weight, bias, residual)


def ways() -> dict[str, tuple[Callable[..., Tensor], torch.memory_format]]:
    """Return name → function and layout. Earlier compilations are reset, so that sizes do not become dynamic."""
    torch.compiler.reset()
    compiled: Any = torch.compile(concatenated, dynamic=False)
    return {
        OURS: (fused, torch.channels_last),
        EAGER: (concatenated, torch.contiguous_format),
        LAST: (concatenated, torch.channels_last),
        COMPILED: (compiled, torch.channels_last),
    }


class Tensors:
    """The tensors of an aggregation in both layouts, with enough sets of inputs to exceed the L2 cache."""

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
        """Return a function of a round's number that returns the output and, if wanted, all gradients."""
        sets, grad = self.sets[layout], self.grad.contiguous(memory_format=layout)

        def call(number: int) -> list[Tensor]:
            inputs = sets[number % len(sets)]
            out = function(inputs, self.weight, self.bias, inputs[0] if self.case.residual else None)
            if not self.backward:
                return [out]
            return [out, *torch.autograd.grad(out, [*inputs, self.weight, self.bias], grad)]

        return call


def check_equal(results: dict[str, list[Tensor]], kind: str) -> None:
    """Compare the results of all ways with eager PyTorch's.

    Raises:
        RuntimeError: a result differs by more than rounding.
    """
    for name, tensors in results.items():
        for ours, eager in zip(tensors, results[EAGER], strict=True):
            ours, eager = ours.detach().float(), eager.detach().float()
            error = float((ours - eager).norm() / eager.norm())
            if not error <= TOLERANCE[kind]:
                raise RuntimeError(f"{name} differs from {EAGER} in {kind}: by {error:.1e} of the result's norm")


def measure(
    case: Aggregation,
    kind: str,
    backward: bool,
    options: argparse.Namespace,
    gpu: Gpu,
    *,
    without: Collection[str] = (),
) -> list[Timing]:
    """Compare the results of all ways but those in ``without``, then time them, interleaved."""
    tensors = Tensors(case, KINDS[kind], gpu, backward)
    chosen = {name: way for name, way in ways().items() if name not in without}
    calls = {name: tensors.run(function, layout) for name, (function, layout) in chosen.items()}
    check_equal({name: call(0) for name, call in calls.items()}, kind)

    def contestant(call: Callable[[int], object]) -> Callable[[int], float]:
        return lambda number: gpu.clock(lambda: call(number))

    rounds = interleave({n: contestant(c) for n, c in calls.items()}, options.rounds, warmup=options.warmup)
    served = cuda.supported(tensors.sets[torch.channels_last][0], tensors.weight)
    shown = {OURS: OURS if served else f"{OURS} (no kernel: plain PyTorch)"}
    return [Timing(case, kind, backward, shown.get(name, name), seconds) for name, seconds in rounds.items()]


@dataclass(frozen=True)
class Gpu:
    """The device of the measurement, and its clock."""

    device: torch.device
    cache_bytes: int
    clock: Clock


def find_gpu() -> Gpu:
    """Return the current GPU.

    Raises:
        SystemExit: there is no GPU.
    """
    if not torch.cuda.is_available() or torch.version.cuda is None:
        raise SystemExit("benchmarks.operators needs an NVIDIA GPU, and PyTorch sees none here")
    if not hasattr(torch.backends.cudnn, "conv"):
        raise SystemExit(f"benchmarks.operators needs PyTorch 2.9 or later (fp32_precision), got {torch.__version__}")
    device = torch.device("cuda", torch.cuda.current_device())
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return Gpu(device, cache, event_clock(max(2**28, 2 * cache)))


def event_clock(filler_bytes: int, head_start: float = 2e-3) -> Clock:
    """Return a clock on the current stream.

    Args:
        filler_bytes: memory that is filled before the work, more than the L2 cache has.
        head_start: seconds for which the GPU fills memory while the CPU queues the measured work behind it.
    """
    filler = torch.empty(filler_bytes, dtype=torch.uint8, device="cuda")
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def fill(times: int) -> None:
        for _ in range(times):
            filler.zero_()

    def seconds_of(work: Callable[[], object]) -> float:
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def clock(work: Callable[[], object]) -> float:
        fill(fills)
        return seconds_of(work)

    fill(2)  # the first ones load the kernel
    fills = math.ceil(head_start / (seconds_of(lambda: fill(8)) / 8))
    return clock


@contextmanager
def precision(kind: str) -> Iterator[None]:
    """Set PyTorch's precision of float32 products: TF32 for ``tf32`` only."""
    cudnn: Any = torch.backends.cudnn  # `conv` is unknown to its types
    matmul = torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.conv.fp32_precision, matmul.fp32_precision
    # PyTorch has an older and a newer setting. These two set both; it raises an error where they contradict each other.
    cudnn.allow_tf32 = matmul.allow_tf32 = kind == "tf32"
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.conv.fp32_precision, matmul.fp32_precision = before


def usable_kinds(wanted: Sequence[str], capability: tuple[int, int], tf32_allowed: bool) -> list[str]:
    """Return the kinds that a GPU supports: bf16 and TF32 from 8.0 on, TF32 only if PyTorch's setting allows it."""
    refused = {kind for kind in ("bf16", "tf32") if capability < (8, 0)} | (set() if tf32_allowed else {"tf32"})
    return [kind for kind in wanted if kind not in refused]


def compare(options: argparse.Namespace, gpu: Gpu, kinds: Sequence[str]) -> list[Timing]:
    """Measure every aggregation in every kind; print a table for each kind and pass; return all timings."""
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
    """Return the parser of the command line."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.operators", description=(__doc__ or "").split("\n")[0])
    options.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="dtypes and precisions")
    options.add_argument("--images", type=positive, default=1, help="batch size")
    options.add_argument("--size", nargs=2, type=positive, default=[800, 1344], metavar=("HEIGHT", "WIDTH"))
    options.add_argument("--rounds", type=positive, default=51, help="rounds that are measured")
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
    cudnn: Any = torch.backends.cudnn
    print(environment("vovnet", "torch", "triton"))
    name = torch.cuda.get_device_name(gpu.device)
    cache = f"{gpu.cache_bytes / 2**20:.0f} MiB of L2 cache"
    versions = f"CUDA {torch.version.cuda}, cuDNN {cudnn.version()}"
    print(f"{name}, compute capability {capability[0]}.{capability[1]}, {cache}, {versions}")
    kinds = usable_kinds(options.kinds, capability, cudnn.conv.fp32_precision == "tf32")
    if left_out := [kind for kind in options.kinds if kind not in kinds]:
        print(f"left out, as this GPU lacks them or PyTorch's settings forbid them: {', '.join(left_out)}")
    return compare(options, gpu, kinds)


if __name__ == "__main__":
    main()
