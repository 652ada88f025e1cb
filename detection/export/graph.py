"""A detector as a graph of fixed shapes: from an image of any size to padded detections in its own pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from vovnet.detection.export.boxes import BoxRules, Found
from vovnet.detection.export.one_stage import OneStage
from vovnet.detection.export.pasting import paste_masks
from vovnet.detection.export.resizing import LegacyResizing, TorchvisionResizing
from vovnet.detection.export.two_stage import TwoStage
from vovnet.detection.legacy.transform import LegacyTransform

if TYPE_CHECKING:
    from collections.abc import Sequence

Masks = Literal["box", "image"]


class ExportableDetector(nn.Module):
    """A detector with its pre- and postprocessing, whose results have fixed shapes.

    It finds what the torchvision detector finds. Proposals and detections are padded to the detector's limits, so no
    shape depends on data, and ``torch.export`` takes it.

    Args:
        detector: a detector of :func:`vovnet.detection.build_detector`, in evaluation mode. Its modules are
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
        self.backbone = parts.backbone
        dynamic = size is None
        self.keypoints = False
        self.stages: OneStage | TwoStage
        if isinstance(detector, GeneralizedRCNN):
            self.keypoints = bool(parts.roi_heads.has_keypoint())
            self.stages = TwoStage(
                parts, self.rules, masks=masks is not None, keypoints=self.keypoints, dynamic=dynamic
            )
        else:
            self.stages = OneStage(parts, self.rules, dynamic=dynamic)
        self.masks, self.batched = masks, batched
        self.dtype = torch.float32

    def set_precision(self, dtype: torch.dtype) -> None:
        """Make convolutions and linear layers multiply numbers of a dtype; coordinates and scores stay float32."""
        self.dtype = dtype
        self.backbone.to(dtype)
        self.stages.set_precision(dtype)

    @property
    def output_names(self) -> list[str]:
        """The names of the outputs, in order."""
        others = [name for name in ("masks", "keypoints") if getattr(self, name)]
        return ["boxes", "scores", "labels", *others, "count"]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Detect objects.

        Args:
            image: (C, H, W), or (N, C, H, W) if ``batched``; RGB, uint8 in 0..255 or float in 0..1.

        Returns:
            ``boxes`` (K, 4) XYXY in the image's pixels; ``scores`` (K,); ``labels`` (K,) from 1; ``masks``, (K, M, M)
            probabilities or (K, H, W) uint8; ``keypoints`` (K, P, 3), x and y in the image's pixels and a score from 0
            to 1; ``count`` (): the number of detections. Rows behind ``count`` are 0.
        """
        prepared = self.resizing(image if self.batched else image[None])
        features: dict[str, Tensor] = self.backbone(prepared.images.to(self.dtype))
        found = self.stages(prepared, features)
        ratios = prepared.original / prepared.size
        scale = torch.stack((ratios[1], ratios[0]))
        resized = found.boxes * scale.repeat(2)
        outputs = [resized, found.scores, found.labels]
        if self.masks:
            outputs.append(self._masks(features, found, resized, image.shape[-2:]))
        if self.keypoints:
            outputs.append(self._keypoints(features, found, scale))
        outputs.append((found.labels > 0).sum(1))
        return tuple(outputs) if self.batched else tuple(output[0] for output in outputs)

    def _keypoints(self, features: dict[str, Tensor], found: Found, scale: Tensor) -> Tensor:
        """Return keypoints of detections, (N, K, P, 3)."""
        assert isinstance(self.stages, TwoStage)
        points = self.stages.keypoints(features, found)
        points = torch.cat((points[..., :2] * scale, points[..., 2:].sigmoid()), dim=-1)
        return torch.where((found.labels > 0)[:, :, None, None], points, 0.0)

    def _masks(self, features: dict[str, Tensor], found: Found, resized: Tensor, image_size: Sequence[Any]) -> Tensor:
        """Return masks of detections, (N, K, M, M) probabilities or (N, K, H, W) uint8."""
        assert isinstance(self.stages, TwoStage)
        masks = self.stages.mask_probabilities(features, found)
        real = (found.labels.reshape(-1) > 0)[:, None, None]
        if self.masks == "image":
            pasted = paste_masks(masks, resized.reshape(-1, 4), *image_size)
            masks = torch.where(real, pasted, torch.zeros_like(pasted))
        else:
            masks = torch.where(real, masks, 0.0)
        return masks.reshape(*found.labels.shape, *masks.shape[1:])
