"""Detections of an image that is shown in another size."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from PIL import Image

from vovnet.results.rle import decode_part, encode_part


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
            entry["segmentation"] = {"size": [new[1], new[0]], "counts": _scaled_mask(one["segmentation"], size, new)}
        scaled.append(entry)
    return scaled


def _scaled_mask(segmentation: Mapping[str, Any], size: tuple[int, int], new: tuple[int, int]) -> bytes:
    """Return the counts of a mask that is resized, of which only the part that is not 0 is computed."""
    part, (top, left) = decode_part(segmentation)
    if not part.size:
        return encode_part(part, (0, 0), (new[1], new[0]))
    columns = _Span.around(left, part.shape[1], size[0], new[0])
    rows = _Span.around(top, part.shape[0], size[1], new[1])
    window = np.zeros((rows.source_end - rows.source, columns.source_end - columns.source), np.uint8)
    inner_top, inner_left = top - rows.source, left - columns.source
    window[inner_top : inner_top + part.shape[0], inner_left : inner_left + part.shape[1]] = part * np.uint8(255)
    box = columns.first, rows.first, columns.last, rows.last
    resized = Image.fromarray(window).resize(
        (columns.end - columns.start, rows.end - rows.start), Image.Resampling.BILINEAR, box=box
    )
    return encode_part(np.asarray(resized) > 127, (rows.start, columns.start), (new[1], new[0]))


_MARGIN = 2
"""Pixels of the new image around a mask: the filter reaches as far."""


@dataclass(frozen=True)
class _Span:
    """A part of one axis, before and after an image is resized."""

    start: int
    end: int
    """Pixels of the new image."""
    source: int
    source_end: int
    """Pixels of the old image that hold them."""
    first: float
    last: float
    """Where they begin and end there, counted from ``source``."""

    @classmethod
    def around(cls, begin: int, length: int, old: int, new: int) -> _Span:
        ratio = old / new
        start = max(0, int(begin / ratio) - _MARGIN)
        end = min(new, ceil((begin + length) / ratio) + _MARGIN)
        source, source_end = min(begin, int(start * ratio)), max(begin + length, min(old, ceil(end * ratio)))
        return cls(start, end, source, source_end, start * ratio - source, min(end * ratio, source_end) - source)


def scaled_entry(one: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Return a detection or annotation with its box and keypoints scaled."""
    entry = {**one, "bbox": [value * scale for value in one["bbox"]]}
    if "keypoints" in one:
        factors = itertools.cycle((scale, scale, 1))
        entry["keypoints"] = [value * factor for value, factor in zip(one["keypoints"], factors, strict=False)]
    return entry
