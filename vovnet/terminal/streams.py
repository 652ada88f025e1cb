"""Standard output and error that never stop a command: closed, full, a pipe without a reader, or ASCII alone."""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from vovnet.terminal.text import printable


class LastingStream(io.TextIOBase):
    """A text stream around another one whose writes never fail.

    Characters that the other stream's encoding lacks become escapes such as ``\\u6c7d``. After the first error of the
    system, nothing more is written; :attr:`failure` holds that error.

    Args:
        stream: the other stream; None, as Python sets ``sys.stdout`` if it is closed, drops everything.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.failure: Exception | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]  # an attribute that is never set in the base class
        """The encoding of the other stream."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        """How characters are written that the encoding lacks."""
        return "backslashreplace"

    def write(self, text: str) -> int:
        """Write the text as far as that is possible."""
        if not isinstance(text, str):
            raise TypeError(f"expected text, got {type(text).__name__}")  # so that callers see that this is no file
        if self.stream is not None and self.failure is None:
            try:
                self.stream.write(text.encode(self.encoding, self.errors).decode(self.encoding))
            except (OSError, ValueError) as error:  # ValueError: it was closed
                self.failure = error
        return len(text)

    def flush(self) -> None:
        """Flush the other stream if that is possible."""
        if self.stream is not None and self.failure is None:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:
                self.failure = error

    def check(self) -> None:
        """Raise the error of the system that kept something from being written.

        A pipe whose reader ended early (``| head``) and a stream that was closed on purpose (``>&-``) are no errors.
        """
        self.flush()
        if isinstance(self.failure, OSError) and self.failure.errno not in (errno.EPIPE, errno.EBADF):
            raise OSError(self.failure.errno, self.failure.strerror, "standard output")

    def writable(self) -> bool:
        """Always True."""
        return True

    def isatty(self) -> bool:
        """Return True if the other stream is a terminal."""
        try:
            return self.stream is not None and self.stream.isatty()
        except ValueError:
            return False

    def fileno(self) -> int:
        """Return the descriptor of the other stream if it has one."""
        if self.stream is None:
            raise io.UnsupportedOperation("fileno")
        return self.stream.fileno()


def standard_error() -> TextIO:
    """Return ``sys.stderr`` as a :class:`LastingStream`, for progress bars."""
    stream: Any = sys.stderr
    return cast("TextIO", stream if isinstance(stream, LastingStream) else LastingStream(stream))


_quiet = False


def be_quiet(quiet: bool = True) -> None:
    """Say nothing from here on, as with ``--quiet``; results, warnings and errors are printed as before."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Return what :func:`be_quiet` has set."""
    return _quiet


def say(text: str) -> None:
    """Print a line on stderr, if that is possible and wanted."""
    if _quiet:
        return
    print(text, file=standard_error(), flush=True)


said: set[str] = set()
"""What :func:`say_once` has said something about."""


def say_once(about: str, text: str) -> None:
    """Print a line about something on stderr, once in this process, and under torchrun once on a machine."""
    if about not in said and os.environ.get("LOCAL_RANK", "0") == "0":
        say(text)
    said.add(about)


def echo(text: str) -> None:
    """Print a line on stdout, if that is possible."""
    print(text, file=LastingStream(sys.stdout), flush=True)


@contextmanager
def lasting_output() -> Iterator[LastingStream]:
    """Replace ``sys.stdout`` and ``sys.stderr`` by streams that never fail, and show each warning on one line.

    Yields:
        The new ``sys.stdout``.
    """
    _fill_closed_descriptors()
    before = sys.stdout, sys.stderr, warnings.formatwarning
    sys.stdout, sys.stderr = output, errors = LastingStream(sys.stdout), LastingStream(sys.stderr)
    warnings.formatwarning = _one_line_warning
    try:
        yield output
    finally:
        sys.stdout, sys.stderr, warnings.formatwarning = before
        for stream in (output, errors):
            stream.flush()
            if stream.failure is not None:
                _drop_the_rest(stream)


def _fill_closed_descriptors() -> None:
    """Open the null device as 0, 1 and 2 where these are closed: else the next file would take the messages."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _drop_the_rest(stream: LastingStream) -> None:
    """Send what is still in the stream's buffer to the null device: Python flushes it again when it exits."""
    with suppress(OSError, ValueError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)


def _one_line_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"warning: {printable(str(message))}\n"
