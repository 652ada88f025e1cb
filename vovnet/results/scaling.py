"""Detections of an image that is shown in another size."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vovnet.results.rle import decode, encode_part


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return the (width, height) in pixels of an image that is resized by a factor, at least 1."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def scaled_detections(
    detections: Sequence[Mapping[str, Any]], scale: float, size: tuple[int, int]
) -> list[dict[str, Any]]:
    """Return detections as they are in the resized image.

    Args:
        detections: as :func:`vovnet.detection.predict` returns them.
        scale: the factor by which the image is resized.
        size: (width, height) of the image before that, in pixels.
    """
    new = scaled_size(size, scale)
    scaled = []
    for one in detections:
        entry = scaled_entry(one, scale)
        if "segmentation" in one:
            mask = Image.fromarray(decode(one["segmentation"]).astype(np.uint8) * 255)
            smooth = np.asarray(mask.resize(new, Image.Resampling.BILINEAR)) > 127
            counts = encode_part(smooth, (0, 0), (new[1], new[0]))
            entry["segmentation"] = {"size": [new[1], new[0]], "counts": counts}
        scaled.append(entry)
    return scaled


def scaled_entry(one: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Return a detection or annotation with its box and keypoints scaled."""
    entry = {**one, "bbox": [value * scale for value in one["bbox"]]}
    if "keypoints" in one:
        factors = itertools.cycle((scale, scale, 1))
        entry["keypoints"] = [value * factor for value, factor in zip(one["keypoints"], factors, strict=False)]
    return entry
