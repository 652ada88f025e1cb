"""Letters and colours for drawings and plots: any text in a font that has its letters, a colour for each category."""

from __future__ import annotations

import colorsys
import contextlib
import functools
import importlib.util
from pathlib import Path

from PIL import ImageFont

from vovnet.errors import absent_package
from vovnet.terminal.text import printable, shortened

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

Rgb = tuple[int, int, int]

_GOLDEN = 0.618033988749895


@functools.lru_cache(maxsize=16)
def label_font(size: int) -> Font:
    """Return a font of ``size`` pixels: Matplotlib's DejaVu, which has most alphabets, otherwise Pillow's default."""
    # Not imported: that costs time, and a broken one still has its fonts.
    spec = None if absent_package("matplotlib") else importlib.util.find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        with contextlib.suppress(OSError):
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


def drawable(text: str, most: int = 40) -> str:
    """Return a text from data in a form that plots and drawings can show: one line of letters that the font has.

    Args:
        text: any text, such as the name of a category.
        most: the largest number of characters; a longer text loses its middle.

    Returns:
        The text with an escape such as ``\\u4e2d`` for a character that :func:`label_font` lacks; ``""`` in quotes for
        a text of nothing but spaces.
    """
    line = " ".join(printable(text).split()) or '""'
    return shortened("".join(one if _has_glyph(one) else ascii(one)[1:-1] for one in line), most)


@functools.lru_cache(maxsize=4096)
def _has_glyph(character: str) -> bool:
    font = label_font(16)
    try:
        # A font draws the same box for every character that it lacks, such as U+FFFF, which is none.
        return character == " " or bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))
    except ValueError:  # a Pillow without FreeType has a font of Latin-1 only
        return False


def category_colour(category_id: int) -> Rgb:
    """Return the colour of a category. It is vivid, and close ids get colours that differ much."""
    hue = (0.40 + category_id * _GOLDEN) % 1
    # Saturation and brightness change after every eight ids, which keeps the many classes of COCO apart.
    saturation, value = ((0.85, 0.95), (0.55, 1.0), (0.95, 0.7))[category_id // 8 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)
