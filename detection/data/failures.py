"""Errors of one line for loader processes that die, freeze or run out of memory."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator

from vovnet.errors import StoppedError, causes

NO_WORKERS = "data.workers=0 (for an evaluation workers=0, --workers 0) loads images without such processes"
"""The advice that ends the messages about loader processes."""

NO_MEMORY = f"a loader process has too little memory: take fewer processes or smaller batches; {NO_WORKERS}"
"""The message for a loader process without memory."""

_TIMED_OUT = re.compile(r"DataLoader timed out after ([\d.]+) seconds")
_KILLED = re.compile(r"DataLoader worker \(pid (\d+)\) is killed by signal: (.+?)\.")
_ENDED = re.compile(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) exited unexpectedly(?: with exit code (-?\d+))?")
_ADVICE = {
    "SIGKILL": "the system does this if memory runs out: take fewer processes, smaller batches or more memory",
    "SIGBUS": "a file that it reads became shorter, or shared memory is full: in Docker, a larger --shm-size",
}


class LoaderError(StoppedError, RuntimeError):
    """The processes that load images died, froze, or cannot send what they load. The message says how to go on."""


class FrozenLoaderError(LoaderError):
    """No batch arrived in time."""


@contextlib.contextmanager
def loader_failures() -> Iterator[None]:
    """Raise a :class:`LoaderError` for a loader process that dies or freezes during a ``with`` block.

    torch reports a dead worker from a signal handler, so its error may appear anywhere in the main thread, also as the
    cause of another error.
    """
    try:
        yield
    except StoppedError:
        raise
    except Exception as error:
        found = [_failure(str(cause)) for cause in causes(error) if isinstance(cause, RuntimeError)]
        failures = [failure for failure in found if failure is not None]
        if not failures:
            raise
        raise failures[-1] from error  # the first error, which knows the signal


def ended(pid: int | str | None, code: int | None, name: str | None = None) -> LoaderError:
    """Return the error for a loader process that ended with an exit code, which is negative after a signal."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
    if name is not None:
        advice = _ADVICE.get(name, "a library in it failed")
        return LoaderError(f"a loader process (pid {pid}) was killed by {name} ({advice}); {NO_WORKERS}")
    with_code = "" if code is None else f" with exit code {code}"
    return LoaderError(f"a loader process (pid {pid}) ended by itself{with_code}; {NO_WORKERS}")


def _failure(text: str) -> LoaderError | None:
    """Return the error for torch's message about a loader process; None for any other message."""
    if found := _TIMED_OUT.search(text):
        return FrozenLoaderError(
            f"no batch arrived from the loader processes within {float(found[1]):g} s (data.timeout): a disk does not "
            f"answer, or a process is stopped; raise data.timeout if the data is only slow; {NO_WORKERS}"
        )
    if found := _KILLED.search(text):
        number = next((one for one in signal.Signals if signal.strsignal(one) == found[2]), None)
        return ended(found[1], None, found[2] if number is None else number.name)
    if found := _ENDED.search(text):
        return ended(found[1], int(found[2]) if found[2] else None)
    if "Too many open files" in text:
        return LoaderError(f"too many open files for the loader processes; raise the limit (ulimit -n); {NO_WORKERS}")
    return None
