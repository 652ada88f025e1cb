"""The table of sources as text for a terminal, as JSON, and as Markdown for the docs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from vovnet.detection.zoo.sources import Group, Source
from vovnet.terminal.text import printable

_WIDTH = 80
_INDENT = "  "


def as_text(sources: Iterable[Source]) -> str:
    """Return a block of lines for each source, below the title of its group and how to load and trust it.

    Lines have at most 80 columns, except addresses and long paths, which a terminal must be able to open or copy.
    """
    lines: list[str] = []
    for group, members in groupby(sources, key=lambda one: one.group):
        lines += [*([""] if lines else []), *_group_lines(group)]
        for source in members:
            lines += ["", *_source_lines(source)]
    return "\n".join(map(printable, lines))


def _group_lines(group: Group) -> list[str]:
    lines = [*textwrap.wrap(group.title, _WIDTH), *textwrap.wrap("=" * min(_WIDTH, len(group.title)), _WIDTH)]
    for name, text in (
        ("load", ", or ".join(group.load)),
        ("tested", group.verified),
        ("not tested", group.unverified),
    ):
        lines += textwrap.wrap(
            f"{name}: {text}", _WIDTH, subsequent_indent=_INDENT, break_long_words=False, break_on_hyphens=False
        )
    return lines


def _source_lines(source: Source) -> list[str]:
    cached = source.cached()
    size = cached.stat().st_size if cached else source.size
    facts = [
        "size unknown" if size is None else megabytes(size),
        f"in the cache: {cached}" if cached else "not in the cache",
    ]
    lines = [source.name, *_indented(source.published_text)]
    if not source.place:
        return [*lines, f"{_INDENT}no file is published"]
    lines += [_INDENT + source.place, *_indented(f"licence: {source.licence_text}"), _INDENT + ", ".join(facts)]
    return [*lines, *([] if source.checksum is None else [f"{_INDENT}{source.checksum}"])]


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT, break_on_hyphens=False)


def as_json(sources: Iterable[Source]) -> str:
    """Return the sources as a JSON list of objects, for programs."""
    return json.dumps([_described(source) for source in sources], indent=2, ensure_ascii=False)


def _described(source: Source) -> dict[str, Any]:
    cached = source.cached()
    return {
        "name": source.name,
        "network": source.network,
        "publisher": source.publisher,
        "license": source.license,
        "terms": source.terms,
        "url": source.url,
        "repository": source.repository,
        "published": {"data": source.data, "percent": dict(source.published)} if source.published else None,
        "size": source.size,
        "checksum": source.checksum,
        "cached": None if cached is None else str(cached),
        "load": source.load,
        "verified": source.group.verified,
        "not_verified": source.group.unverified,
    }


def as_markdown(sources: Sequence[Source]) -> str:
    """Return the sources as a Markdown table, and what was tested of each group as a list below it."""
    header = ["name", "published, by whom", "licence", "size", "where, checksum"]
    rows = [header, ["---"] * len(header), *map(_markdown_row, sources)]
    groups = dict.fromkeys(source.group for source in sources)
    notes = [_markdown_note(group) for group in groups]
    return "\n".join([*("| " + " | ".join(row) + " |" for row in rows), "", *notes]) + "\n"


def _markdown_note(group: Group) -> str:
    ways = " or ".join(f"`{way}`" for way in group.load)
    return f"- **{group.title}.** To load one: {ways}. Tested: {group.verified}. Not tested: {group.unverified}."


def _markdown_row(source: Source) -> list[str]:
    link = f"https://huggingface.co/{source.repository}" if source.repository else source.url
    where = f"[{source.repository or source.file}]({link})" if link else "no file is published"
    said = f"{source.numbers} ({source.data}), {source.publisher}" if source.published else source.published_text
    size = "–" if source.size is None else megabytes(source.size)
    checksum = f", {source.checksum}" if source.checksum else ""
    return [f"`{source.name}`", said, source.licence_text, size, where + checksum]


def megabytes(size: int) -> str:
    """Return a number of bytes as text, such as ``90.5 MB``."""
    return f"{size / 1e6:,.1f} MB"
