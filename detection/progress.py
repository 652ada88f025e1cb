"""Progress of a pass over data or of a training: a bar in a terminal or notebook, and lines now and then in a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from vovnet.terminal.streams import is_quiet, standard_error

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")

PAUSE = 10.0
"""Seconds between two lines in a file."""


def progress_bar(items: Iterable[T], description: str, unit: str, *, shown: bool = True) -> Iterator[T]:
    """Yield the items and show a bar on stderr until they end; without a terminal, a line every ten seconds.

    With ``--quiet`` nothing is shown.
    """
    if not shown or is_quiet():
        yield from items
        return
    bar = open_bar(len(items) if isinstance(items, Sized) else None, description, unit)
    try:
        for item in items:
            yield item
            bar.update()
    finally:
        bar.close()


def open_bar(
    total: int | None,
    description: str,
    unit: str,
    *,
    start: int = 0,
    leave: bool = False,
    pause: float = 0.1,
    bar_format: str | None = None,
) -> tqdm | ProgressLines:
    """Return a progress bar: one of tqdm, of its kind for notebooks in one, and lines if stderr is no terminal.

    Args:
        total: the number of steps, if it is known.
        description: of the bar.
        unit: of the steps.
        start: the number of steps that are done.
        leave: keep the bar when it is closed.
        pause: the least seconds between two drawings.
        bar_format: tqdm's.
    """
    stream = standard_error()
    bar: Any = _notebook_bar() if in_notebook() else None
    if bar is None:
        from tqdm import tqdm as bar

        if not stream.isatty():
            return ProgressLines(stream, total, description, unit, start)
    made: tqdm = bar(
        total=total,
        initial=start,
        desc=description,
        unit=unit,
        leave=leave,
        mininterval=pause,
        bar_format=bar_format,
        dynamic_ncols=True,
        file=stream,
    )
    return made


def in_notebook() -> bool:
    """True in a Jupyter kernel."""
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _notebook_bar() -> Any:
    """Return the bar for notebooks, or tqdm's own where the package ipywidgets is missing."""
    from tqdm.auto import tqdm

    return tqdm


class ProgressLines:
    """The part of tqdm that is used here, as a line every ten seconds: a log file would keep each drawing of a bar."""

    def __init__(self, stream: TextIO, total: int | None, description: str, unit: str, start: int = 0) -> None:
        self.fp, self.total, self.description, self.unit = stream, total, description, unit
        self.start = self.done = start
        self.begun = self.told = time.monotonic()
        self.postfix = ""

    def set_postfix_str(self, text: str, refresh: bool = False) -> None:
        """Set what a line ends with."""
        self.postfix = text

    def update(self, count: int = 1) -> None:
        """Count steps, and print a line if the last one is long ago."""
        self.done += count
        now = time.monotonic()
        if now - self.told >= PAUSE:
            self.told = now
            print(self, file=self.fp, flush=True)

    def write(self, text: str, file: TextIO | None = None) -> None:
        """Print a line beside the progress."""
        print(text, file=file or self.fp, flush=True)

    def close(self) -> None:
        """Nothing is left to do."""

    def __str__(self) -> str:
        from tqdm import tqdm

        line: str = tqdm.format_meter(
            self.done,
            self.total,
            time.monotonic() - self.begun,
            prefix=self.description,
            unit=self.unit,
            initial=self.start,
            postfix=self.postfix,
            bar_format="{desc}: {n_fmt}/{total_fmt} {unit}, {elapsed}<{remaining}{postfix}",
        )
        return line
