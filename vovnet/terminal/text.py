"""Text from data (names of classes and files) in a form that every terminal, table and plot can show."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """Return the text on one line, with escapes such as ``\\x1b`` or ``\\u202e`` for characters that cannot be seen.

    These are control characters, marks that change the direction of writing, and halves of characters, which stand for
    bytes of a file name that are not UTF-8. Line breaks, tabs and wide spaces become spaces.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else " " if one.isspace() else _escape(one) for one in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def shortened(text: str, most: int) -> str:
    """Return the beginning and the end of a text that is longer than ``most`` characters, with ``…`` between them."""
    if len(text) <= most:
        return text
    return f"{text[: most - most // 2 - 1]}…{text[len(text) - most // 2 :]}"


def width_of(text: str) -> int:
    """Return the number of columns that a terminal needs for a text: two for a Chinese character, none for accents."""
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text
    )


def padded(text: str, width: int) -> str:
    """Return the text with spaces after it, so that it fills ``width`` columns of a terminal."""
    return text + " " * (width - width_of(text))
