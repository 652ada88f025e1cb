"""The sections of the report: what each is called, how long it may take, and the columns of its table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """A part of the report, which runs in processes of its own.

    Attributes:
        name: the name for ``--sections`` and of its files.
        title: the heading in the report.
        share: the seconds that it may take if all before it have taken theirs; time that is left over goes to the
            later ones in proportion to their shares.
        step_seconds: one step of it that takes longer is ended, and the next one runs in a new process.
        headings: the columns of its table; none if its steps only pass or fail.
        text: what the reader must know.
        module: has ``steps(setting)``, which returns a list of :class:`benchmarks.gpu.steps.Step`.
    """

    name: str
    title: str
    share: int
    step_seconds: int
    headings: tuple[str, ...]
    text: str
    module: str


def _section(name: str, title: str, share: int, step_seconds: int, headings: str, text: str) -> Section:
    columns = tuple(column.strip() for column in headings.split("|")) if headings else ()
    return Section(name, title, share, step_seconds, columns, text, f"benchmarks.gpu.{name}")


FLOOR = (
    "The floor is the larger of two times: the bytes that must move at least, at the copy's rate, and the operations, "
    "at the rate of a large matrix product of the same numbers, both as measured above. "
)

SECTIONS = (
    _section("machine", "Machine", 30, 20, "what | value", ""),
    _section(
        "build",
        "Build of the kernels",
        120,
        120,
        "kernel | registers | spilled bytes | shared bytes | occupancy",
        "nvcc for this GPU's architecture alone. Registers and occupancy are the compiler's figures.",
    ),
    _section(
        "ceilings",
        "Ceilings of this device",
        25,
        20,
        "what | rate",
        "The fastest of all repetitions, with random numbers. The copy's bytes are those read and those written.",
    ),
    _section(
        "checks",
        "Tests of the operators",
        90,
        30,
        "",
        "The checks of `tests/vovnet/ops/test_gpu.py`: `require` with the kernels, `off` with plain PyTorch.",
    ),
    _section(
        "kernels",
        "Each kernel and its floor",
        40,
        20,
        "kernel | numbers | aggregation | median µs | least µs | GB/s | TFLOP/s | floor µs | × floor",
        f"VoVNet-39's aggregations. {FLOOR}The last column is the median over the floor. Times are between events on "
        "the device, with inputs that are not in the L2 cache.",
    ),
    _section(
        "aggregations",
        "`osa_aggregate` and PyTorch's ways",
        110,
        60,
        "pass | numbers | aggregation | way | median µs | least µs | × ours | × floor",
        "`benchmarks.operators`: the aggregation by each way, with inputs that are not in the L2 cache. The floor of "
        "a whole pass counts each tensor once in the forward and once in the backward pass.",
    ),
    _section(
        "training",
        "Training step of a detector",
        75,
        40,
        "numbers | detector | median ms | least ms | images/s | peak GiB | floor ms | × floor",
        "Faster R-CNN with FPN, frozen norms, random weights, channels-last; forward, backward and SGD. `fp32` has "
        "PyTorch's default, TF32 convolutions; `bf16` is autocast. The floor has only the operations of convolutions "
        "and matrix products. The peak is that of PyTorch's allocator, with weights, gradients and momentum.",
    ),
    _section(
        "inference",
        "Inference latency",
        50,
        60,
        "numbers | network | median ms | least ms | floor ms | × floor",
        "One image, wall time from the call to the finished result, random weights: a detector keeps 1,000 proposals "
        "and finds no box above its threshold. The floor has only the operations of convolutions and products.",
    ),
)
