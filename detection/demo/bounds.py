"""What a visitor of the demo may ask of it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from vovnet.errors import InputError

MEGABYTE = 2**20
_WINDOW = 60.0
"""Seconds."""
_MOST_CLIENTS = 10_000


@dataclass(frozen=True)
class Bounds:
    """Limits of the demo.

    Raises:
        InputError: one of them is below 1.
    """

    max_size_mb: float = 10
    """The largest image file, in megabytes (2**20 bytes)."""
    max_pixels: int = 25_000_000
    """Images with more pixels are refused; only their header is read."""
    rate: int = 30
    """How many images a client may have looked at in a minute. An image counts once for each detector."""
    max_images: int = 8
    """How many images a visitor sees at a time."""
    sessions: int = 50
    """How many visitors' images are kept. Whoever came first is forgotten first."""

    def __post_init__(self) -> None:
        if not 0 < self.max_size_mb <= 1000:
            raise InputError(f"--max-size-mb: expected a number above 0 and at most 1000, got {self.max_size_mb}")
        for name in ("max_pixels", "rate", "max_images", "sessions"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(self, name)}")

    @property
    def max_bytes(self) -> int:
        """The largest image file in bytes."""
        return round(self.max_size_mb * MEGABYTE)


class RateLimit:
    """Counts what each client has done in the last minute. Threads may share it.

    Args:
        limit: how much is allowed in a minute.
        clock: returns seconds.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = limit, clock
        self._done: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def wait_for(self, client: str) -> float:
        """Count one more for a client, and return 0; or count nothing, and return the seconds it has to wait."""
        with self._lock:
            now = self._clock()
            done = self._done.setdefault(client, deque())
            while done and done[0] <= now - _WINDOW:
                done.popleft()
            if len(done) >= self._limit:
                return max(done[0] + _WINDOW - now, 0.001)
            done.append(now)
            if len(self._done) > _MOST_CLIENTS:
                self._forget(now)
            return 0.0

    def _forget(self, now: float) -> None:
        """Forget clients that did nothing in the last minute; or else all, because memory is bounded."""
        kept = {client: done for client, done in self._done.items() if done and done[-1] > now - _WINDOW}
        self._done = kept if len(kept) <= _MOST_CLIENTS else {}
