"""Run the steps of a section that have no record yet, and record each.

A step that fails does not stop the others. One that breaks the process (a kernel that never ends, or an error after
which CUDA refuses all calls) ends it with :data:`AGAIN`; the next process goes on behind that step.
"""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu.records import Record, append, read

AGAIN = 75
"""The exit code of a process that must be replaced by a new one."""

Row = Sequence[str]


class Skipped(Exception):
    """A step cannot run here. The message says why."""


@dataclass(frozen=True)
class Result:
    """The result of a step: rows of the section's table, and numbers for later sections."""

    rows: Sequence[Row] = ()
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """A part of a section that can fail alone."""

    name: str
    run: Callable[[], Result]


def run_steps(steps: Sequence[Step], path: Path, seconds: float, usable: Callable[[], bool]) -> int:
    """Run the steps that have no record; return the exit code of the process.

    Args:
        steps: all steps of the section.
        path: the file of records.
        seconds: the process ends if one step takes longer.
        usable: asked after a step that failed: False if this process can run nothing any more.
    """
    known = read(path)
    for step in steps:
        if step.name in known:
            continue
        append(path, Record(step.name, "started"))
        faulthandler.dump_traceback_later(seconds, exit=True)
        start = time.perf_counter()
        record = _outcome(step)
        faulthandler.cancel_dump_traceback_later()
        append(path, Record(**{**vars(record), "seconds": time.perf_counter() - start}))
        if record.state == "failed" and not usable():
            return AGAIN
    return 0


def _outcome(step: Step) -> Record:
    try:
        result = step.run()
    except Skipped as error:
        return Record(step.name, "skipped", note=str(error))
    except Exception as error:
        text = " ".join(str(error).split()) or "no message"
        return Record(step.name, "failed", note=f"{type(error).__name__}: {text[:600]}")
    return Record(step.name, "passed", [list(row) for row in result.rows], dict(result.values))
