"""Interleaved timing of several functions in one process, and the speedups that follow from it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

TURN_SECONDS = 0.1
"""Length of a backend's turn; it makes as many calls as fit, at least one."""
PAUSE_SECONDS = 0.01
"""Pause before a turn, because the threads of the previous backend may still be spinning."""


def interleave(turns: Mapping[str, Callable[[int], float]], rounds: int, *, warmup: int = 0) -> dict[str, list[float]]:
    """Run every function once per round, so that disturbances of the machine affect all of them equally.

    Every second round runs in reverse order, so that no function always runs after the same other one.

    Args:
        turns: name → function of the round's number, negative during warm-up, that returns seconds.
        rounds: number of rounds that are kept.
        warmup: number of rounds before them that are discarded.

    Returns:
        name → seconds, one per round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(-warmup, rounds):
        order = list(turns.items())
        for name, turn in order if number % 2 == 0 else order[::-1]:
            taken = turn(number)
            if number >= 0:
                seconds[name].append(taken)
    return seconds


def time_calls(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time calls of several functions, interleaved.

    A turn makes as many calls as fit into :data:`TURN_SECONDS`. If that is more than one, a call that is not timed
    comes first.

    Args:
        runs: name → function to time.
        rounds: number of rounds that are kept.
        warmup: number of rounds before them that are discarded, at least 1.
        clock: returns the time in seconds.

    Returns:
        name → seconds per call, one per round.
    """
    calls = dict.fromkeys(runs, 1)

    def turn_of(name: str, run: Callable[[], object]) -> Callable[[int], float]:
        def turn(number: int) -> float:
            time.sleep(PAUSE_SECONDS)
            if calls[name] > 1:
                run()
            start = clock()
            for _ in range(calls[name]):
                run()
            taken = (clock() - start) / calls[name]
            if number < 0:
                calls[name] = max(1, int(TURN_SECONDS / max(taken, 1e-6)))
            return taken

        return turn

    return interleave({name: turn_of(name, run) for name, run in runs.items()}, rounds, warmup=max(warmup, 1))


@dataclass(frozen=True)
class Speedup:
    """How many times as fast one function is as another.

    Attributes:
        medians: ratio of their medians.
        least: ratio of their fastest turns.
        rounds: median of the ratios of single rounds.
    """

    medians: float
    least: float
    rounds: float


def speedup(ours: Sequence[float], theirs: Sequence[float]) -> Speedup:
    """Return the speedup of ``ours`` over ``theirs``, each in seconds, one per round."""
    return Speedup(
        statistics.median(theirs) / statistics.median(ours),
        min(theirs) / min(ours),
        statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
    )
