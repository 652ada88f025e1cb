"""COCO's segmentations: validate polygons and run lengths (RLE), then decode them with pycocotools.

pycocotools does not validate. It returns nonsense for run lengths that do not sum to the image's area and an overlap of
-1 for sizes that differ, and it allocates gigabytes for a polygon that leaves the image by a billion pixels. Therefore
segmentations are validated here first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import dist, isfinite
from operator import mul
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Segmentation = list[list[float]] | dict[str, Any]
"""A COCO segmentation: polygons ``[x0, y0, x1, y1, ...]`` in pixels, or ``{"size": [h, w], "counts": ...}``."""

_LONGEST = 2**22
"""Pixels; the longest outline of a polygon that is drawn. pycocotools stores 5 points a pixel."""


def sound_segmentation(segmentation: object, height: int, width: int) -> tuple[Segmentation | None, str | None]:
    """Return the usable part of a segmentation for an image of this size in pixels, and what is wrong with it.

    Returns:
        The usable part (None if there is none) and the kind of problem (None if there is none): ``no_mask``,
        ``bad_polygon``, ``bad_rle``, ``rle_size``, ``rle_sum`` or ``empty_mask``. A usable part
        together with ``bad_polygon`` means that only some of the polygons are bad; with ``empty_mask``, that it covers
        no pixel.
    """
    if segmentation is None or segmentation == [] or segmentation == {}:
        return None, "no_mask"
    if isinstance(segmentation, dict):
        return _sound_rle(segmentation, height, width)
    if not isinstance(segmentation, list):
        return None, "bad_polygon"
    limit = 16 * (height + width)
    parts = [part for part in segmentation if _is_polygon(part, limit)]
    if not parts:
        return None, "bad_polygon"
    if not any(_surely_covers_a_pixel(part, height, width) for part in parts) and not mask_area(parts, height, width):
        return parts, "empty_mask"
    return parts, None if len(parts) == len(segmentation) else "bad_polygon"


def _is_polygon(part: object, limit: float) -> bool:
    """True for three or more finite points near the image: pycocotools' time and memory grow with the distance."""
    if not isinstance(part, list) or len(part) < 6 or len(part) % 2:
        return False
    try:
        near = isfinite(sum(part)) and -limit <= min(part) and max(part) <= limit
    except (TypeError, OverflowError):  # Something in it is not a number, or is too large for one.
        return False
    if min(part) <= 1 and bool in set(map(type, part)):  # Python counts with ``true`` as with 1.
        return False
    # No outline is longer than this bound; most are far below it, so that few lengths have to be computed.
    return near and (len(part) * (max(part) - min(part)) <= _LONGEST or _length(part[::2], part[1::2]) <= _LONGEST)


def _length(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return the length of a closed outline in pixels."""
    return sum(map(dist, zip(xs, ys, strict=True), zip([*xs[1:], xs[0]], [*ys[1:], ys[0]], strict=True)))


def _surely_covers_a_pixel(polygon: list[float], height: int, width: int) -> bool:
    """True for most polygons that cover a pixel, without drawing them (a million take seconds, not minutes).

    A closed curve that encloses no point of the unit grid has an area below half its length (E. A. Bender,
    "Area-perimeter relations for two-dimensional lattices", 1962); pycocotools' rounding moves the border by at most
    half a pixel, which takes at most another half of the length.
    """
    xs, ys = polygon[::2], polygon[1::2]
    if min(xs) < 0 or min(ys) < 0 or max(xs) > width or max(ys) > height:
        return False
    next_xs, next_ys = xs[1:] + xs[:1], ys[1:] + ys[:1]
    area = abs(sum(map(mul, xs, next_ys)) - sum(map(mul, ys, next_xs))) / 2
    return area > _length(xs, ys) + 1


def _sound_rle(rle: dict[str, Any], height: int, width: int) -> tuple[Segmentation | None, str | None]:
    """Return what :func:`sound_segmentation` does, for run lengths. Keys that have no meaning are left out."""
    size, counts = rle.get("size"), rle.get("counts")
    runs = rle_counts(counts)
    if not isinstance(size, list | tuple) or len(size) != 2 or runs is None:
        return None, "bad_rle"
    if list(size) != [height, width]:
        return None, "rle_size"
    if int(runs.sum()) != height * width:
        return None, "rle_sum"
    sound = {"size": [height, width], "counts": runs.tolist() if isinstance(counts, list) else counts}
    return sound, None if runs[1::2].any() else "empty_mask"


def rle_counts(counts: object) -> npt.NDArray[np.int64] | None:
    """Return run lengths in pixels, background first, from COCO's plain (a list) or compressed (text) form.

    Returns None if they are malformed.

    The compressed form is that of cocoapi ``common/maskApi.c``, ``rleFrString``: numbers in groups of five bits,
    lowest first, each in a character from code 48 on with a sixth bit for "more follow", the last group's highest bit
    being the sign; from the fourth on a number is the difference from the last but one.
    """
    if isinstance(counts, list):
        if not {bool, str, bytes}.isdisjoint(map(type, counts)):  # NumPy reads these as numbers.
            return None
        try:
            numbers = np.array(counts, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            return None
        whole = (numbers >= 0) & (numbers < 2**32) & (numbers == np.floor(numbers))
        return numbers.astype(np.int64) if numbers.ndim == 1 and bool(whole.all()) else None
    if isinstance(counts, str):
        counts = counts.encode("utf-8", "surrogatepass")
    if not isinstance(counts, bytes):
        return None
    codes = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 7:  # more than a 32-bit count can need
        return None
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= np.where(codes[ends] & 16, np.left_shift(1, 5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs if runs.min() >= 0 and runs.max() < 2**32 else None


def to_rle(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """Return a sound segmentation as one compressed run-length object of pycocotools (``counts`` as bytes)."""
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return coco_mask.frPyObjects(segmentation, height, width)
        return segmentation
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))


def mask_area(segmentation: Segmentation, height: int, width: int) -> int:
    """Return the number of pixels that a sound segmentation covers."""
    from pycocotools import mask as coco_mask

    return int(coco_mask.area(to_rle(segmentation, height, width)))


def decode_masks(segmentations: Sequence[Segmentation], height: int, width: int) -> Tensor:
    """Return sound segmentations as uint8 (N, height, width) of 0 and 1, equal to pycocotools' ``COCO.annToMask``."""
    from pycocotools import mask as coco_mask

    pixels = torch.empty((len(segmentations), height, width), dtype=torch.uint8)
    for mask, segmentation in zip(pixels.numpy(), segmentations, strict=True):
        mask[:] = coco_mask.decode(to_rle(segmentation, height, width))
    return pixels


@dataclass(frozen=True)
class EncodedMasks:
    """The masks of an image's objects before they are drawn, for windows of images in which all would take gigabytes.

    Attributes:
        shapes: The sound segmentation of each object.
        height: Of the image, in pixels.
        width: The same.
    """

    shapes: Sequence[Segmentation]
    height: int
    width: int

    def drawn(self, rows: Iterable[int], window: tuple[int, int, int, int]) -> Tensor:
        """Return uint8 (N, bottom - top, right - left) of 0 and 1: the masks of some objects in a window of the image.

        Args:
            rows: Positions of the objects.
            window: Top, left, bottom and right in pixels.
        """
        top, left, bottom, right = window
        cut = [
            decode_masks([self.shapes[row]], self.height, self.width)[:, top:bottom, left:right].clone() for row in rows
        ]
        return torch.cat(cut) if cut else torch.zeros(0, bottom - top, right - left, dtype=torch.uint8)
