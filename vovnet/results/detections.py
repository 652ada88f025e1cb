"""The detections of an image in COCO's terms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vovnet.errors import InputError


@dataclass
class ImageDetections:
    """The N detections of one image, in the order in which the detector returned them."""

    image_id: int
    boxes: NDArray[np.float32]
    """(N, 4): x, y, width, height in pixels."""
    scores: NDArray[np.float32]
    """(N,)"""
    category_ids: NDArray[np.int64]
    """(N,): ids of categories, not labels."""
    masks: list[bytes] | None = None
    """Compressed RLE counts of each detection; None if the detector returns no masks."""
    size: tuple[int, int] = (0, 0)
    """Height and width of the image; each RLE contains them."""
    keypoints: NDArray[np.float32] | None = None
    """(N, P, 3): x, y in pixels and score (0 to 1) of each point; None if the detector returns no keypoints."""
    pass_size: tuple[int, int] | None = None
    """Height and width of a tile, if the image was cut into tiles."""
    pass_count: int | None = None
    """The largest number of detections in one tile, which the detector's limit is about."""

    def results(self, iou_type: str) -> Iterator[dict[str, Any]]:
        """Yield dictionaries of COCO's results format.

        They have boxes for ``bbox``, RLE with text counts for ``segm``, and x, y and score of each point, one after the
        other, for ``keypoints``.
        """
        scores, categories = self.scores.tolist(), self.category_ids.tolist()
        if iou_type == "bbox":
            for category, box, score in zip(categories, self.boxes.tolist(), scores, strict=True):
                yield {"image_id": self.image_id, "category_id": category, "bbox": box, "score": score}
            return
        if iou_type == "keypoints":
            points = [] if self.keypoints is None else [one.ravel().tolist() for one in self.keypoints]
            for category, flat, score in zip(categories, points, scores, strict=True):
                yield {"image_id": self.image_id, "category_id": category, "keypoints": flat, "score": score}
            return
        if self.masks and 0 in self.size:  # pycocotools would divide by it, which ends the process
            raise InputError(f"image {self.image_id}: size: expected height and width with masks, got {self.size}")
        size = list(self.size)
        for category, counts, score in zip(categories, self.masks or [], scores, strict=True):
            segmentation = {"size": size, "counts": counts.decode("ascii")}
            yield {"image_id": self.image_id, "category_id": category, "segmentation": segmentation, "score": score}

    def named(self, categories: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
        """Return the detections as ``vovnet predict`` writes them, best first.

        Args:
            categories: ``id`` and ``name`` of each category; None names each by its id.

        Returns:
            ``{"bbox": [x, y, width, height] in pixels, "score", "category_id", "category"}``, and ``"segmentation"``
            (COCO's RLE with text counts) if there are masks, and ``"keypoints"`` (x, y in pixels and score of each
            point, one after the other) if there are keypoints.
        """
        if categories is None:
            names = {number: str(number) for number in self.category_ids.tolist()}
        else:
            names = {int(category["id"]): str(category["name"]) for category in categories}
        masks = list(self.results("segm")) if self.masks is not None else []
        points = list(self.results("keypoints")) if self.keypoints is not None else []
        entries = []
        for position, result in enumerate(self.results("bbox")):
            category_id = result["category_id"]
            entry = {
                "bbox": result["bbox"],
                "score": result["score"],
                "category_id": category_id,
                "category": names[category_id],
            }
            if masks:
                entry["segmentation"] = masks[position]["segmentation"]
            if points:
                entry["keypoints"] = points[position]["keypoints"]
            entries.append(entry)
        return sorted(entries, key=lambda one: -one["score"])


def checked_detections(
    image_id: int,
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    category_ids: Sequence[int],
    size: tuple[int, int],
) -> ImageDetections:
    """Return what a detector returned for one image, without masks.

    Args:
        image_id: COCO's id of the image.
        boxes: (N, 4): x, y, width, height in pixels.
        scores: (N,).
        labels: (N,), from 1.
        category_ids: label k becomes ``category_ids[k - 1]``.
        size: height and width of the image.

    Raises:
        InputError: a label is outside 1..K, or a box or score is not finite.
    """
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise InputError(f"image {image_id}: the detector returned boxes or scores that are not finite")
    if labels.size and (labels.min() < 1 or labels.max() > len(category_ids)):
        raise InputError(
            f"image {image_id}: the detector returned label {labels[(labels < 1) | (labels > len(category_ids))][0]}, "
            f"but there are {len(category_ids)} categories; was it trained on other data?"
        )
    ids = np.asarray(category_ids, dtype=np.int64)
    return ImageDetections(image_id, boxes, scores, ids[labels - 1], size=size)
