"""The detections of RetinaNet and FCOS, with fixed shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from vovnet.detection.export.boxes import BoxRules, Found, best_of_classes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vovnet.detection.export.resizing import Prepared


class OneStage(nn.Module):
    """Classifies every place of the pyramid; see ``postprocess_detections`` in torchvision's retinanet.py and fcos.py.

    Class 0, the background, is no candidate. torchvision returns its detections, which have no meaning.

    Args:
        detector: a RetinaNet or FCOS. Its modules are shared, not copied.
        rules: its box arithmetic.
        dynamic: images have all sizes.
    """

    def __init__(self, detector: Any, rules: BoxRules, *, dynamic: bool) -> None:
        super().__init__()
        self.rules, self.dynamic = rules, dynamic
        self.head, self.anchor_generator, self.box_coder = detector.head, detector.anchor_generator, detector.box_coder
        self.decode = getattr(self.box_coder, "decode_single", None) or self.box_coder.decode
        self.score_thresh, self.nms_thresh = float(detector.score_thresh), float(detector.nms_thresh)
        self.candidates, self.detections = int(detector.topk_candidates), int(detector.detections_per_img)
        self.dtype = torch.float32

    def set_precision(self, dtype: torch.dtype) -> None:
        """Make convolutions multiply numbers of a dtype."""
        self.dtype = dtype
        self.head.to(dtype)

    def forward(self, prepared: Prepared, features: Mapping[str, Tensor]) -> Found:
        """Detect objects in the pyramid's levels."""
        maps = list(features.values())
        one_image = ImageList(prepared.images, [(0, 0)])  # generators only count the sizes
        anchors = self.anchor_generator(one_image, [map_.float() for map_ in maps])[0]
        columns: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        start = 0
        for map_ in maps:
            outputs = {name: value.float() for name, value in self.head([map_]).items()}
            length = outputs["bbox_regression"].shape[1]
            level = self._best(outputs, anchors[start : start + length])
            for column, value in zip(columns, level, strict=True):
                column.append(value)
            start = start + length
        boxes, scores, labels = (torch.cat(column, 1) for column in columns)
        return self._suppressed(self.rules.clip(boxes, prepared.size), scores, labels)

    def _best(self, outputs: Mapping[str, Tensor], anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (N, T, 4), scores (N, T) and labels (N, T) of a level's T best candidates, padded with -1."""
        scores = outputs["cls_logits"].sigmoid()
        if "bbox_ctrness" in outputs:
            scores = (scores * outputs["bbox_ctrness"].sigmoid()).sqrt()
        count, _, classes = scores.shape
        scores = scores[:, :, 1:].reshape(count, -1)
        scores = torch.where(scores > self.score_thresh, scores, -1.0)
        if self.dynamic or scores.shape[1] < self.candidates:
            scores = nn.functional.pad(scores, (0, self.candidates), value=-1.0)
        best, places = scores.topk(self.candidates, dim=1)
        places = torch.where(best >= 0, places, 0)
        rows, labels = places // (classes - 1), places % (classes - 1) + 1
        offsets = outputs["bbox_regression"].gather(1, rows[:, :, None].expand(-1, -1, 4))
        boxes = self.decode(offsets.reshape(-1, 4), anchors[rows.reshape(-1)])
        return boxes.reshape(count, -1, 4), best, labels

    def _suppressed(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Found:
        classes = torch.arange(1, self._classes() + 1)[None, :, None]
        of_classes = torch.where(labels[:, None] == classes, scores[:, None], -1.0)
        found = [
            best_of_classes(self.rules, image_boxes, image_scores, self.nms_thresh, self.detections)
            for image_boxes, image_scores in zip(
                boxes[:, None].expand(-1, of_classes.shape[1], -1, -1).unbind(), of_classes.unbind(), strict=True
            )
        ]
        return Found(*(torch.stack(column) for column in zip(*found, strict=True)))

    def _classes(self) -> int:
        """Return the number of classes without the background."""
        return int(self.head.classification_head.num_classes) - 1
