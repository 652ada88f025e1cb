"""Texts of others as Markdown that shows them: a class's name or a file's must not become a heading, a link or HTML."""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|&~])")
_OPENING = re.compile(r"^([-+=]|\d+(?=[.)](?:\s|$)))")
"""What makes a list, a rule or a heading of a line that begins with it."""


def plain(text: object) -> str:
    """The text on one line, each character as itself; fits into a table's cell, too."""
    line = _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))
    return _OPENING.sub(lambda match: f"&#{ord(match[1][0])};{match[1][1:]}", line)


def code(text: object) -> str:
    """The text on one line as code."""
    line = " ".join(str(text).split()).replace("|", "¦")  # a table's cell ends at a bar even inside of code
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    padding = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{padding}{line}{padding}{fence}"
