"""The ground truth of checked images, as a COCO JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vovnet.detection.config.categories import Category
from vovnet.detection.data.checked_images import CheckedImage, CheckedObject


def ground_truth_of(
    images: Sequence[CheckedImage], categories: Sequence[Category], masks: bool, keypoints: int | None = None
) -> dict[str, Any]:
    """Return a COCO JSON object for pycocotools, with crowds, ``area`` and ``iscrowd``.

    Args:
        images: In their order.
        categories: In label order.
        masks: Give annotations their ``segmentation``.
        keypoints: Give each ``keypoints``, this many, and ``num_keypoints``; None gives none.
    """
    annotations = []
    for image in images:
        for one in image.objects:
            entry: dict[str, Any] = {
                "id": one.annotation_id,
                "image_id": image.image_id,
                "category_id": one.category_id,
                "bbox": list(one.box),
                "area": one.area,
                "iscrowd": int(one.crowd),
            }
            if masks and one.segmentation is not None:
                entry["segmentation"] = one.segmentation
            if keypoints is not None:
                entry |= _keypoints_of(one, keypoints)
            annotations.append(entry)
    ids = [entry["id"] for entry in annotations]
    # pycocotools mixes up annotations that share an id, takes id 0 for "not found", and stores ids as float64.
    if len(set(ids)) < len(ids) or not all(isinstance(number, int) and 0 < number < 2**53 for number in ids):
        for number, entry in enumerate(annotations, start=1):
            entry["id"] = number
    entries = [
        {"id": image.image_id, "file_name": image.file_name, "width": image.width, "height": image.height}
        for image in images
    ]
    return {"info": {}, "images": entries, "annotations": annotations, "categories": [dict(one) for one in categories]}


def _keypoints_of(one: CheckedObject, count: int) -> dict[str, Any]:
    if one.keypoints is None:
        return {"keypoints": [0.0] * (3 * count), "num_keypoints": 0}
    return {"keypoints": one.keypoints.ravel().tolist(), "num_keypoints": int((one.keypoints[:, 2] > 0).sum())}
