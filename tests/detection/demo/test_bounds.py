"""The bounds of the demo, and the rate of each client."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vovnet.detection.demo import bounds
from vovnet.detection.demo.bounds import Bounds, RateLimit
from vovnet.errors import InputError


@pytest.mark.parametrize(
    ("argument", "value"),
    [("max_size_mb", 0), ("max_size_mb", float("nan")), ("max_pixels", 0), ("rate", 0), ("max_images", -1)],
)
def test_bounds_below_their_least_are_refused(argument, value):
    with pytest.raises(InputError, match=f"--{argument.replace('_', '-')}"):
        Bounds(**{argument: value})


def test_megabytes_are_bytes():
    assert Bounds(max_size_mb=0.5).max_bytes == 512 * 1024


@given(st.integers(1, 5), st.lists(st.tuples(st.floats(0, 40, allow_nan=False), st.sampled_from("ab")), max_size=40))
def test_no_minute_has_more_than_the_limit_and_nobody_waits_without_cause(limit, steps):
    now = 0.0
    rate = RateLimit(limit, lambda: now)
    allowed = {"a": [], "b": []}
    for pause, client in steps:
        now += pause
        recent = [one for one in allowed[client] if one > now - 60]
        wait = rate.wait_for(client)
        assert (wait == 0) == (len(recent) < limit)
        if wait == 0:
            allowed[client].append(now)
        else:
            assert wait == pytest.approx(recent[0] + 60 - now, abs=1e-3)


def test_the_memory_of_clients_is_bounded(monkeypatch):
    monkeypatch.setattr(bounds, "_MOST_CLIENTS", 10)
    now = 0.0
    rate = RateLimit(1, lambda: now)
    for number in range(9):
        rate.wait_for(f"old {number}")
    now = 50.0
    assert rate.wait_for("recent") == 0
    now = 70.0
    assert [rate.wait_for(name) for name in ("new", "newer")] == [0, 0]
    assert rate.wait_for("recent") == pytest.approx(40)  # those of before are forgotten, this one is not
    assert len(rate._done) == 3


def test_threads_share_a_limit():
    rate = RateLimit(50, lambda: 0.0)
    passed = []
    threads = [
        threading.Thread(target=lambda: passed.extend(rate.wait_for("one") == 0 for _ in range(40))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(passed) == 50
