"""The files of ours that a call passes through on its way."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from house import FLOORS, Graph

ROOT = Path(__file__).resolve().parents[2]


def files_passed(call: Callable[[], object]) -> Graph:
    """Return, for every file of ours whose functions run in ``call()``, the files that it calls.

    The call is made twice. Only the second is recorded, without what is imported or compiled once.
    """
    call()
    graph: Graph = {}

    def record(frame: FrameType, event: str, _: Any) -> None:
        here = _ours(frame.f_code.co_filename) if event == "call" else None
        if here is None:
            return
        graph.setdefault(here, set())
        above = frame.f_back
        while above is not None:
            caller = _ours(above.f_code.co_filename)
            if caller is not None:
                graph.setdefault(caller, set()).update({here} - {caller})
                return
            above = above.f_back

    sys.setprofile(record)
    try:
        call()
    finally:
        sys.setprofile(None)
    return graph


@cache
def _ours(filename: str) -> str | None:
    """Return a file's path below the checkout, links resolved, or None for everybody else's files."""
    path = Path(filename).resolve()
    if not path.is_relative_to(ROOT):
        return None
    inside = path.relative_to(ROOT)
    return str(inside) if inside.parts[0] in FLOORS and path.is_file() else None
