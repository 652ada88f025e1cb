"""Read the fields of COCO JSON by their value.

JSON has no types of its own for ids, flags and sizes, and converters write ``"0"``, ``1.0`` or ``true`` for them. Each
function returns the value that such a field states, or None if it states none. Python's truth value is never asked:
``"0"`` and ``[0]`` are true.
"""

from __future__ import annotations

import math
from typing import Any, TypeGuard
from urllib.parse import unquote, urlsplit

from vovnet.errors import is_text

Box = tuple[float, float, float, float]
"""x, y, width, height in pixels."""

_FLAGS = {"0": False, "1": True, "false": False, "true": True}


def is_number(value: object) -> TypeGuard[int | float]:
    """True for a number of JSON, which may be infinite or NaN. ``true`` and ``false`` are not numbers."""
    return isinstance(value, float) or type(value) is int


def whole_number(value: object) -> int | None:
    """Return a whole number that fits 64 bits, as ids and sizes must; 3.0 is 3."""
    if type(value) is not int:
        if not isinstance(value, float) or not value.is_integer():
            return None
        value = int(value)
    return value if -(2**63) < value < 2**63 else None


def flag(value: object) -> bool | None:
    """Return the value of a flag: 0 or 1, true or false, or one of the four as text."""
    if isinstance(value, str):
        return _FLAGS.get(value.lower())
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def box(value: object) -> Box | None:
    """Return four finite numbers."""
    if not isinstance(value, list | tuple) or len(value) != 4:
        return None
    for number in value:
        if not is_number(number):
            return None
    x, y, width, height = value
    try:
        found = (float(x), float(y), float(width), float(height))
    except OverflowError:  # an integer of hundreds of digits
        return None
    return found if math.isfinite(sum(found)) else None


def area(value: object) -> float | None:
    """Return a positive number of pixels that fits 64 bits."""
    return float(value) if is_number(value) and 0 < value < 2**63 else None


def image_size(entry: dict[str, Any]) -> tuple[int, int] | None:
    """Return the width and height of an image entry, or None if it has none that an image can have."""
    width, height = whole_number(entry.get("width")), whole_number(entry.get("height"))
    if width is None or height is None or min(width, height) < 1:
        return None
    # pycocotools counts the pixels of an image in 32 bits.
    return (width, height) if max(width, height) < 2**31 and width * height < 2**32 else None


def file_names(entry: dict[str, Any]) -> list[str]:
    """Return the names under which an image may be stored, the likeliest first.

    LVIS has no ``file_name``. Its ``coco_url`` ends in ``train2017/000000391895.jpg``, and the folder of images is
    either the one with ``train2017`` in it or ``train2017`` itself.
    """
    name, url = entry.get("file_name"), entry.get("coco_url")
    if name is not None or not is_text(url):
        return [name] if is_text(name) else []
    try:
        parts = [part for part in unquote(urlsplit(url).path).split("/") if part]
    except ValueError:  # not a URL
        return []
    return ["/".join(parts[-count:]) for count in (2, 1) if len(parts) >= count]
