"""Escape text from outside in Markdown, so that the name of a class or file cannot become a heading, a link or HTML."""

from __future__ import annotations

import re

from vovnet.terminal.text import printable

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|&~$@]|(?<=www)\.|:(?=//))", re.IGNORECASE)
"""Matches markup, formulas (``$``), and what makes GitHub's Markdown a link: ``www.``, ``://`` and ``@``."""
_OPENING = re.compile(r"^([-+=]|\d+(?=[.)](?:\s|$)))")
"""Matches the start of a line that Markdown would turn into a list, a rule or a heading."""


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _line(text: object) -> str:
    return _CONTROL.sub(lambda found: printable(found[0]), " ".join(str(text).split()))


def plain(text: object) -> str:
    """Return the text on one line with every character escaped; it also fits into a cell of a table."""
    line = _SPECIAL.sub(r"\\\1", _line(text))
    return _OPENING.sub(lambda match: f"&#{ord(match[1][0])};{match[1][1:]}", line)


def code(text: object) -> str:
    """Return the text on one line, formatted as code."""
    line = _line(text).replace("|", "¦")  # a bar ends a table's cell even inside code
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    padding = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{padding}{line}{padding}{fence}"
