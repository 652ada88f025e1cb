"""The report as Markdown, from the records of the sections."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.gpu.records import Record
from benchmarks.gpu.sections import Section

LOG_LINES = 25
NOTES = 30
"""At most this many steps that did not pass are listed; if the GPU is lost, all are the same."""


@dataclass(frozen=True)
class Outcome:
    """How a section ended.

    Attributes:
        state: in words.
        seconds: how long it took.
        limit: how long it might have taken.
        records: what its steps left.
        log: the end of what its processes printed, if they did not end well.
    """

    state: str
    seconds: float
    limit: float
    records: Mapping[str, Record]
    log: str = ""


def render(title: str, sections: Sequence[Section], outcomes: Mapping[str, Outcome]) -> str:
    """Return the whole report; sections without an outcome have not run yet."""
    lines = [f"# {title}", "", "| section | state | steps | seconds | limit |", "|---|---|---|---|---|"]
    for section in sections:
        outcome = outcomes.get(section.name)
        if outcome is None:
            lines.append(f"| {section.title} | not run yet | | | |")
            continue
        row = (section.title, outcome.state, _counts(outcome.records), f"{outcome.seconds:.0f}", f"{outcome.limit:.0f}")
        lines.append(_row(row))
    for section in sections:
        if section.name in outcomes:
            lines += ["", *_section(section, outcomes[section.name])]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def _section(section: Section, outcome: Outcome) -> list[str]:
    lines = [f"## {section.title}", ""]
    if section.text:
        lines += [section.text, ""]
    lines += [f"{outcome.state}; {_counts(outcome.records) or 'no step has run'}.", ""]
    rows = [row for record in outcome.records.values() for row in record.rows]
    if section.headings and rows:
        lines += [_row(section.headings), "|" + "---|" * len(section.headings), *map(_row, rows), ""]
    notes = [_note(record) for record in outcome.records.values() if record.state in ("failed", "started")]
    lines += notes[:NOTES]
    if len(notes) > NOTES:
        lines.append(f"- and {len(notes) - NOTES} more")
    skipped = {record.note for record in outcome.records.values() if record.state == "skipped"}
    lines += [f"- skipped: {note}" for note in sorted(skipped)]
    if outcome.log:
        # Four backticks: what compilers print may have three.
        lines += ["", "The end of what it printed:", "", "````", outcome.log, "````"]
    return lines


def _note(record: Record) -> str:
    if record.state == "started":
        return f"- **did not end**: {record.step}"
    return f"- **failed**: {record.step}: {record.note}"


def _counts(records: Mapping[str, Record]) -> str:
    words = {"passed": "passed", "failed": "failed", "started": "did not end", "skipped": "skipped"}
    states = [record.state for record in records.values()]
    return ", ".join(f"{states.count(state)} {word}" for state, word in words.items() if state in states)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def end_of(text: str) -> str:
    """Return the last lines of a log."""
    return "\n".join(line[:300] for line in text.strip().splitlines()[-LOG_LINES:])
