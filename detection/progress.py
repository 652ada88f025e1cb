"""A progress bar for one pass over data. Training has its own bar in ``training/callbacks.py``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def progress_bar(items: Iterable[T], description: str, unit: str, *, shown: bool = True) -> Iterator[T]:
    """Yield the items and show a bar on stderr until they end; without a terminal, a line every ten seconds."""
    if shown:
        from tqdm import tqdm

        pause = 0.1 if sys.stderr.isatty() else 10.0
        items = tqdm(items, desc=description, unit=unit, dynamic_ncols=True, leave=False, mininterval=pause)
    yield from items
