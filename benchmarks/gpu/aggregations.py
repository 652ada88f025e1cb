"""``benchmarks.operators`` in steps: the aggregation by each way, so that a way that fails hides no other."""

from __future__ import annotations

from argparse import Namespace

from benchmarks import operators
from benchmarks.gpu.setting import Setting, micro, over
from benchmarks.gpu.steps import Result, Row, Step
from benchmarks.operators import KINDS, Aggregation, Gpu, Timing

PASSES = {False: "forward", True: "forward and backward"}


def steps(setting: Setting) -> list[Step]:
    """Return a step per pass, kind of numbers and aggregation. Compiling takes longest, so fp32 comes last."""
    size = setting.size((800, 1344), (64, 96))
    options = operators.parser().parse_args(
        ["--rounds", str(setting.size(21, 2)), "--warmup", str(setting.size(3, 0)), "--size", *map(str, size)]
    )
    cases = operators.aggregations(options.images, size)
    cases = setting.size(cases, cases[-1:])
    order = [(backward, kind) for kind in setting.kinds for backward in (False, True)]
    order.sort(key=lambda place: place[1] == "fp32")  # a stable sort
    broken: list[str] = []

    def step(backward: bool, kind: str, case: Aggregation) -> Step:
        def run() -> Result:
            with operators.precision(kind):
                timings, failure = _timings(case, kind, backward, options, setting.gpu, broken)
            rows = [_row(setting, timing, timings[0]) for timing in timings]
            gaps = (operators.COMPILED, failure, "–", "–", "–")
            return Result([*rows, (PASSES[backward], kind, case.name, *gaps)] if failure else rows)

        return Step(f"{PASSES[backward]}, {kind}, {case.name}", run)

    return [step(backward, kind, case) for backward, kind in order for case in cases]


def _timings(
    case: Aggregation, kind: str, backward: bool, options: Namespace, gpu: Gpu, broken: list[str]
) -> tuple[list[Timing], str]:
    """Return the times of all ways; if one fails, those without ``torch.compile``, and the failure.

    ``torch.compile`` needs more than PyTorch: a compiler, Python's headers, a Triton that knows the GPU. What is in
    ``broken`` is not tried again.
    """
    failure = broken[0] if broken else ""
    if not failure:
        try:
            return operators.measure(case, kind, backward, options, gpu), ""
        except Exception as error:
            failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    timings = operators.measure(case, kind, backward, options, gpu, without=[operators.COMPILED])
    broken[:] = [failure]
    return timings, failure


def _row(setting: Setting, timing: Timing, ours: Timing) -> Row:
    case, kind, backward = timing.case, timing.kind, timing.backward
    moved, operations = case.least_bytes(KINDS[kind].itemsize, backward), case.operations(backward)
    floor = setting.ceilings.floor(kind, moved=moved, operations=operations)
    times = (micro(timing.median), micro(min(timing.seconds)))
    ratios = (f"{timing.median / ours.median:.2f}", over(timing.median, floor))
    return (PASSES[backward], kind, case.name, timing.way, *times, *ratios)
