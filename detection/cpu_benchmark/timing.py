"""Contestants take turns in one process, and what comes of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TURN_SECONDS = 0.1
"""A turn has as many calls as fit, at least one."""
PAUSE_SECONDS = 0.01
"""Before a turn: the threads of the contestant before may still be spinning in wait of work."""


def take_turns(
    runs: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time every contestant in every round, so that whatever else the machine does meets them alike.

    Every second round goes backwards: none always runs in the other's wake. Where a turn has several calls, one that is
    not counted comes first.

    Args:
        runs: name → what is timed.
        rounds: how many are kept.
        warmup: how many come before them and are thrown away, at least 1.
        clock: gives seconds.

    Returns:
        name → seconds of a call, in the order of the rounds.
    """
    calls = dict.fromkeys(runs, 1)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-max(warmup, 1), rounds):
        order = list(runs.items())
        for name, run in order if number % 2 == 0 else order[::-1]:
            time.sleep(PAUSE_SECONDS)
            if calls[name] > 1:
                run()
            start = clock()
            for _ in range(calls[name]):
                run()
            taken = (clock() - start) / calls[name]
            if number >= 0:
                seconds[name].append(taken)
            else:
                calls[name] = max(1, int(TURN_SECONDS / max(taken, 1e-6)))
    return seconds


@dataclass(frozen=True)
class Speedup:
    """How many times as fast one contestant is as another.

    Attributes:
        medians: by their median calls.
        least: by their fastest calls.
        rounds: the median of the ratios of single rounds.
    """

    medians: float
    least: float
    rounds: float


def speedup(ours: Sequence[float], theirs: Sequence[float]) -> Speedup:
    """Of ``ours`` over ``theirs``: seconds, in the order of the rounds."""
    return Speedup(
        statistics.median(theirs) / statistics.median(ours),
        min(theirs) / min(ours),
        statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
    )
