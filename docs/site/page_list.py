"""The list of all pages in docs/index.md: ``python docs/site/page_list.py``, run in the checkout, writes it.

The pages and their order are those of the navigation in mkdocs.yml, and their names those of their first headings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).resolve().parents[1]
PAGE = DOCS / "index.md"
KINDS = {"Tutorials": "learn by doing", "How-to": "reach a goal", "Reference": "look up", "Explanation": "understand"}


def page() -> str:
    """Return docs/index.md with the list of today."""
    navigation = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    lines: list[str] = []
    for section in yaml.safe_load(navigation):
        ((kind, entries),) = section.items()
        if kind in KINDS:
            lines += ["", f"### {kind}: {KINDS[kind]}", "", *_entries(entries)]
    text = PAGE.read_text(encoding="utf-8")
    return text[: text.index("## All pages")] + "\n".join(["## All pages", *lines]) + "\n"


def _entries(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        if isinstance(entry, str):
            yield f"- [{_title(entry)}]({entry})"
            continue
        ((name, inner),) = entry.items()
        yield from [f"- [{name}]({inner})"] if isinstance(inner, str) else _entries(inner)


def _title(path: str) -> str:
    heading = re.search(r"^# (.+)$", (DOCS / path).read_text(encoding="utf-8"), re.MULTILINE)
    if heading is None:
        raise SystemExit(f"docs/{path}: expected a first heading, found none")
    return heading[1]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
