"""The one error that stands for wrong input, and how errors end a command."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

DETECTION_EXTRA = {"omegaconf", "pycocotools", "matplotlib", "tqdm", "yaml"}


class InputError(ValueError):
    """Something that a user gave cannot be used.

    The message says what was given, what was expected, where, and how to mend it. Library callers can catch it as a
    ``ValueError``; the command line prints it as one line and exits with code 1.
    """


class StoppedError(Exception):
    """A command ended early for a reason that its message explains to the user."""

    exit_code = 1


def reason(error: BaseException) -> str:
    """The first line of another library's message, or the error's name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def system_error(error: OSError) -> str:
    """What the system refused, where, and how to mend it, in one line."""
    where = error.filename or "a file"
    hints = {
        errno.ENOSPC: "the disk is full: free some space, or name another folder",
        errno.EDQUOT: "the quota is full: free some space, or name another folder",
        errno.EFBIG: "no larger file is allowed: raise the limit (ulimit -f), or name another folder",
        errno.EACCES: "no permission: change it, or name another folder",
        errno.EPERM: "no permission: change it, or name another folder",
        errno.EROFS: "the file system is read-only: name another folder",
        errno.ENOENT: "check the path",
    }
    hint = hints.get(error.errno or 0)
    return f"{where}: {error.strerror}" + (f" ({hint})" if hint else "")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with one line on stderr and a non-zero exit code where the user can mend what went wrong.

    That is wrong input, what the system refuses, a missing extra, and :class:`StoppedError`. Everything else is a
    defect of ours and keeps its traceback; so do all with ``VOVNET_DEBUG=1``.
    """
    try:
        yield
    except (InputError, StoppedError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("VOVNET_DEBUG") == "1":
            raise
        message = " ".join(str(error).split())
        if isinstance(error, OSError) and error.strerror:
            message = system_error(error)
        elif isinstance(error, ModuleNotFoundError):
            if error.name not in DETECTION_EXTRA:
                raise
            message = f"this needs '{error.name}'; install it with: pip install 'vovnet[detection]'"
        _end_progress_bars()
        rank = os.environ.get("RANK", "0")
        print(f"{'error' if rank == '0' else f'error (rank {rank})'}: {message}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))


def _end_progress_bars() -> None:
    """Let the message begin on a line of its own where a progress bar was cut off by the error."""
    tqdm: Any = sys.modules.get("tqdm")
    for bar in list(getattr(getattr(tqdm, "tqdm", None), "_instances", ())):
        bar.close()
