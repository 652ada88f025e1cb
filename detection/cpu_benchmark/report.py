"""Present the results as text, JSON and a chart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vovnet.detection.cpu_benchmark.backends import BACKENDS
from vovnet.detection.cpu_benchmark.running import Outcome, Result
from vovnet.detection.figures import new_figure
from vovnet.timing.rounds import speedup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def format_machine(machine: Mapping[str, Any]) -> str:
    """Return the machine's description, one fact per line."""
    width = max(map(len, machine))
    return "\n".join(f"{name:{width}}  {value}" for name, value in machine.items())


def format_outcome(outcome: Outcome) -> str:
    """Return a Markdown table of a case's backends, and the reasons of those that did not take part.

    Times are given as multiples of ``vovnet.fuse``'s, or of the fastest backend's if ``vovnet.fuse`` was not measured.
    """
    base = outcome.ours or outcome.results.get(outcome.best_peer or "")
    head = ["backend", "median ms", "least ms", "× medians", "× least", "× rounds"]
    head += ["boxes, eager's", "unmatched", "px", "score"] if outcome.case.detector else ["rms error", "/ eager's"]
    rows = [
        [BACKENDS[name].title, *_times(result, base), *_quality(outcome, result)]
        for name, result in outcome.results.items()
    ]
    lines = [f"### {outcome.case.name}: {outcome.case.title}", "", *_table(head, rows)]
    absent = [f"- {BACKENDS[name].title}: {why}" for name, why in outcome.absent.items()]
    return "\n".join([*lines, *(["", *absent] if absent else [])])


def format_summary(outcomes: Sequence[Outcome]) -> str:
    """Return a Markdown table with the speedup of ``vovnet.fuse`` over the fastest other backend, one line per case."""
    rows = []
    for outcome in outcomes:
        gain = outcome.speedup
        if gain is None or outcome.best_peer is None:
            continue
        ratios = [f"{value:.2f}×" for value in (gain.medians, gain.least, gain.rounds)]
        rows.append([outcome.case.title, BACKENDS[outcome.best_peer].title, *ratios])
    if not rows:
        return "vovnet.fuse was not compared with others."
    head = ["case", "best of the others", "medians", "least", "median of rounds"]
    return "\n".join(_table(head, rows))


def to_json(machine: Mapping[str, Any], rounds: int, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return everything that was measured: seconds per round, and errors per map."""
    cases = []
    for outcome in outcomes:
        results = {name: _numbers(result) for name, result in outcome.results.items()}
        gain = outcome.speedup
        cases.append(
            {
                **asdict(outcome.case),
                "results": results,
                "absent": outcome.absent,
                "eager_errors": outcome.eager_errors,
                "best_peer": outcome.best_peer,
                "speedup": None if gain is None else asdict(gain),
            }
        )
    return {"machine": dict(machine), "rounds": rounds, "cases": cases}


def draw_chart(outcomes: Sequence[Outcome]) -> Figure:
    """Draw one panel per case: bars for median times with a line at the least, ``vovnet.fuse`` in colour.

    Raises:
        InputError: matplotlib is not installed.
    """
    columns = min(2, len(outcomes))
    lines = math.ceil(len(outcomes) / columns)
    figure = new_figure(6.4 * columns, 2.5 * lines)
    for position, outcome in enumerate(outcomes, start=1):
        _draw_panel(figure.add_subplot(lines, columns, position), outcome)
    return figure


def _draw_panel(axes: Axes, outcome: Outcome) -> None:
    titles = [BACKENDS[name].title for name in outcome.results]
    times = [1e3 * result.median for result in outcome.results.values()]
    colours = ["#0b6e99" if BACKENDS[name].ours else "#b8bec4" for name in outcome.results]
    axes.barh(titles, times, color=colours)
    for line, (result, time) in enumerate(zip(outcome.results.values(), times, strict=True)):
        least = 1e3 * min(result.seconds)
        axes.plot([least, least], [line - 0.4, line + 0.4], color="#222222", linewidth=1.2)
        ratio = "" if outcome.ours in (None, result) else f" ({time / 1e3 / outcome.ours.median:.2f}×)"
        axes.text(time, line, f" {time:.1f}{ratio}", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.22)
    axes.set_xlim(left=0)
    axes.tick_params(labelsize=8)
    axes.set_xlabel("ms", fontsize=8)
    axes.set_title(outcome.case.title, loc="left", fontsize=9)


def _numbers(result: Result) -> dict[str, Any]:
    errors = [error if math.isfinite(error) else None for error in result.errors or ()]  # JSON has no NaN
    return {**asdict(result), "errors": errors or None, "median": result.median, "least": min(result.seconds)}


def _times(result: Result, base: Result | None) -> list[str]:
    times = [f"{1e3 * result.median:.1f}", f"{1e3 * min(result.seconds):.1f}"]
    if base is None:
        return [*times, "", "", ""]
    ratio = speedup(base.seconds, result.seconds)
    return [*times, f"{ratio.medians:.2f}", f"{ratio.least:.2f}", f"{ratio.rounds:.2f}"]


def _quality(outcome: Outcome, result: Result) -> list[str]:
    if result.agreement is not None:
        found = result.agreement
        counts = [f"{found.count}, {found.eager_count}", str(found.unmatched)]
        return [*counts, f"{found.box_distance:.4f}", f"{found.score_distance:.1e}"]
    if result.errors is None or outcome.eager_errors is None:
        return ["", ""]
    ours, eager = result.errors[-1], outcome.eager_errors[-1]
    return [f"{ours:.2e}", f"{ours / eager:.2f}" if eager else "–"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (head, *rows)
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
