"""What every benchmark does alike: interleave, summarise, and say what it ran on. Imports nothing heavy."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vovnet.environment import describe_machine


@dataclass
class Ratio:
    """One comparison with its goal: ``value`` must be at least, or at most, ``bound``."""

    name: str
    value: float
    bound: float
    at_least: bool = True
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the goal is reached."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        note = f" ({self.note})" if self.note else ""
        return f"{self.name}: {self.value:.3f}{note}; goal {sign} {self.bound:g}: {'met' if self.met else 'MISSED'}"


def interleave(
    contestants: Mapping[str, Callable[[int], float]], rounds: int, *, warmup: int = 0
) -> dict[str, list[float]]:
    """Run all contestants in every round, so that whatever else the machine does meets them alike.

    Every second round goes backwards: none always runs in the other's wake.

    Args:
        contestants: name → function of the round's number (negative in warm-up) that returns seconds.
        rounds: how many are kept.
        warmup: how many come before them and are thrown away.

    Returns:
        name → seconds, in the order of the rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(-warmup, rounds):
        order = list(contestants.items())
        for name, run in order if number % 2 == 0 else order[::-1]:
            taken = run(number)
            if number >= 0:
                seconds[name].append(taken)
    return seconds


def timed(work: Callable[[], object]) -> float:
    """Seconds of wall time that ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def throughput_table(seconds: Mapping[str, Sequence[float]], units: Mapping[str, int], unit: str = "images") -> str:
    """A line a contestant: median and least seconds of a round, and the rate of the median and of the best round.

    Args:
        seconds: from :func:`interleave`.
        units: name → how many units (images) a round of it is.
        unit: their name.
    """
    width = max(map(len, seconds))
    lines = [f"{'':{width}}  median s   least s  {unit + '/s':>10}  best"]
    for name, taken in seconds.items():
        median, least = statistics.median(taken), min(taken)
        rates = f"{units[name] / median:10.2f}  {units[name] / least:.2f}"
        lines.append(f"{name:{width}}  {median:8.3f}  {least:8.3f}  {rates}")
    return "\n".join(lines)


def speed_ratio(
    seconds: Mapping[str, Sequence[float]], units: Mapping[str, int], fast: str, slow: str, bound: float
) -> Ratio:
    """How many times faster ``fast`` is: the ratio of median rates; the note has that of best rates and of rounds."""
    a = [taken / units[fast] for taken in seconds[fast]]
    b = [taken / units[slow] for taken in seconds[slow]]
    rounds = [theirs / ours for ours, theirs in zip(a, b, strict=True)]
    note = (
        f"of the best rounds {min(b) / min(a):.3f}, median of single rounds {statistics.median(rounds):.3f}, "
        f"from {min(rounds):.3f} to {max(rounds):.3f} in {len(rounds)}"
    )
    return Ratio(f"{fast} / {slow}", statistics.median(b) / statistics.median(a), bound, note=note)


def environment(*packages: str, threads: int | None = None) -> str:
    """Two lines: versions, and the machine."""
    facts = describe_machine(*packages)
    versions = [f"{name} {facts[name]}" for name in ("python", *packages)]
    machine = [str(facts["processor"]), f"{facts['usable cores']} usable cores"]
    if threads is not None:
        machine.append(f"{threads} torch threads")
    if hasattr(os, "getloadavg"):
        machine.append(f"load {os.getloadavg()[0]:.1f} at the start")
    return f"{', '.join(versions)}\n{', '.join(machine)}"


def positive(text: str) -> int:
    """For argparse: an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return number
