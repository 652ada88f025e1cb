"""A progress bar for one pass over data. Training has its own bar in ``training/callbacks.py``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from vovnet.terminal.streams import standard_error

T = TypeVar("T")


def progress_bar(items: Iterable[T], description: str, unit: str, *, shown: bool = True) -> Iterator[T]:
    """Yield the items and show a bar on stderr until they end; without a terminal, a line every ten seconds."""
    if shown:
        from tqdm import tqdm

        stream = standard_error()
        pause = 0.1 if stream.isatty() else 10.0
        items = tqdm(
            items, desc=description, unit=unit, dynamic_ncols=True, leave=False, mininterval=pause, file=stream
        )
    yield from items
