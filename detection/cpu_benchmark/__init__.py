"""Compare the speed of ``vovnet.fuse`` on this machine's CPU with PyTorch, ONNX Runtime and OpenVINO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from vovnet.detection.cpu_benchmark.machine import describe_machine, load_average
from vovnet.detection.cpu_benchmark.report import draw_chart, format_machine, format_outcome, format_summary, to_json
from vovnet.detection.cpu_benchmark.running import run_cases
from vovnet.detection.figures import save_figure, warn_without_plot
from vovnet.files import write_json, write_text
from vovnet.terminal import streams

__all__ = ["run_benchmark"]


def run_benchmark(
    cases: Sequence[str],
    backends: Sequence[str],
    rounds: int,
    *,
    threads: int | None = None,
    output: Path | None = None,
    say: Callable[[str], None] = streams.echo,
) -> None:
    """Measure every case and print its table; this is ``vovnet benchmark cpu``.

    Args:
        cases: names of cases; empty means all.
        backends: names of backends; empty means all.
        rounds: number of rounds that are measured; every backend has a turn in each.
        threads: number of threads of every backend. None means PyTorch's own number.
        output: folder for ``table.md``, ``results.json``, ``chart.png`` and ``chart.svg``.
        say: prints a text. Progress goes to stderr.

    Raises:
        InputError: an unknown name.
    """
    load, before = load_average(), torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        outcomes = []
        measured = run_cases(cases, backends, rounds, streams.say)
        for outcome in measured:
            say(format_outcome(outcome) + "\n")
            outcomes.append(outcome)
        # Described after the cases, because it names the kernels that vovnet.fuse has loaded.
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
            with warn_without_plot(output / name):
                save_figure(draw_chart(outcomes), output / name)
