"""The rules by which an annotation of COCO JSON is usable, and what is said of one that is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vovnet.detection.data import fields
from vovnet.detection.data.checked_images import CheckedImage, CheckedObject
from vovnet.detection.data.keypoints import Points, read_keypoints
from vovnet.detection.data.masks import mask_area, sound_segmentation
from vovnet.detection.data.report import DataReport
from vovnet.errors import shown

TOLERANCE = 0.5
"""A box may leave the image by this many pixels without being counted: files round to two decimals or whole pixels."""

SMALLEST = 0.01
"""A box with a side below this many pixels counts as empty."""

_LARGEST = 2**31
"""No coordinate of a box reaches this many pixels."""

_NEARLY_ALL = 0.9
"""Part of the boxes of a file that lie in 0..1 if the file has fractions of the image's size in place of pixels."""


@dataclass(slots=True)
class AnnotationRules:
    """The rules by which the annotations of one file are usable or not."""

    names: dict[int, str]
    """Category id to name."""
    masks: bool
    evaluation: bool
    normalized: bool
    """True if the boxes of the file are fractions of the image's size."""
    report: DataReport
    keypoints: dict[int, int]
    """Category id to the number of its keypoints; empty if keypoints are not read."""

    def check(
        self, entry: dict[str, Any], annotation_id: int | str, image: CheckedImage | None
    ) -> CheckedObject | None:
        """Return a usable annotation, or None after adding the reason to the report."""
        add = self.report.add
        if image is None:
            add("unknown_image", annotation_id, lambda: f"image_id {_value(entry, 'image_id')}")
            return None
        category_id = fields.whole_number(entry.get("category_id"))
        if category_id is None or category_id not in self.names:
            add("unknown_category", annotation_id, lambda: f"category_id {_value(entry, 'category_id')}")
            return None
        crowd = False if entry.get("iscrowd") is None else fields.flag(entry["iscrowd"])
        if crowd is None:
            add("bad_iscrowd", annotation_id, lambda: f"iscrowd {_value(entry, 'iscrowd')}")
            return None
        box = fields.box(entry.get("bbox"))
        problem = "bad_box" if box is None else self._box_problem(box, image)
        if problem:
            add(problem, annotation_id)
        if box is None or problem not in (None, "box_partly_outside", "tiny_box"):
            return None
        segmentation, area, mask_problem = None, fields.area(entry.get("area")), None
        self._check_the_rest(entry, annotation_id, area)
        if self.masks or area is None:
            segmentation, mask_problem = sound_segmentation(entry.get("segmentation"), image.height, image.width)
        if self.masks and mask_problem:
            add(mask_problem, annotation_id)
            # Evaluation keeps the box of an object without a sound mask.
            if segmentation is None and not self.evaluation:
                return None
        if area is None:
            area = mask_area(segmentation, image.height, image.width) if segmentation else box[2] * box[3]
        return CheckedObject(
            category_id=category_id,
            box=box,
            area=area,
            crowd=crowd,
            segmentation=segmentation if self.masks else None,
            annotation_id=annotation_id,
            empty_mask=self.masks and mask_problem == "empty_mask",
            keypoints=self._keypoints(entry, category_id, annotation_id, image) if self.keypoints else None,
        )

    def _keypoints(
        self, entry: dict[str, Any], category_id: int, annotation_id: int | str, image: CheckedImage
    ) -> Points | None:
        """Return an annotation's keypoints after adding what is wrong with them."""
        value, size = entry.get("keypoints"), (image.width, image.height)
        points, problems = read_keypoints(value, self.keypoints[category_id], size, TOLERANCE)
        for kind in problems:
            self.report.add(kind, annotation_id, lambda: _keypoints_example(value, self.keypoints[category_id]))
        stated = entry.get("num_keypoints")
        labelled = 0 if points is None else int((points[:, 2] > 0).sum())
        if stated is not None and not problems and fields.whole_number(stated) != labelled:
            self.report.add("num_keypoints", annotation_id, lambda: f"{shown(stated)}, and {labelled} are labelled")
        return points

    def _box_problem(self, box: fields.Box, image: CheckedImage) -> str | None:
        if self.normalized and _in_unit_square(box) and max(image.width, image.height) > 1:
            return "normalized_box"
        return box_problem(box, image.width, image.height)

    def _check_the_rest(self, entry: dict[str, Any], annotation_id: int | str, area: float | None) -> None:
        """Add what is wrong with the fields that an annotation can do without."""
        if entry.get("id") is not None and fields.whole_number(entry["id"]) is None:
            self.report.add("annotation_id", annotation_id)
        if area is None and entry.get("area") is not None:
            self.report.add("bad_area", annotation_id, lambda: f"area {_value(entry, 'area')}")
        if entry.get("ignore") is not None and fields.flag(entry["ignore"]) is not False:
            self.report.add("ignore_set", annotation_id, lambda: f"ignore {_value(entry, 'ignore')}")


def _keypoints_example(value: Any, count: int) -> str:
    if isinstance(value, list) and len(value) != 3 * count:
        return f"{len(value)} numbers where {3 * count} are expected"
    return shown(value)


def box_problem(box: fields.Box, width: int, height: int) -> str | None:
    """Return the kind of problem of a box (x, y, width, height in pixels) in an image of this size, or None."""
    if max(box) >= _LARGEST or min(box) <= -_LARGEST:
        return "bad_box"
    x, y, w, h = box
    if min(w, h) < SMALLEST:
        return "empty_box"
    if min(x + w, width) - max(x, 0) < SMALLEST or min(y + h, height) - max(y, 0) < SMALLEST:
        return "box_outside"
    if max(-x, -y, x + w - width, y + h - height) > TOLERANCE:
        return "box_partly_outside"
    return "tiny_box" if min(w, h) < 1 else None


def _in_unit_square(box: fields.Box) -> bool:
    return min(box) >= 0 and max(box) <= 1


def are_normalized(annotations: Sequence[Any]) -> bool:
    """True if nearly all boxes of a file lie in 0..1, and not all of their numbers are whole."""
    inside, outside, fractions = 0, 0, False
    for entry in annotations:
        box = fields.box(entry.get("bbox")) if isinstance(entry, dict) else None
        if box is None:
            continue
        if _in_unit_square(box):
            inside += 1
            fractions = fractions or not all(number.is_integer() for number in box)
        else:
            outside += 1
            if outside > (1 - _NEARLY_ALL) * len(annotations):
                return False
    return fractions and inside >= _NEARLY_ALL * (inside + outside)


def _value(entry: dict[str, Any], key: str) -> str:
    """Return a field as JSON writes it, but short."""
    value = entry.get(key)
    return f'"{shown(value)}"' if isinstance(value, str) else shown(value)
