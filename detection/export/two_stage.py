"""The detections of Faster, Mask and Keypoint R-CNN, with fixed shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from vovnet.detection.export.boxes import BoxRules, Found, best_of_classes, rows
from vovnet.detection.export.keypoints import heatmap_keypoints
from vovnet.detection.export.pooling import PyramidPool

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vovnet.detection.export.resizing import Prepared

_SMALLEST_BOX = 1e-2  # torchvision's roi_heads.py drops detections with a smaller side


class TwoStage(nn.Module):
    """Finds proposals and classifies them.

    Args:
        detector: a Faster, Mask or Keypoint R-CNN. Its modules are shared, not copied.
        rules: its box arithmetic.
        masks: compute masks of the detections.
        keypoints: compute keypoints of the detections.
        dynamic: images have all sizes.
    """

    def __init__(
        self, detector: Any, rules: BoxRules, *, masks: bool, keypoints: bool = False, dynamic: bool = True
    ) -> None:
        super().__init__()
        self.rules, self.dynamic = rules, dynamic
        self.rpn, self.heads = detector.rpn, detector.roi_heads
        self.pooled_levels = [str(name) for name in self.heads.box_roi_pool.featmap_names]
        strides = detector.backbone.strides[: len(self.pooled_levels)]
        self.box_pool = PyramidPool(self.heads.box_roi_pool, strides)
        self.mask_pool = PyramidPool(self.heads.mask_roi_pool, strides) if masks else None
        self.keypoint_pool = PyramidPool(self.heads.keypoint_roi_pool, strides) if keypoints else None
        self.dtype = torch.float32

    def set_precision(self, dtype: torch.dtype) -> None:
        """Make convolutions and linear layers multiply numbers of a dtype."""
        self.dtype = dtype
        for part in (self.rpn.head, self.heads):
            part.to(dtype)

    def forward(self, prepared: Prepared, features: Mapping[str, Tensor]) -> Found:
        """Detect objects in the pyramid's levels."""
        proposals = self._proposals(prepared, list(features.values()))
        return self._detections(prepared, self._pooled(features), proposals)

    def mask_probabilities(self, features: Mapping[str, Tensor], found: Found) -> Tensor:
        """Return masks of detections on a grid over each box, (N · K, M, M) probabilities."""
        assert self.mask_pool is not None
        pooled = self.mask_pool(self._pooled(features), found.boxes).to(self.dtype)
        logits: Tensor = self.heads.mask_predictor(self.heads.mask_head(pooled)).float()
        cells = logits.shape[-1]
        flat = found.labels.reshape(-1, 1, 1, 1).expand(-1, 1, cells, cells)
        return logits.gather(1, flat)[:, 0].sigmoid()

    def keypoints(self, features: Mapping[str, Tensor], found: Found) -> Tensor:
        """Return keypoints of detections, (N, K, P, 3): x and y in the network's pixels, and the heatmap's logit."""
        assert self.keypoint_pool is not None
        pooled = self.keypoint_pool(self._pooled(features), found.boxes).to(self.dtype)
        maps: Tensor = self.heads.keypoint_predictor(self.heads.keypoint_head(pooled)).float()
        points = heatmap_keypoints(maps, found.boxes.reshape(-1, 4))
        return points.reshape(*found.labels.shape, *points.shape[1:])

    def _pooled(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        return [features[name].float() for name in self.pooled_levels]

    def _proposals(self, prepared: Prepared, maps: Sequence[Tensor]) -> Tensor:
        """Return proposals (N, post_nms_top_n, 4) in the network's pixels; see torchvision's rpn.py."""
        rpn = self.rpn
        logits, offsets = rpn.head(list(maps))
        one_image = ImageList(prepared.images, [(0, 0)])  # generators only count the sizes
        anchors = rpn.anchor_generator(one_image, [map_.float() for map_ in maps])[0]
        boxes, scores, start = [], [], 0
        for level_logits, level_offsets in zip(logits, offsets, strict=True):
            count, per_place, height, width = level_logits.shape
            length = per_place * height * width
            flat_logits = level_logits.float().permute(0, 2, 3, 1).reshape(count, length)
            flat_offsets = level_offsets.float().reshape(count, per_place, 4, height, width).permute(0, 3, 4, 1, 2)
            level_boxes, level_scores = self._best(
                flat_logits, flat_offsets.reshape(count, length, 4), anchors[start : start + length]
            )
            boxes.append(level_boxes)
            scores.append(level_scores)
            start = start + length
        return self._best_proposals(torch.stack(boxes, 1), torch.stack(scores, 1), prepared.size)

    def _best(self, logits: Tensor, offsets: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes (N, T, 4) and scores (N, T) of a level's T = pre_nms_top_n best anchors, padded with -1."""
        most = self.rpn.pre_nms_top_n()
        values = logits.sigmoid() if self.rules.inclusive else logits
        if self.dynamic or values.shape[1] < most:
            values = nn.functional.pad(values, (0, most), value=-torch.inf)
        best, places = values.topk(most, dim=1)
        real = best > -torch.inf
        places = torch.where(real, places, 0)
        chosen = offsets.gather(1, places[:, :, None].expand(-1, -1, 4))
        boxes = self.rpn.box_coder.decode_single(chosen.reshape(-1, 4), anchors[places.reshape(-1)])
        scores = best if self.rules.inclusive else best.sigmoid()
        return boxes.reshape(-1, most, 4), torch.where(real, scores, -1.0)

    def _best_proposals(self, boxes: Tensor, scores: Tensor, size: Tensor) -> Tensor:
        """Suppress within each level of boxes (N, L, T, 4) and return the best of all levels."""
        rpn = self.rpn
        boxes = self.rules.clip(boxes, size)
        keep = self.rules.large(boxes, float(rpn.min_size)) & (scores >= rpn.score_thresh)
        scores = torch.where(keep, scores, -1.0)
        limit = min(rpn.post_nms_top_n(), boxes.shape[1] * boxes.shape[2])
        found = []
        for image_boxes, image_scores in zip(boxes.unbind(), scores.unbind(), strict=True):
            kept = self.rules.suppress(image_boxes, image_scores, rpn.nms_thresh, limit)
            found.append(rows(image_boxes.reshape(-1, 4), kept))
        return torch.stack(found)

    def _detections(self, prepared: Prepared, levels: Sequence[Tensor], proposals: Tensor) -> Found:
        """Classify proposals (N, P, 4); see torchvision's roi_heads.py."""
        heads = self.heads
        pooled = self.box_pool(levels, proposals).to(self.dtype)
        logits, offsets = (output.float() for output in heads.box_predictor(heads.box_head(pooled)))
        count, number = proposals.shape[:2]
        boxes = heads.box_coder.decode_single(offsets, proposals.reshape(-1, 4)).reshape(count, number, -1, 4)
        boxes = self.rules.clip(boxes, prepared.size)[:, :, 1:].transpose(1, 2)  # (N, classes, P, 4)
        scores = logits.softmax(-1).reshape(count, number, -1)[:, :, 1:].transpose(1, 2)
        real = (proposals != 0).any(-1)[:, None]  # an inclusive box of one pixel at the corner is lost with the padding
        keep = (scores > heads.score_thresh) & self.rules.large(boxes, _SMALLEST_BOX) & real
        scores = torch.where(keep, scores, -1.0)
        limit = min(heads.detections_per_img, scores.shape[1] * scores.shape[2])
        found = [
            best_of_classes(self.rules, image_boxes, image_scores, heads.nms_thresh, limit)
            for image_boxes, image_scores in zip(boxes.unbind(), scores.unbind(), strict=True)
        ]
        return Found(*(torch.stack(column) for column in zip(*found, strict=True)))
