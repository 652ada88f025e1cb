"""Object keypoint similarity, which takes the place of IoU for keypoints (cocodataset.org/#keypoints-eval)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def similarities(
    found: Sequence[Mapping[str, Any]], truth: Sequence[Mapping[str, Any]], sigmas: Sequence[float]
) -> NDArray[np.float64]:
    """Return the OKS (D, G) of detections and objects, as pycocotools' ``computeOks``, also across categories.

    Of an object without labelled points, it is measured how far the points lie outside of its box, doubled.

    Args:
        found: D results with ``keypoints``: x, y and anything of each point, one after the other.
        truth: G annotations with ``keypoints`` (x, y, visibility), ``bbox`` and ``area``.
        sigmas: of each point.
    """
    points = np.array([one["keypoints"] for one in found], dtype=np.float64).reshape(len(found), -1, 3)[:, :, :2]
    scale = (2 * np.asarray(sigmas, dtype=np.float64)) ** 2
    columns = []
    for one in truth:
        labelled = np.array(one["keypoints"], dtype=np.float64).reshape(-1, 3)
        seen = labelled[:, 2] > 0
        if seen.any():
            away = points[:, seen] - labelled[seen, :2]
        else:
            seen = np.ones(len(labelled), dtype=np.bool_)
            low = np.array(one["bbox"][:2]) - one["bbox"][2:]
            high = np.array(one["bbox"][:2]) + 2 * np.array(one["bbox"][2:])
            away = np.maximum(low - points, 0) + np.maximum(points - high, 0)
        errors = (away**2).sum(axis=2) / scale[seen] / (one["area"] + np.spacing(1)) / 2
        columns.append(np.exp(-errors).mean(axis=1))
    return np.stack(columns, axis=1)
