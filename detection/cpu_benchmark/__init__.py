"""How fast VoVNets run on this machine's CPU: ``vovnet.fuse`` beside what people would otherwise reach for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from vovnet.detection.cpu_benchmark.machine import describe_machine, load_average
from vovnet.detection.cpu_benchmark.report import draw_chart, format_machine, format_outcome, format_summary, to_json
from vovnet.detection.cpu_benchmark.running import run_cases
from vovnet.detection.figures import save_figure
from vovnet.files import write_json, write_text

__all__ = ["run_benchmark"]


def run_benchmark(
    cases: Sequence[str],
    contestants: Sequence[str],
    rounds: int,
    *,
    threads: int | None = None,
    output: Path | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Measure and print, case by case; what ``vovnet benchmark cpu`` does.

    Args:
        cases: names; none means all.
        contestants: names; none means all.
        rounds: that count; in each, every contestant has a turn.
        threads: of every contestant; PyTorch's number where None.
        output: a folder that is left with ``table.md``, ``results.json``, ``chart.png`` and ``chart.svg``.
        say: takes text to print; what is being done goes to stderr.

    Raises:
        InputError: an unknown name.
    """
    load, before = load_average(), torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        outcomes = []
        measured = run_cases(cases, contestants, rounds, lambda text: print(text, file=sys.stderr, flush=True))
        for outcome in measured:
            say(format_outcome(outcome) + "\n")
            outcomes.append(outcome)
        # After the cases: the kernels that vovnet.fuse loads are part of it.
        machine = {**describe_machine(), "load at the start": load}
    finally:
        torch.set_num_threads(before)
    summary, facts = format_summary(outcomes), format_machine(machine)
    say(f"{summary}\n\n{facts}")
    if output is not None:
        tables = "\n\n".join(map(format_outcome, outcomes))
        write_text(output / "table.md", f"{summary}\n\n{tables}\n\n```\n{facts}\n```\n")
        write_json(output / "results.json", to_json(machine, rounds, outcomes))
        for name in ("chart.png", "chart.svg"):
            save_figure(draw_chart(outcomes), output / name)
