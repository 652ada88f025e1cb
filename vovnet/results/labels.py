"""Texts in drawings: names beside boxes, as many as can be read, and a legend that counts what is drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw

from vovnet.errors import InputError, shown
from vovnet.results.lettering import Font, Rgb, category_colour, drawable, is_dark, label_font

Rectangle = tuple[float, float, float, float]
LabelMode = Literal["auto", "all", "none"]

_SMALLEST, _SHARE = 9, 0.22
"""Letters are at least so many pixels high, and otherwise at most this share of the short side of a usual box."""
_CROWD = 12
"""From so many objects on, counts say more than names."""
_COVERED = 0.3
"""Share of another box that a label may cover."""
_MANY = 50
"""From so many objects on, letters become smaller, and labels may cover less, the more there are."""


def check_labels(mode: object) -> None:
    """Refuse what is no :data:`LabelMode`.

    Raises:
        InputError: it is none.
    """
    if mode not in get_args(LabelMode):
        raise InputError(f"labels: expected one of {', '.join(get_args(LabelMode))}, got {shown(mode)}")


class Labels:
    """Writes labels into an image, each at a place of its own.

    Args:
        draw: draws into the image.
        boxes: (N, 4) corners of everything that is drawn, in pixels.
        mode: ``auto`` leaves out a label that has no free place, ``all`` writes it nevertheless, ``none`` writes none.
    """

    def __init__(self, draw: ImageDraw.ImageDraw, boxes: Sequence[Rectangle], mode: LabelMode = "auto") -> None:
        self.draw, self.mode = draw, mode
        self.size: tuple[int, int] = draw.im.size
        self.boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        self.taken: list[Rectangle] = []
        self.left_out = 0
        largest = max(10, round(max(self.size) / 55))
        sides = (self.boxes[:, 2:] - self.boxes[:, :2]).min(1)
        crowding = min(1.0, (_MANY / max(1, len(sides))) ** 0.5)
        fitting = largest if not len(sides) else round(_SHARE * crowding * float(np.median(sides)))
        self.covered = _COVERED * crowding
        self.font = label_font(max(_SMALLEST, min(largest, fitting)) if len(sides) > 3 else largest)

    def write(self, texts: Sequence[str], box: Rectangle, colour: Rgb) -> None:
        """Write the first of some texts, the longest first, that has a free place beside a box."""
        if self.mode == "none":
            return
        choices = [(text, place) for text in texts for place in self._places(text, box)]
        free = (one for one in choices if self.mode == "all" or self._fits(one[1], box))
        chosen = next((one for one in free if not any(overlap(one[1], other) for other in self.taken)), None)
        if chosen is None and self.mode == "auto" and len(self.boxes) > 1:
            self.left_out += 1
            return
        text, place = chosen or choices[0]
        self.taken.append(place)
        plate(self.draw, text, place, colour, self.font)

    def _places(self, text: str, box: Rectangle) -> list[Rectangle]:
        """Return the places above the box; inside at the top; below; inside at the bottom."""
        width, height = extent(self.draw, text, self.font)
        return [self._at(box[0], top, width, height) for top in (box[1] - height, box[1], box[3] + 1, box[3] - height)]

    def _at(self, x: float, y: float, width: float, height: float) -> Rectangle:
        x, y = max(0, min(x, self.size[0] - width)), max(0, min(y, self.size[1] - height))
        return x, y, x + width, y + height

    def _fits(self, place: Rectangle, box: Rectangle) -> bool:
        """Return True if a label hides no other object: it covers little of each box but its own."""
        common = np.minimum(self.boxes[:, 2:], place[2:]) - np.maximum(self.boxes[:, :2], place[:2])
        covered = np.prod(np.maximum(common, 0), axis=1)
        areas = np.prod(self.boxes[:, 2:] - self.boxes[:, :2] + 1, axis=1)
        own = (self.boxes == box).all(axis=1)
        return bool((covered[~own] <= self.covered * areas[~own]).all())


def legend_entries(shown: Sequence[Mapping[str, Any]]) -> list[tuple[str, Rgb]]:
    """Return a line and a colour for each category that is drawn, the most frequent first."""
    counts = Counter((int(one["category_id"]), str(one["category"])) for one in shown)
    return [(f"{count} {drawable(name)}", category_colour(number)) for (number, name), count in counts.most_common()]


def draw_legend(draw: ImageDraw.ImageDraw, shown: Sequence[Mapping[str, Any]], boxes: Sequence[Rectangle]) -> None:
    """Draw the legend into the corner of the image where it covers the fewest boxes; nothing if it has no room."""
    entries = legend_entries(shown)
    size: tuple[int, int] = draw.im.size
    font = label_font(max(10, round(max(size) / 80)))
    extents = [extent(draw, text, font) for text, _ in entries]
    width, height = max(one[0] for one in extents), sum(one[1] for one in extents)
    if width > size[0] / 2 or height > size[1] / 2:
        return
    corners = [(x, y) for y in (0.0, size[1] - height) for x in (size[0] - width, 0.0)]
    places = [(x, y, x + width, y + height) for x, y in corners]
    left, top, right, _ = min(places, key=lambda place: sum(overlap(place, box) for box in boxes))
    for (text, colour), (_, line) in zip(entries, extents, strict=True):
        plate(draw, text, (left, top, right, top + line), colour, font)
        top += line


def needs_legend(labels: Labels, shown: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if labels were left out, or if there are so many objects that a reader would count them."""
    return labels.mode == "auto" and len(shown) > 1 and (labels.left_out > 0 or len(shown) > _CROWD)


def extent(draw: ImageDraw.ImageDraw, text: str, font: Font) -> tuple[float, float]:
    """Return width and height in pixels of a text on its ground, which is as tall for every text."""
    top, bottom, pad = _lines(draw, font)
    return draw.textlength(text, font=font) + 2 * pad, bottom - top + 2 * pad


def plate(draw: ImageDraw.ImageDraw, text: str, place: Rectangle, colour: Rgb, font: Font) -> None:
    """Write a text on a ground of a colour."""
    top, _, pad = _lines(draw, font)
    draw.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=colour)
    draw.text((place[0] + pad, place[1] + pad - top), text, fill="white" if is_dark(colour) else "black", font=font)


def _lines(draw: ImageDraw.ImageDraw, font: Font) -> tuple[float, float, float]:
    _, top, _, bottom = draw.textbbox((0, 0), "Äg", font=font)
    return top, bottom, max(2, (bottom - top) // 6)


def overlap(one: Rectangle, other: Rectangle) -> bool:
    """Return True if two rectangles have a pixel in common."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def paint(pixels: NDArray[np.uint8], part: NDArray[np.bool_], corner: tuple[int, int], colour: Rgb, line: int) -> None:
    """Tint the pixels (H, W, 3) of a mask and draw its inner outline, in place.

    Args:
        pixels: of the image.
        part: (h, w), the part of the mask that is not 0.
        corner: row and column of its first pixel.
        colour: of the object.
        line: width of the outline in pixels.
    """
    if not part.size:
        return
    window = pixels[corner[0] : corner[0] + part.shape[0], corner[1] : corner[1] + part.shape[1]]
    tint = np.asarray(colour, dtype=np.float32)
    window[part] = (window[part] * (1 - _MASK_OPACITY) + tint * _MASK_OPACITY).astype(np.uint8)
    core = part
    for _ in range(line):
        padded = np.pad(core, 1)
        core = core & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    window[part & ~core] = colour


_MASK_OPACITY = 0.42
