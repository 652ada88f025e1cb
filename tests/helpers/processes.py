"""Processes that a test forks and kills. A fork has every import already, so it costs milliseconds."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def forked(body: Callable[[int], object]) -> Iterator[tuple[int, str]]:
    """Run a function in a forked process; yield the process and the first line that it wrote to its descriptor."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            body(write)
        finally:
            os._exit(0)
    os.close(write)
    try:
        with open(read, encoding="utf-8") as said:
            yield process, said.readline()
    finally:
        killed(process)


def killed(process: int) -> None:
    """Kill a child with SIGKILL and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def wait_for_ever(say: int) -> None:
    """Say that everything is in place, and stay."""
    os.write(say, b"ready\n")
    while True:
        signal.pause()
