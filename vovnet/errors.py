"""The error for wrong input, and how errors end a command."""

from __future__ import annotations

import difflib
import errno
import importlib.util
import json
import os
import re
import reprlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard
from urllib.error import HTTPError, URLError

from vovnet.terminal.streams import be_quiet, lasting_output
from vovnet.terminal.text import printable

if TYPE_CHECKING:
    import typer

SOURCE = "https://github.com/vovnet/vovnet"
BASE = ("torch", "torchvision", "timm", "safetensors", "huggingface_hub", "jinja2")
"""Packages that come with this one, but that are absent where it was installed to run exported files alone."""
DETECTION_EXTRA = ("pydantic", "pycocotools", "matplotlib", "tqdm", "yaml")


INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended: 128 + SIGINT, as in shells."""


class InputError(ValueError):
    """An argument, option or file of the user cannot be used.

    The message names it and says what was expected, what was given and how to mend it. Library callers can catch it as
    a ``ValueError``. The command line prints it as one line and exits with code 1.
    """

    def __init__(self, message: str) -> None:
        """Make the message one printable line, whatever a file's names and values hold."""
        super().__init__(printable(message))


class StoppedError(Exception):
    """A command ended early. The message tells the user why."""

    exit_code = 1


class UsageMistake(StoppedError):
    """A command line that cannot be parsed."""

    exit_code = 2


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "", *, most: int = 1, cutoff: float = 0.6) -> str:
    """Return "did you mean 'a' or 'b'?" with the known names closest to ``word``, or ``otherwise`` if none is close.

    Args:
        word: The unknown name.
        known: The names that would have worked.
        otherwise: The text to return if no known name is close.
        most: The largest number of names to suggest.
        cutoff: The lowest similarity, from 0 to 1, of a suggestion.
    """
    near = difflib.get_close_matches(word[:100], list(known), n=most, cutoff=cutoff)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else otherwise


def reason(error: BaseException) -> str:
    """Return the first line of another library's message, or the error's class if the message is empty.

    urllib wraps the error of a connection, and the system's errors begin with a number; neither helps a user.
    """
    inner = getattr(error, "reason", None)
    if isinstance(inner, BaseException):
        return reason(inner)
    wraps_text = isinstance(error, URLError) and not isinstance(error, HTTPError)  # whose own text has the status
    text = str(inner if wraps_text else error)
    first = (text.strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[Errno -?\d+\] ", "", first)


def install_command(extra: str = "") -> str:
    """Return the command that installs this package, with an extra. It is on no index, so that it comes from git."""
    name = f"vovnet[{extra}]" if extra else "vovnet"
    return f"pip install '{name} @ git+{SOURCE}'"


def install_advice(extra: str = "") -> str:
    """Return how to install this package, with an extra if one is given."""
    here = f"'.[{extra}]'" if extra else "."
    return f"pip install {here} in a clone of vovnet, or {install_command(extra)}"


def absent_package(*names: str) -> str | None:
    """Return the first of some packages that is not installed, or None. Nothing is imported."""
    for name in names:
        try:
            if importlib.util.find_spec(name) is None:
                return name
        except (ImportError, ValueError):  # an import hook hides it
            return name
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what it was raised from, what that was raised from, and so on."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        yield current
        current = current.__cause__ or current.__context__


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120


def is_text(value: object) -> TypeGuard[str]:
    """True if a value is a string that can be written as UTF-8. JSON allows others: ``"\\ud800"``."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def shown(value: object) -> str:
    """Return any value as one short line of printable text, for messages."""
    if isinstance(value, str) and value.isprintable() and len(value) <= _REPR.maxstring:
        return value
    return _REPR.repr(value)


def system_error(error: OSError) -> str:
    """Return one line that says what the system refused, for which file, and how to mend it."""
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
def one_line_errors(as_json: bool = False) -> Iterator[None]:
    """End the process with one line on stderr and a non-zero exit code if the user can mend the error.

    These are wrong input, system errors, a missing extra, Ctrl-C (exit code 130), and :class:`StoppedError`. Any other
    error is a defect of this package and keeps its traceback. With ``VOVNET_DEBUG=1`` every error does. What is printed
    in the ``with`` block never stops it: see :func:`vovnet.terminal.streams.lasting_output`.

    Args:
        as_json: Print the error on stdout, too, as ``{"error": …, "exit_code": …}``.
    """
    with lasting_output() as output:
        try:
            yield
            output.check()
        except (InputError, StoppedError, OSError, ModuleNotFoundError, KeyboardInterrupt) as error:
            if os.environ.get("VOVNET_DEBUG") == "1":
                raise
            _end_progress_bars()
            rank, line = os.environ.get("RANK", "0"), _one_line(error)
            code = INTERRUPTED if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
            print(f"{'error' if rank == '0' else f'error (rank {rank})'}: {line}", file=sys.stderr)
            if as_json and rank == "0":
                print(json.dumps({"error": line, "exit_code": code}))
            sys.exit(code)


def _one_line(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C"
    if isinstance(error, OSError) and error.strerror:
        return printable(system_error(error))
    if isinstance(error, ModuleNotFoundError):
        if error.name not in (*BASE, *DETECTION_EXTRA):
            raise error
        return f"this needs '{error.name}': {install_advice('detection' if error.name in DETECTION_EXTRA else '')}"
    return printable(" ".join(str(error).split()))


def run_command(app: typer.Typer, arguments: Sequence[str], prog_name: str | None = None) -> None:
    """Run a Typer command and end the process, with errors as in :func:`one_line_errors`.

    With ``--json`` among the arguments, an error is JSON on stdout, too.
    """
    import typer

    # Typer's error for a wrong command line has no public name.
    usage_error: Any = typer.BadParameter.__base__
    be_quiet(False)  # an earlier command in this process may have been
    with one_line_errors("--json" in arguments):
        try:
            code = app(arguments, prog_name=prog_name, standalone_mode=False)
        except usage_error as error:
            raise UsageMistake(f"{' '.join(error.format_message().split())} (see --help)") from error
        except typer.Abort:
            code = INTERRUPTED
        if code == INTERRUPTED:  # what Typer makes of Ctrl-C; other versions raise Abort
            raise KeyboardInterrupt
    sys.exit(code if isinstance(code, int) else 0)


def _end_progress_bars() -> None:
    """Close the progress bars, so that the message begins on a line of its own."""
    tqdm: Any = sys.modules.get("tqdm")
    for bar in list(getattr(getattr(tqdm, "tqdm", None), "_instances", ())):
        bar.close()
