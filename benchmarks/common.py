"""Shared parts of the benchmarks: ratios with goals, tables, and the description of the machine.

Nothing heavy is imported at the top, because some benchmarks measure the memory or the imports of new processes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass
class Ratio:
    """A measured ratio and its goal: ``value`` must be at least, or at most, ``bound``."""

    name: str
    value: float
    bound: float
    at_least: bool = True
    note: str = ""

    @property
    def met(self) -> bool:
        """True if the goal is reached."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        note = f" ({self.note})" if self.note else ""
        return f"{self.name}: {self.value:.3f}{note}; goal {sign} {self.bound:g}: {'met' if self.met else 'MISSED'}"


def timed(work: Callable[[], object]) -> float:
    """Return the seconds of wall time that ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def throughput_table(seconds: Mapping[str, Sequence[float]], units: Mapping[str, int], unit: str = "images") -> str:
    """Return a table with one line per contestant: median and least seconds of a round, and the rates of both.

    Args:
        seconds: name → seconds, one per round.
        units: name → number of units, such as images, in a round.
        unit: the name of the units.
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
    """Return how many times faster ``fast`` is, by median rates. The note gives best rates and single rounds, too."""
    a = [taken / units[fast] for taken in seconds[fast]]
    b = [taken / units[slow] for taken in seconds[slow]]
    rounds = [theirs / ours for ours, theirs in zip(a, b, strict=True)]
    note = (
        f"of the best rounds {min(b) / min(a):.3f}, median of single rounds {statistics.median(rounds):.3f}, "
        f"from {min(rounds):.3f} to {max(rounds):.3f} in {len(rounds)}"
    )
    return Ratio(f"{fast} / {slow}", statistics.median(b) / statistics.median(a), bound, note=note)


def environment(*packages: str, threads: int | None = None) -> str:
    """Return two lines: versions, and the machine."""
    from vovnet.environment import describe_machine

    facts = describe_machine(*packages)
    versions = [f"{name} {facts[name]}" for name in ("python", *packages)]
    machine = [str(facts["processor"]), f"{facts['usable cores']} usable cores"]
    if threads is not None:
        machine.append(f"{threads} torch threads")
    if hasattr(os, "getloadavg"):
        machine.append(f"load average {os.getloadavg()[0]:.1f}")
    return f"{', '.join(versions)}\n{', '.join(machine)}"


def positive(text: str) -> int:
    """Parse an integer of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return number
