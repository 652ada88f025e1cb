"""A progress bar for a pass over data, as the training loop's own bar (``callbacks.py``) is for iterations."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any


def progress_bar(items: Iterable[Any], description: str, unit: str, *, shown: bool = True) -> Iterator[Any]:
    """The items, with a bar on stderr that is gone when they end; without a terminal, a line every ten seconds."""
    if shown:
        from tqdm import tqdm

        pause = 0.1 if sys.stderr.isatty() else 10.0
        items = tqdm(items, desc=description, unit=unit, dynamic_ncols=True, leave=False, mininterval=pause)
    yield from items
