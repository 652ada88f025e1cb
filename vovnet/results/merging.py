"""Merge what a detector found in overlapping tiles of an image.

The same object is found in each tile that shows it, whole or cut by the tile's border. Detections of the same class are
taken for one object by one of three rules:

``auto``
    Two tiles see the same in the zone that they have in common. The best detection absorbs those of *other* tiles whose
    box, as far as it lies in the common zone, has an IoU of at least 0.5 with its own there, and those that a border
    cuts if half of their box lies in its own. Two detections of one tile are never merged: the detector has judged
    them. A detection that no border cuts ranks before one with a score up to twice as high that is cut, and keeps its
    box and mask. Cut ones without such a detection are joined: box and mask become their union.
``nms``
    Non-maximum suppression with an IoU of 0.5, as torchvision's ``batched_nms``.
``nmm``
    SAHI's default (``GREEDYNMM``, ``IOS``, 0.5): the best detection absorbs all others of which the intersection is at
    least half of the smaller box, from any tile, and box and mask become the union.
    (https://github.com/obss/sahi, sahi/postprocess/combine.py.)

A merged detection has the highest score of its parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vovnet.results.detections import ImageDetections
from vovnet.results.rle import joined_masks, moved_mask

MergeRule = Literal["auto", "nms", "nmm"]

Part = tuple[tuple[int, int, int, int], ImageDetections]
"""A tile (top, left, bottom, right in pixels of the image), and what was found in it, in pixels of the tile."""

_LEAST = 0.5
"""Overlap (IoU, or share of a box) from which on two detections are one object; share of scores in a union."""
_MARGIN = 0.01
"""A box is cut if it comes this close to a tile's inner border, as a share of the tile's side; at least 2 pixels."""

Boxes = NDArray[np.float64]


def merged(parts: Sequence[Part], size: tuple[int, int], rule: MergeRule = "auto") -> ImageDetections:
    """Return the detections of an image from those of its tiles, the best first.

    Args:
        parts: the tiles and their detections. One of them may be the whole image.
        size: height and width of the image in pixels.
        rule: see above.
    """
    found = _in_the_image(parts, size)
    return _result(found, _RULES[rule](parts, found).objects())


class _Rule:
    """What is common to the rules. Boxes are XYXY in pixels of the image.

    Args:
        parts: the tiles and their detections.
        found: all of these detections, in pixels of the image.
    """

    def __init__(self, parts: Sequence[Part], found: ImageDetections) -> None:
        self.boxes = _corners(found.boxes)
        self.scores = found.scores.astype(np.float64)
        self.classes = found.category_ids

    def ranks(self) -> Boxes:
        """Return the numbers (N,) by which the best is chosen."""
        return self.scores

    def same(self, one: int, others: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of some detections of a class are the object of one of them."""
        return _iou(self.boxes[one], self.boxes[others]) >= _LEAST

    def lead_on(self, best: int, absorbed: list[int]) -> list[int]:
        """Return those of the absorbed detections that absorb others for the best one."""
        return []

    def pieces(self, group: list[int]) -> list[int]:
        """Return the members of a group, the best first, whose union is the object."""
        return group[:1]

    def scored(self, group: list[int]) -> list[int]:
        """Return the members of a group whose highest score is the object's."""
        return group

    def objects(self) -> list[_Object]:
        """Return the objects: in each class the best of what is left absorbs others, again and again."""
        boxes = self.boxes
        order = np.lexsort((boxes[:, 3], boxes[:, 2], boxes[:, 1], boxes[:, 0], -self.ranks()))
        objects = []
        for one_class in np.unique(self.classes):
            rest = order[self.classes[order] == one_class]
            while rest.size:
                group, rest = [int(rest[0])], rest[1:]
                leaders = list(group)
                while leaders and rest.size:
                    leader = leaders.pop(0)
                    near = np.flatnonzero(_touch(boxes[leader], boxes[rest]))
                    near = near[self.same(leader, rest[near])]
                    absorbed = rest[near].tolist()
                    group += absorbed
                    leaders += self.lead_on(group[0], absorbed)
                    rest = np.delete(rest, near)
                pieces = self.pieces(group)
                score = float(self.scores[self.scored(group)].max())
                objects.append(_Object(pieces, _union(boxes[pieces]), score))
        return sorted(objects, key=lambda one: -one.score)


@dataclass(frozen=True)
class _Object:
    pieces: list[int]
    """The detections that it consists of, the best first."""
    box: Boxes
    score: float


class _Suppressed(_Rule):
    """The rule ``nms``; all of it is in the base class."""


class _Sahi(_Rule):
    """The rule ``nmm``."""

    def same(self, one: int, others: NDArray[np.int64]) -> NDArray[np.bool_]:
        return _share_of_smaller(self.boxes[one], self.boxes[others]) >= _LEAST

    def pieces(self, group: list[int]) -> list[int]:
        pieces = group[:1]
        for one in group[1:]:  # SAHI asks again, because the box has grown
            if _share_of_smaller(_union(self.boxes[pieces]), self.boxes[[one]])[0] >= _LEAST:
                pieces.append(one)
        return pieces


class _Zones(_Rule):
    """The rule ``auto``."""

    def __init__(self, parts: Sequence[Part], found: ImageDetections) -> None:
        super().__init__(parts, found)
        counts = [len(one.scores) for _, one in parts]
        tiles = np.array([(left, top, right, bottom) for (top, left, bottom, right), _ in parts], dtype=np.float64)
        self.numbers = np.repeat(np.arange(len(parts)), counts)
        self.tiles = tiles[self.numbers]
        self.cut = _cut(self.boxes, self.tiles, found.size)

    def ranks(self) -> Boxes:
        return np.where(self.cut, self.scores / 2, self.scores)

    def same(self, one: int, others: NDArray[np.int64]) -> NDArray[np.bool_]:
        zones = _intersection(self.tiles[one], self.tiles[others])
        ours, theirs = _intersection(self.boxes[one], zones), _intersection(self.boxes[others], zones)
        common = _area(_intersection(self.boxes[one], self.boxes[others]))
        inside = self.cut[others] & (common >= _LEAST * _area(self.boxes[others]))
        return (self.numbers[others] != self.numbers[one]) & ((_iou(ours, theirs) >= _LEAST) | inside)

    def lead_on(self, best: int, absorbed: list[int]) -> list[int]:
        return self.pieces([best, *absorbed])[1:]

    def pieces(self, group: list[int]) -> list[int]:
        best = group[0]
        if not self.cut[best]:
            return [best]
        return [best, *(one for one in group[1:] if self.cut[one] and self.scores[one] >= _LEAST * self.scores[best])]


_RULES: dict[MergeRule, type[_Rule]] = {"auto": _Zones, "nms": _Suppressed, "nmm": _Sahi}


def _result(found: ImageDetections, objects: Sequence[_Object]) -> ImageDetections:
    corners = np.array([one.box for one in objects], dtype=np.float64).reshape(-1, 4)
    best = np.array([one.pieces[0] for one in objects], dtype=np.int64)
    masks = found.masks
    return ImageDetections(
        found.image_id,
        np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), 1).astype(np.float32),
        np.array([one.score for one in objects], dtype=np.float32),
        found.category_ids[best],
        None if masks is None else [joined_masks([masks[at] for at in one.pieces], found.size) for one in objects],
        found.size,
        None if found.keypoints is None else found.keypoints[best],
        found.pass_size,
        found.pass_count,
    )


def _union(boxes: Boxes) -> Boxes:
    return np.concatenate((boxes[:, :2].min(0), boxes[:, 2:].max(0)))


def _in_the_image(parts: Sequence[Part], size: tuple[int, int]) -> ImageDetections:
    """Return all detections with boxes, masks and keypoints in pixels of the image."""
    founds = [found for _, found in parts]
    corners = [np.array([left, top], dtype=np.float32) for (top, left, _, _), _ in parts]
    placed = list(zip(founds, corners, strict=True))
    boxes = [np.concatenate((one.boxes[:, :2] + at, one.boxes[:, 2:]), 1) for one, at in placed]
    masks = [
        [moved_mask(mask, one.size, tile[:2], size) for mask in one.masks]
        for tile, one in parts
        if one.masks is not None
    ]
    points = [
        np.concatenate((one.keypoints[..., :2] + at, one.keypoints[..., 2:]), -1)
        for one, at in placed
        if one.keypoints is not None
    ]
    most = max((one.pass_count or len(one.scores) for one in founds), default=0)
    return ImageDetections(
        founds[0].image_id,
        np.concatenate(boxes),
        np.concatenate([one.scores for one in founds]),
        np.concatenate([one.category_ids for one in founds]),
        [mask for some in masks for mask in some] if masks else None,
        size,
        np.concatenate(points) if points else None,
        pass_size=founds[0].size,
        pass_count=most,
    )


def _cut(boxes: Boxes, tiles: Boxes, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which boxes reach a border of their tile that is none of the image."""
    left, top, right, bottom = tiles.T
    rows, columns = np.maximum(2, _MARGIN * (bottom - top)), np.maximum(2, _MARGIN * (right - left))
    return (
        ((left > 0) & (boxes[:, 0] <= left + columns))
        | ((top > 0) & (boxes[:, 1] <= top + rows))
        | ((right < size[1]) & (boxes[:, 2] >= right - columns))
        | ((bottom < size[0]) & (boxes[:, 3] >= bottom - rows))
    )


def _corners(boxes: NDArray[np.float32]) -> Boxes:
    wide = boxes.astype(np.float64)
    return np.concatenate((wide[:, :2], wide[:, :2] + wide[:, 2:]), 1)


def _touch(one: Boxes, others: Boxes) -> NDArray[np.bool_]:
    return (one[0] < others[:, 2]) & (others[:, 0] < one[2]) & (one[1] < others[:, 3]) & (others[:, 1] < one[3])


def _intersection(one: Boxes, others: Boxes) -> Boxes:
    """Return the intersections (N, 4) of one box (4,), or of boxes (N, 4), with others (N, 4)."""
    return np.concatenate((np.maximum(one[..., :2], others[:, :2]), np.minimum(one[..., 2:], others[:, 2:])), 1)


def _area(boxes: Boxes) -> Boxes:
    return np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1)


def _ratio(part: Boxes, whole: Boxes) -> Boxes:
    return part / np.maximum(whole, 1e-12)


def _iou(one: Boxes, others: Boxes) -> Boxes:
    common = _area(_intersection(one, others))
    return _ratio(common, _area(one) + _area(others) - common)


def _share_of_smaller(one: Boxes, others: Boxes) -> Boxes:
    return _ratio(_area(_intersection(one, others)), np.minimum(_area(one), _area(others)))
