"""Letters and colours for drawings and plots: any text in a font that has its letters, a colour for each category."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from pathlib import Path

from PIL import ImageFont

from vovnet.errors import absent_package
from vovnet.terminal.text import printable, shortened

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

Rgb = tuple[int, int, int]


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
    """Return the colour of a category, the same in every image.

    The first seven ids have the colours of Okabe and Ito, which people with any kind of colour vision can tell apart
    (https://jfly.uni-koeln.de/color/); black is left out, because it has no contrast to dark images. The next ones are
    the same hues, darker and then lighter, so that brightness tells them apart.
    """
    level, position = divmod((category_id - 1) % (len(_OKABE_ITO) * len(_LEVELS)), len(_OKABE_ITO))
    towards, share = _LEVELS[level]
    red, green, blue = (round(value + (towards - value) * share) for value in _OKABE_ITO[position])
    return red, green, blue


def is_dark(colour: Rgb) -> bool:
    """Return True if white letters can be read better on a colour than black ones: by its luma (ITU-R BT.601)."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 140


# Neighbours in this order differ in brightness as well as in hue.
_OKABE_ITO: tuple[Rgb, ...] = (
    (230, 159, 0),  # orange
    (0, 114, 178),  # blue
    (86, 180, 233),  # sky blue
    (213, 94, 0),  # vermilion
    (0, 158, 115),  # bluish green
    (240, 228, 66),  # yellow
    (204, 121, 167),  # reddish purple
)
_LEVELS = ((0, 0.0), (0, 0.45), (255, 0.55), (0, 0.7), (255, 0.75))
"""What the colours of each round are mixed with, 0 for black and 255 for white, and the share of that."""
