"""Forked processes in tests: run a function in a child, and wait for it no longer than a minute."""

from __future__ import annotations

import os
import pickle
import select
import signal
import traceback
from collections.abc import Callable
from typing import Any


def in_child(work: Callable[[], Any], fork: Callable[[], int] = os.fork, seconds: float = 60) -> Any:
    """Fork, call ``work`` in the child, and return its value.

    Raises:
        TimeoutError: the child did not answer.
        RuntimeError: ``work`` failed; the message is the child's traceback.
    """
    reading, writing = os.pipe()
    child = fork()
    if child == 0:
        try:
            answer = pickle.dumps((True, work()))
        except BaseException:
            answer = pickle.dumps((False, traceback.format_exc()))
        with os.fdopen(writing, "wb") as stream:
            stream.write(answer)
        os._exit(0)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as stream:
            if not select.select([stream], [], [], seconds)[0]:
                raise TimeoutError(f"the child has not answered for {seconds} s")
            succeeded, value = pickle.loads(stream.read())
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not succeeded:
        raise RuntimeError(value)
    return value
