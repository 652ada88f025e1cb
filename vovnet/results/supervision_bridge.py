"""Detections for Roboflow's supervision (https://supervision.roboflow.com)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vovnet.errors import InputError, install_advice
from vovnet.results.rle import decode

if TYPE_CHECKING:
    from supervision import Detections


def to_supervision(detections: Sequence[Mapping[str, Any]]) -> Detections:
    """Return one image's detections as ``supervision.Detections``.

    Args:
        detections: of one image, as :func:`vovnet.detection.predict` returns them or a JSON file of ``vovnet predict``
            has them.

    Returns:
        ``xyxy`` in pixels, ``confidence``, ``class_id`` (the category's id), ``data["class_name"]``, and ``mask``
        (N, H, W) if all detections have masks. Keypoints are left out.

    Raises:
        InputError: supervision is not installed.
    """
    try:
        from supervision import Detections
    except ImportError as error:
        raise InputError(f"to_supervision needs supervision: {install_advice('supervision')}") from error
    if not detections:
        return Detections.empty()
    boxes = np.array([one["bbox"] for one in detections], dtype=np.float32)
    boxes[:, 2:] += boxes[:, :2]
    masked = all("segmentation" in one for one in detections)
    return Detections(
        xyxy=boxes,
        mask=np.stack([decode(one["segmentation"]) for one in detections]) if masked else None,
        confidence=np.array([one["score"] for one in detections], dtype=np.float32),
        class_id=np.array([one["category_id"] for one in detections], dtype=np.int64),
        data={"class_name": np.array([str(one["category"]) for one in detections])},
    )
