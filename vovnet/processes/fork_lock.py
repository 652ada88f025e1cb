"""A lock that a fork leaves free in the child."""

from __future__ import annotations

import os
import threading
from types import TracebackType


class ForkSafeLock:
    """A lock for ``with`` blocks that is free in a child of ``fork``, where the thread that held it does not exist."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lock.locked():  # the forking thread may hold the lock itself, and end its block in the child
            self._lock.release()

    def _renew(self) -> None:
        self._lock = threading.Lock()
