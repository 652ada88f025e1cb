"""Check what a dataset of the user's own says of itself: its categories and, if it has one, its ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vovnet.detection.config.categories import Category, keypoint_problem, plain_category
from vovnet.errors import InputError, is_text, shown

GroundTruth = Mapping[str, Any]
"""A COCO JSON object: ``images``, ``annotations`` and ``categories``."""


def check_categories(value: Any, name: str) -> list[Category]:
    """Return ``dataset.categories`` with plain integers as ids.

    Raises:
        InputError: It is missing or empty, an entry is not ``{"id": int, "name": str}``, or an id stands twice.
    """
    form = '[{"id": 1, "name": "cat"}, …], label 1 first'
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        found = "no attribute 'categories'" if value is None else f"categories = {shown(value)}"
        raise InputError(f"{name}: expected the attribute categories = {form}; got {found}")
    categories: list[Category] = []
    for position, entry in enumerate(value):
        number = entry.get("id") if isinstance(entry, Mapping) else None
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or not is_text(entry.get("name")):
            raise InputError(f"{name}: expected categories = {form}; got categories[{position}] = {shown(entry)}")
        if any(number == one["id"] for one in categories):
            raise InputError(f"{name}: categories: id {number} stands twice; each category needs its own")
        if (problem := keypoint_problem(entry)) is not None:
            raise InputError(f"{name}: categories[{position}].{problem}")
        categories.append(plain_category(entry))
    return categories


def check_ground_truth(truth: Any, categories: Sequence[Category], name: str) -> GroundTruth:
    """Return ``dataset.ground_truth`` after checking what an evaluation reads of it.

    Raises:
        InputError: It is no COCO JSON object, its categories are not the dataset's, or an entry cannot be used.
    """
    keys = ("images", "annotations", "categories")
    if not isinstance(truth, Mapping) or not all(isinstance(truth.get(key), list | tuple) for key in keys):
        raise InputError(f"{name}.ground_truth: expected a COCO JSON object with the lists {', '.join(keys)}")
    for key, needed in (("images", ("id", "height", "width")), ("annotations", ("image_id", "category_id"))):
        for position, entry in enumerate(truth[key]):
            if not isinstance(entry, Mapping) or not all(_is_whole(entry.get(part)) for part in needed):
                raise InputError(
                    f"{name}.ground_truth: {key}[{position}]: expected integers {', '.join(needed)}, got {shown(entry)}"
                )
    theirs = {one["id"] for one in check_categories(truth["categories"], f"{name}.ground_truth")}
    if theirs != {one["id"] for one in categories}:
        raise InputError(f"{name}.ground_truth: its categories are not those of {name}.categories")
    for position, entry in enumerate(truth["annotations"]):
        area, crowd = entry.get("area"), entry.get("iscrowd")
        sound = {
            "bbox = x, y, width, height in pixels": entry.get("bbox") is None or _is_box(entry["bbox"]),
            "area, a number of pixels": area is None or _are_finite([area], 1),
            "keypoints = x, y, v of each, finite numbers": entry.get("keypoints") is None
            or _are_finite(entry["keypoints"], len(entry["keypoints"]) // 3 * 3),
            "iscrowd, 0 or 1": crowd is None or (isinstance(crowd, int | np.integer) and crowd in (0, 1)),
        }
        for wanted, found in sound.items():
            if not found:
                where = f"{name}.ground_truth: annotations[{position}] (image {entry['image_id']})"
                raise InputError(f"{where}: expected {wanted}, got {shown(entry.get(wanted.split()[0].strip(',')))}")
    return truth


def _is_box(value: Any) -> bool:
    return _are_finite(value, 4) and min(value[2:]) >= 0


def _are_finite(value: Any, count: int) -> bool:
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return False
    return numbers.shape == (count,) and bool(np.isfinite(numbers).all())


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
