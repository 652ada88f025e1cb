"""Keypoints of objects as people draw them: their names, their sides, and the lines between them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import ImageDraw

from vovnet.results.lettering import Rgb

Side = Literal["left", "right"]

POINT_SCORE = 0.5
"""Points with a lower score are not drawn."""

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
SIDE_COLOURS: dict[Side | None, Rgb] = {"left": (0, 114, 178), "right": (230, 159, 0), None: (0, 158, 115)}
"""The colours of an object's own left, of its right, and of what has no side."""
_CYCLE: tuple[Rgb, ...] = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0))

_SIDES: dict[str, tuple[Side, str]] = {
    "left": ("left", "right"),
    "right": ("right", "left"),
    "l": ("left", "r"),
    "r": ("right", "l"),
}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^A-Za-z]+")


@dataclass(frozen=True)
class Skeleton:
    """The keypoints of a category."""

    names: tuple[str, ...] = ()
    edges: tuple[tuple[int, int], ...] = ()
    """Pairs of positions in ``names``, from 0, that are joined by a line."""
    colours: tuple[Rgb, ...] = field(init=False)
    """The colour of each keypoint."""

    def __post_init__(self) -> None:
        sides = [side_of(name) for name in self.names]
        paired = any(sides)
        colours = (SIDE_COLOURS[side] if paired else _CYCLE[number % len(_CYCLE)] for number, side in enumerate(sides))
        object.__setattr__(self, "colours", tuple(colours))

    def colour(self, position: int) -> Rgb:
        """Return the colour of a keypoint, also of one that has no name."""
        return self.colours[position] if position < len(self.colours) else _CYCLE[position % len(_CYCLE)]


def skeletons_of(categories: Sequence[Mapping[str, Any]]) -> dict[int, Skeleton]:
    """Return the skeleton of each category that names keypoints, by its id.

    Args:
        categories: in COCO's form; ``keypoints`` are names, and ``skeleton`` has pairs of their positions from 1.
    """
    return {
        int(one["id"]): Skeleton(
            tuple(map(str, one["keypoints"])),
            tuple((int(first) - 1, int(second) - 1) for first, second in one.get("skeleton") or ()),
        )
        for one in categories
        if one.get("keypoints")
    }


def side_of(name: str) -> Side | None:
    """Return the side that a keypoint's name tells: one of its words is left, right, l or r, in any case.

    Words end at anything that is no letter, and before a capital: ``left_eye``, ``eye.L``, ``rKnee``, ``leftEar``.
    """
    found = [_SIDES[word.lower()][0] for word in _WORD.findall(name) if word.lower() in _SIDES]
    return found[0] if len(found) == 1 else None


def mirrored(names: Sequence[str]) -> tuple[int, ...]:
    """Return for each keypoint the position of the one whose place it takes in a mirror image.

    That is the keypoint with the same name but for the side, and the keypoint itself if there is none.
    """
    positions = {_words(name): number for number, name in enumerate(names)}
    partners = [
        positions.get(_words(name, other=True), number) if side_of(name) else number
        for number, name in enumerate(names)
    ]
    # Names that differ in case alone could have the same partner.
    return tuple(one if partners[one] == number else number for number, one in enumerate(partners))


def _words(name: str, other: bool = False) -> tuple[str, ...]:
    """Return the parts of a name in lower case; with ``other``, of the name on the other side."""
    words = [word.lower() for word in _WORD.findall(name)]
    return tuple(_SIDES[word][1] if other and word in _SIDES else word for word in words)


def draw_keypoints(
    draw: ImageDraw.ImageDraw, keypoints: Sequence[float], skeleton: Skeleton, line: int, least: float = POINT_SCORE
) -> None:
    """Draw an object's keypoints and the lines between them, with a dark rim that shows on any ground.

    Args:
        draw: of the image.
        keypoints: x, y in pixels and the score of each point, one after the other, as in COCO's results.
        skeleton: of the object's category.
        line: width of the lines in pixels.
        least: points with a lower score are not drawn, nor are lines to them.
    """
    points = [
        (float(x), float(y)) if score >= least else None
        for x, y, score in zip(keypoints[0::3], keypoints[1::3], keypoints[2::3], strict=True)
    ]
    for first, second in skeleton.edges:
        one, other = (points[end] if end < len(points) else None for end in (first, second))
        if one is None or other is None:
            continue
        # A line has the colour of its side; one between the sides has that of what has none.
        same = skeleton.colour(first) == skeleton.colour(second)
        draw.line([one, other], fill=(0, 0, 0), width=line + 2)
        draw.line([one, other], fill=skeleton.colour(first) if same else (255, 255, 255), width=line)
    radius = line + 1.0
    for position, point in enumerate(points):
        if point is not None:
            x, y = point
            ends = (x - radius, y - radius, x + radius, y + radius)
            draw.ellipse(ends, fill=skeleton.colour(position), outline=(0, 0, 0))
