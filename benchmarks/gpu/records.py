"""The results of a section's steps: one JSON object a line, readable at any moment, also after a kill."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

State = Literal["started", "passed", "failed", "skipped"]


@dataclass(frozen=True)
class Record:
    """One step's outcome.

    Attributes:
        step: the step's name.
        state: ``started`` if the step has not ended, or its process died.
        rows: its rows of the section's table.
        values: numbers for later sections.
        note: why it failed or was skipped.
        seconds: how long it took.
    """

    step: str
    state: State
    rows: Sequence[Sequence[str]] = ()
    values: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    seconds: float = 0.0


def append(path: Path, record: Record) -> None:
    """Add a record at the end of a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(record)) + "\n")


def read(path: Path) -> dict[str, Record]:
    """Return step → its last record, in the order in which the steps started. A torn last line is left out."""
    found: dict[str, Record] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return found
    for line in lines:
        try:
            record = Record(**json.loads(line))
        except ValueError:
            continue
        found[record.step] = record
    return found
