"""Detections for Voxel51's FiftyOne (https://docs.voxel51.com)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vovnet.errors import InputError, install_advice
from vovnet.results.rle import decode

if TYPE_CHECKING:
    from fiftyone import Detections  # pyright: ignore[reportMissingImports]


def to_fiftyone(detections: Sequence[Mapping[str, Any]], size: tuple[int, int] | None = None) -> Detections:
    """Return one image's detections as ``fiftyone.Detections``, a field of a sample.

    Args:
        detections: of one image, as :func:`vovnet.detection.predict` returns them or a JSON file of ``vovnet predict``
            has them.
        size: height and width of the image in pixels, as FiftyOne's boxes are in 0..1. None takes it from the masks.

    Returns:
        ``label`` (the category's name), ``bounding_box`` (x, y, width, height in 0..1), ``confidence``, and if there is
        a mask ``mask``, its part in the box (booleans). Keypoints are left out.

    Raises:
        InputError: FiftyOne is not installed, or the size is not known.
    """
    try:
        import fiftyone  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(f"to_fiftyone needs FiftyOne: {install_advice('fiftyone')}") from error
    made = []
    for one in detections:
        segmentation = one.get("segmentation")
        shape = size if size is not None else None if segmentation is None else segmentation["size"]
        if shape is None:
            raise InputError("to_fiftyone: size: expected height and width of the image, which has no masks; got None")
        x, y, width, height = one["bbox"]
        made.append(
            fiftyone.Detection(
                label=str(one["category"]),
                bounding_box=[x / shape[1], y / shape[0], width / shape[1], height / shape[0]],
                confidence=one["score"],
                mask=None if segmentation is None else _inside(decode(segmentation), one["bbox"]),
            )
        )
    return fiftyone.Detections(detections=made)


def _inside(mask: NDArray[np.bool_], box: Sequence[float]) -> NDArray[np.bool_] | None:
    """Return the part of a mask in a box, as FiftyOne cuts COCO's; None if no pixel is in it."""
    x, y, width, height = box
    part = mask[round(y) : round(y + height), round(x) : round(x + width)]
    return part if part.size else None
