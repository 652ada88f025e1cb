"""What is in the pages of docs/: tables and code blocks."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def find_page(name: str) -> Path:
    """The page of that name, whatever kind of page it is: its folder says that."""
    (path,) = (ROOT / "docs").rglob(name)
    return path


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of every table row below a heading, up to the next one."""
    text = find_page(page).read_text(encoding="utf-8")
    section = re.split(r"^#+ |^<!-- end", text.split(heading, 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line.strip().strip("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines if not set(line) <= set("-|")]


def fenced(page: str, language: str) -> list[str]:
    """The contents of a page's code blocks in a language."""
    text = find_page(page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
