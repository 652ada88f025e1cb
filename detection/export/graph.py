"""A detector as a graph of fixed shapes: from an image of any size to padded detections in its own pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from vovnet.detection.export.pasting import paste_masks
from vovnet.detection.export.pooling import PyramidPool
from vovnet.detection.export.resizing import LegacyResizing, Prepared, TorchvisionResizing
from vovnet.detection.legacy.transform import LegacyTransform
from vovnet.export.nms import padded_nms

if TYPE_CHECKING:
    from collections.abc import Sequence

Masks = Literal["box", "image"]

_SMALLEST_BOX = 1e-2  # torchvision's roi_heads.py drops detections with a smaller side


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


class ExportableDetector(nn.Module):
    """A detector with its pre- and postprocessing, whose results have fixed shapes.

    It finds what the torchvision detector finds. Proposals and detections are padded to the detector's limits, so no
    shape depends on data, and ``torch.export`` takes it.

    Args:
        detector: a Faster or Mask R-CNN of :func:`vovnet.detection.build_detector`, in evaluation mode. Its modules are
            shared, not copied.
        masks: ``box`` returns masks on a grid over each box, ``image`` pastes them; None returns none.
        batched: images are (N, C, H, W) and every output has a leading N.
        size: height and width of all images; None for images of all sizes.
    """

    def __init__(
        self, detector: nn.Module, *, masks: Masks | None, batched: bool = False, size: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        parts: Any = detector
        legacy = isinstance(parts.transform, LegacyTransform)
        self.resizing = LegacyResizing(parts.transform, size) if legacy else TorchvisionResizing(parts.transform)
        self.rules = BoxRules(inclusive=legacy)
        self.backbone, self.rpn, self.heads = parts.backbone, parts.rpn, parts.roi_heads
        self.pooled_levels = [str(name) for name in self.heads.box_roi_pool.featmap_names]
        strides = parts.backbone.strides[: len(self.pooled_levels)]
        self.box_pool = PyramidPool(self.heads.box_roi_pool, strides)
        self.mask_pool = PyramidPool(self.heads.mask_roi_pool, strides) if masks else None
        self.masks, self.batched, self.dynamic = masks, batched, size is None
        self.dtype = torch.float32

    def set_precision(self, dtype: torch.dtype) -> None:
        """Make convolutions and linear layers multiply numbers of a dtype; coordinates and scores stay float32."""
        self.dtype = dtype
        for part in (self.backbone, self.rpn.head, self.heads):
            part.to(dtype)

    @property
    def output_names(self) -> list[str]:
        """The names of the outputs, in order."""
        return ["boxes", "scores", "labels", *(["masks"] if self.masks else []), "count"]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Detect objects.

        Args:
            image: (C, H, W), or (N, C, H, W) if ``batched``; RGB, uint8 in 0..255 or float in 0..1.

        Returns:
            ``boxes`` (K, 4) XYXY in the image's pixels; ``scores`` (K,); ``labels`` (K,) from 1; ``masks``, (K, M, M)
            probabilities or (K, H, W) uint8; ``count`` (): the number of detections. Rows behind ``count`` are 0.
        """
        prepared = self.resizing(image if self.batched else image[None])
        features: dict[str, Tensor] = self.backbone(prepared.images.to(self.dtype))
        proposals = self._proposals(prepared, list(features.values()))
        levels = [features[name].float() for name in self.pooled_levels]
        boxes, scores, labels = self._detections(prepared, levels, proposals)
        ratios = prepared.original / prepared.size
        resized = boxes * torch.stack((ratios[1], ratios[0], ratios[1], ratios[0]))
        outputs = [resized, scores, labels]
        if self.mask_pool is not None:
            outputs.append(self._masks(levels, boxes, labels, resized, image.shape[-2:]))
        outputs.append((labels > 0).sum(1))
        return tuple(outputs) if self.batched else tuple(output[0] for output in outputs)

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
            found.append(_rows(image_boxes.reshape(-1, 4), kept))
        return torch.stack(found)

    def _detections(
        self, prepared: Prepared, levels: Sequence[Tensor], proposals: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (N, K, 4) in the network's pixels, scores (N, K) and labels (N, K); see roi_heads.py."""
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
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for image_boxes, image_scores in zip(boxes.unbind(), scores.unbind(), strict=True):
            kept = self.rules.suppress(image_boxes, image_scores, heads.nms_thresh, limit)
            labels = torch.where(kept >= 0, kept.clamp(min=0) // image_scores.shape[1] + 1, 0)
            found.append(
                (_rows(image_boxes.reshape(-1, 4), kept), _rows(image_scores.reshape(-1, 1), kept)[:, 0], labels)
            )
        return tuple(torch.stack(column) for column in zip(*found, strict=True))  # type: ignore[return-value]

    def _masks(
        self, levels: Sequence[Tensor], boxes: Tensor, labels: Tensor, resized: Tensor, image_size: Sequence[Any]
    ) -> Tensor:
        """Return masks of detections, (N, K, M, M) probabilities or (N, K, H, W) uint8."""
        assert self.mask_pool is not None
        pooled = self.mask_pool(levels, boxes).to(self.dtype)
        logits: Tensor = self.heads.mask_predictor(self.heads.mask_head(pooled)).float()
        cells = logits.shape[-1]
        flat = labels.reshape(-1, 1, 1, 1).expand(-1, 1, cells, cells)
        masks = logits.gather(1, flat)[:, 0].sigmoid()
        real = (labels.reshape(-1) > 0)[:, None, None]
        if self.masks == "image":
            pasted = paste_masks(masks, resized.reshape(-1, 4), *image_size)
            masks = torch.where(real, pasted, torch.zeros_like(pasted))
        else:
            masks = torch.where(real, masks, 0.0)
        return masks.reshape(*labels.shape, *masks.shape[1:])


def _rows(values: Tensor, indices: Tensor) -> Tensor:
    """Return the rows of ``values`` at ``indices``, and rows of 0 for -1."""
    return torch.where((indices >= 0)[:, None], values[indices.clamp(min=0)], 0.0)
