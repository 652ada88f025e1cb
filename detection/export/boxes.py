"""Box arithmetic that the graphs of exported detectors share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vovnet.export.nms import padded_nms


class Found(NamedTuple):
    """Detections of N images, padded to K rows with boxes, scores and labels of 0."""

    boxes: Tensor
    """(N, K, 4) XYXY in the network's pixels."""
    scores: Tensor
    """(N, K), the best first."""
    labels: Tensor
    """(N, K) int64, from 1."""


@dataclass(frozen=True)
class BoxRules:
    """The box arithmetic of torchvision's detectors, or of the published ones (``conventions: legacy``)."""

    inclusive: bool
    """Both corners are pixels of the box ("+1"), as legacy/boxes.py describes it."""

    def clip(self, boxes: Tensor, size: Tensor) -> Tensor:
        """Clip boxes (…, 4) to an image of ``size`` (height, width)."""
        limits = torch.stack((size[1], size[0], size[1], size[0])) - (1 if self.inclusive else 0)
        return torch.minimum(boxes.clamp(min=0), limits)

    def large(self, boxes: Tensor, smallest: float) -> Tensor:
        """Return which boxes (…, 4) have no side below ``smallest``."""
        if self.inclusive:
            return torch.ones_like(boxes[..., 0], dtype=torch.bool)
        return ((boxes[..., 2:] - boxes[..., :2]) >= smallest).all(-1)

    def suppress(self, boxes: Tensor, scores: Tensor, threshold: float, limit: int) -> Tensor:
        """Run :func:`padded_nms` with the convention's IoU."""
        if self.inclusive:  # also at IoU == threshold, as on the reference's CPU
            boxes = boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
            threshold = float(torch.nextafter(torch.tensor(threshold), torch.tensor(0.0)))
        return padded_nms(boxes, scores, threshold, limit)


def rows(values: Tensor, indices: Tensor) -> Tensor:
    """Return the rows of ``values`` at ``indices``, and rows of 0 for -1."""
    return torch.where((indices >= 0)[:, None], values[indices.clamp(min=0)], 0.0)


def best_of_classes(
    rules: BoxRules, boxes: Tensor, scores: Tensor, threshold: float, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Suppress within each class and return the best detections of an image.

    Args:
        rules: the convention.
        boxes: (K, P, 4) for K classes.
        scores: (K, P), negative for boxes that do not count.
        threshold: IoU above which the box with the lower score is dropped.
        limit: the number of detections.

    Returns:
        Boxes (D, 4), scores (D,) and labels (D,) from 1 for D = ``limit``; rows without a detection are 0.
    """
    kept = rules.suppress(boxes, scores, threshold, limit)
    labels = torch.where(kept >= 0, kept.clamp(min=0) // scores.shape[1] + 1, 0)
    return rows(boxes.reshape(-1, 4), kept), rows(scores.reshape(-1, 1), kept)[:, 0], labels
