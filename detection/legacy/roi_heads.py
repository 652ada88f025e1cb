"""The box and mask heads: pooling levels, targets, losses and final detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import MultiScaleRoIAlign

from vovnet.detection.legacy.boxes import box_areas, box_iou, clip_boxes, legacy_box_coder, legacy_nms, smooth_l1
from vovnet.detection.legacy.masks import mask_targets


class LegacyLevelMapper:
    """Selects the pyramid level that a box is pooled from: ⌊4 + log2(√area / 224 + 1e-6)⌋ within the levels.

    Reference modeling/poolers.py:31-42. torchvision's area has no +1, and its epsilon is added to the logarithm
    (ops/poolers.py:79-82).
    """

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last

    def __call__(self, boxes: list[Tensor]) -> Tensor:
        """Return the level of each box, (sum of N,) int64 with 0 for the first, from boxes (N, 4) of each image."""
        side = torch.sqrt(torch.cat([box_areas(part) for part in boxes]))
        level = torch.floor(4 + torch.log2(side / 224 + 1e-6))
        return level.clamp(min=self.first, max=self.last).to(torch.int64) - self.first


def legacy_roi_pool(names: Sequence[str], strides: Sequence[int], cells: int, samples: int) -> MultiScaleRoIAlign:
    """Return torchvision's pooling with scales of 1 / stride and the reference's levels.

    torchvision infers the scales from the first images' sizes (ops/poolers.py:98-122).
    """
    pool: Any = MultiScaleRoIAlign(list(names), output_size=cells, sampling_ratio=samples)
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = LegacyLevelMapper(strides[0].bit_length() - 1, strides[-1].bit_length() - 1)
    return cast(MultiScaleRoIAlign, pool)


class LegacyRoIHeads(RoIHeads):
    """torchvision's heads with the reference's matching, losses, mask targets and final selection.

    Constructor arguments are torchvision's. Reference modeling/roi_heads/box_head and mask_head.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.box_coder = legacy_box_coder((10.0, 10.0, 5.0, 5.0))
        self.box_similarity: Any = box_iou

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Any]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return the detections of each image in the network's pixels, or, in training, the losses."""
        if not self.training:
            return super().forward(features, proposals, image_shapes, targets)
        if targets is None:
            raise ValueError("targets: expected boxes and labels of each image in training, got None")
        proposals, matched, labels, offsets = self.select_training_samples(proposals, targets)
        pooled = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        class_logits, box_regression = self.box_predictor(pooled)
        losses = box_losses(class_logits, box_regression, torch.cat(labels), torch.cat(offsets))
        if self.has_mask():
            positive = [torch.where(label > 0)[0] for label in labels]
            boxes = [part[index] for part, index in zip(proposals, positive, strict=True)]
            objects = [part[index] for part, index in zip(matched, positive, strict=True)]
            classes = torch.cat([label[index] for label, index in zip(labels, positive, strict=True)])
            logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))
            losses["loss_mask"] = mask_loss(logits, classes, boxes, objects, targets, image_shapes)
        return [], losses

    def check_targets(self, targets: list[dict[str, Any]] | None) -> None:
        """Refuse targets without a key that the losses need. Masks are polygons here and bitmaps in torchvision."""
        needed = ("boxes", "labels", "polygons") if self.has_mask() else ("boxes", "labels")
        for target in targets or []:
            for key in needed:
                if key not in target:
                    raise ValueError(f"targets: expected the keys {', '.join(needed)}, got {', '.join(target)}")

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return each proposal's object (N,) and its class (N,), 0 for background.

        Reference modeling/roi_heads/box_head/loss.py:39-116; torchvision's overlap is hard-wired to boxes without +1.
        """
        matched, labels = [], []
        for boxes, truth, classes in zip(proposals, gt_boxes, gt_labels, strict=True):
            if not len(truth):
                objects = torch.full((len(boxes),), self.proposal_matcher.BELOW_LOW_THRESHOLD, device=boxes.device)
                classes = classes.new_zeros(1)
            else:
                objects = self.proposal_matcher(self.box_similarity(truth, boxes))
            label = classes[objects.clamp(min=0)]
            label[objects == self.proposal_matcher.BELOW_LOW_THRESHOLD] = 0
            label[objects == self.proposal_matcher.BETWEEN_THRESHOLDS] = -1
            matched.append(objects.clamp(min=0))
            labels.append(label)
        return matched, labels

    def postprocess_detections(
        self, class_logits: Tensor, box_regression: Tensor, proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return boxes, scores and labels of each image, sorted by class and within a class by proposal, not by score.

        Reference modeling/roi_heads/box_head/inference.py:58-149. torchvision drops boxes below a hundredth of a pixel,
        sorts by score and keeps exactly the first 100; here all that tie with the hundredth stay.
        """
        counts = [len(part) for part in proposals]
        boxes = self.box_coder.decode(box_regression, proposals).split(counts)
        scores = F.softmax(class_logits, dim=-1).split(counts)
        found = [self._detections(*each) for each in zip(boxes, scores, image_shapes, strict=True)]
        return [one[0] for one in found], [one[1] for one in found], [one[2] for one in found]

    def _detections(self, boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (M, 4), scores (M,) and labels (M,) to keep of boxes (N, classes, 4) and scores (N, classes)."""
        candidate = scores > self.score_thresh
        candidate[:, 0] = False  # the background
        labels, rows = torch.where(candidate.T)  # by class, then by proposal
        boxes, scores = clip_boxes(boxes[rows, labels], size), scores[rows, labels]
        parts = []
        start = 0
        for count in torch.unique_consecutive(labels, return_counts=True)[1].tolist():
            stop = start + count
            parts.append(start + legacy_nms(boxes[start:stop], scores[start:stop], self.nms_thresh))
            start = stop
        keep = torch.cat(parts) if parts else labels[:0]
        surplus = len(keep) - self.detections_per_img
        if surplus > 0:
            least = scores[keep].kthvalue(surplus + 1).values
            keep = keep[scores[keep] >= least]
        return boxes[keep], scores[keep], labels[keep]


def box_losses(logits: Tensor, offsets: Tensor, labels: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Return the box head's two losses.

    Reference modeling/roi_heads/box_head/loss.py:146-165: smooth L1 with β = 1 where torchvision has 1/9
    (models/detection/roi_heads.py:45-50).

    Args:
        logits: (N, classes).
        offsets: (N, 4 · classes).
        labels: (N,), 0 for background.
        wanted: (N, 4) offsets.
    """
    positive = torch.where(labels > 0)[0]
    chosen = offsets.reshape(len(labels), -1, 4)[positive, labels[positive]]
    distance = smooth_l1(chosen - wanted[positive], beta=1.0).sum()
    return {"loss_classifier": F.cross_entropy(logits, labels), "loss_box_reg": distance / labels.numel()}


def mask_loss(
    logits: Tensor,
    classes: Tensor,
    boxes: list[Tensor],
    objects: list[Tensor],
    targets: list[dict[str, Any]],
    sizes: list[tuple[int, int]],
) -> Tensor:
    """Return the binary cross-entropy of the mask of each positive box, for the box's own class.

    Reference modeling/roi_heads/mask_head/loss.py:102-128: against polygons drawn in the box; torchvision samples a
    bitmap, which gives soft targets (models/detection/roi_heads.py:85-97).

    Args:
        logits: (N, classes, S, S) for the positive boxes of all images.
        classes: (N,).
        boxes: positive boxes of each image.
        objects: index of the object of each of them.
        targets: targets with ``polygons``.
        sizes: heights and widths of the images.
    """
    if not len(classes):
        return logits.sum() * 0
    wanted = [
        mask_targets(target["polygons"], index, part, logits.shape[-1], size)
        for target, index, part, size in zip(targets, objects, boxes, sizes, strict=True)
    ]
    chosen = logits[torch.arange(len(classes), device=logits.device), classes]
    return F.binary_cross_entropy_with_logits(chosen, torch.cat(wanted).to(chosen.dtype))
