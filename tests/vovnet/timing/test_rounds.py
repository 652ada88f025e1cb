"""Interleaved timing, with a clock that stands still unless a function runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vovnet.timing.rounds import TURN_SECONDS, interleave, speedup, time_calls


class Clock:
    """A clock whose time passes only while a function runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def runner(self, name: str, *seconds: float) -> Callable[[], None]:
        left = list(seconds)

        def run() -> None:
            self.order.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_backends_take_turns_in_alternating_order() -> None:
    clock = Clock()
    runs = {name: clock.runner(name, 1.0) for name in "abc"}
    seconds = time_calls(runs, 3, warmup=2, clock=clock)
    assert "".join(clock.order) == "abccba" + "abccbaabc"
    assert seconds == {name: [1.0] * 3 for name in "abc"}


def test_the_warm_up_is_not_counted() -> None:
    clock = Clock()
    assert time_calls({"a": clock.runner("a", 9.0, 8.0, 3.0, 2.0)}, 2, warmup=2, clock=clock) == {"a": [3.0, 2.0]}


def test_short_calls_are_timed_together_after_one_that_is_not_counted() -> None:
    clock = Clock()
    runs = {"long": clock.runner("long", 1.0), "short": clock.runner("short", TURN_SECONDS / 4.5)}
    seconds = time_calls(runs, 1, warmup=1, clock=clock)
    assert clock.order.count("long") == 2
    assert clock.order.count("short") == 1 + 1 + 4
    assert seconds["short"] == pytest.approx([TURN_SECONDS / 4.5])


def test_speedups_by_hand() -> None:
    gain = speedup([1.0, 2.0, 4.0], [3.0, 8.0, 4.0])
    assert (gain.medians, gain.least, gain.rounds) == (2.0, 3.0, 3.0)  # 4 / 2, 3 / 1, the middle of 3, 4 and 1


def test_every_second_round_runs_in_reverse_order() -> None:
    calls: list[tuple[str, int]] = []

    def turn_of(name: str, seconds: float) -> Callable[[int], float]:
        def turn(number: int) -> float:
            calls.append((name, number))
            return seconds + number

        return turn

    seconds = interleave({"a": turn_of("a", 1), "b": turn_of("b", 2)}, 2, warmup=1)
    assert calls == [("b", -1), ("a", -1), ("a", 0), ("b", 0), ("b", 1), ("a", 1)]
    assert seconds == {"a": [1, 2], "b": [2, 3]}
