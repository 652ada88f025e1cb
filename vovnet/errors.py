"""The one error that stands for wrong input, and how errors end a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

DETECTION_EXTRA = {"omegaconf", "pycocotools", "matplotlib", "tqdm", "yaml"}


class InputError(ValueError):
    """Something that a user gave cannot be used.

    The message says what was given, what was expected, where, and how to mend it. Library callers can catch it as a
    ``ValueError``; the command line prints it as one line and exits with code 1.
    """


class StoppedError(Exception):
    """A command ended early for a reason that its message explains to the user."""

    exit_code = 1


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
            message = f"{error.filename or 'file'}: {error.strerror}"
        elif isinstance(error, ModuleNotFoundError):
            if error.name not in DETECTION_EXTRA:
                raise
            message = f"this needs '{error.name}'; install it with: pip install 'vovnet[detection]'"
        rank = os.environ.get("RANK", "0")
        print(f"{'error' if rank == '0' else f'error (rank {rank})'}: {message}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
