"""Fused parts of torchvision's detectors with proposals, and their builders."""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from vovnet.fusion.base import supported
from vovnet.fusion.folding import ONE_BY_ONE, NotFusable, Settings, concat_layers, fold, replaces, upcast_weights
from vovnet.fusion.layers import FusedConv
from vovnet.fusion.linear import FusedLinear
from vovnet.fusion.pyramid import fold_all, to_float32
from vovnet.modules import Geometry, has_hooks_or_patched_forward

_THREE_BY_THREE = Geometry([1, 1], [1, 1], [1, 1], 1)

PIECE = 1 << 20
"""Number of elements of a bfloat16 map that are converted to float32 at once, as many as caches hold."""


class FusedRpnHead(nn.Module):
    """torchvision's ``RPNHead`` with one convolution for both predictors.

    Takes feature maps (N, C, Hₗ, Wₗ) of all levels. Returns scores (N, A, Hₗ, Wₗ) and offsets (N, 4·A, Hₗ, Wₗ),
    float32.
    """

    def __init__(self, conv: nn.Module, predictor: nn.Module, anchors: int) -> None:
        super().__init__()
        self.conv = conv
        self.predictor = predictor
        self.anchors = anchors

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        both = [self._predict(self.conv(feature)) for feature in x]
        return [found[:, : self.anchors] for found in both], [found[:, self.anchors :] for found in both]

    def _predict(self, x: Tensor) -> Tensor:
        """Predict from (N, C, H, W), a few lines at a time if they must be converted.

        A large map in float32 would be new memory from the system, and that costs more than the products.
        """
        if x.dtype != torch.bfloat16:
            found: Tensor = self.predictor(x)
            return found
        lines = max(1, PIECE // max(1, x.shape[1] * x.shape[3]))
        images = [
            torch.cat([self.predictor(piece.float()) for piece in image.split(lines, dim=2)], dim=2)
            for image in x.split(1)
        ]
        return images[0] if len(images) == 1 else torch.cat(images)


class FusedRoIAlign(MultiScaleRoIAlign):
    """torchvision's RoIAlign, computed on all levels in one call. Scales and levels are found as in torchvision."""

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Pool features of the boxes.

        Args:
            x: feature maps (N, C, Hₗ, Wₗ) by name.
            boxes: for each image, (Kᵢ, 4) as x1, y1, x2, y2 in pixels.
            image_shapes: for each image, (height, width) in pixels.

        Returns:
            (K, C, height, width) for the K boxes of all images, in the type of the maps.
        """
        if self.scales is None or self.map_levels is None:
            self._pool_by_torchvision(x, [part[:0] for part in boxes], image_shapes)  # sets both, and pools nothing
        maps = [feature for name, feature in x.items() if name in self.featmap_names]
        rois = torch.cat([F.pad(part, (1, 0), value=i) for i, part in enumerate(boxes)])
        one_type = {feature.dtype for feature in maps} in ({torch.float32}, {torch.bfloat16})
        known = one_type and rois.dtype == torch.float32 and not rois.requires_grad
        if not known or not supported(*maps, rois):
            return self._pool_by_torchvision(x, boxes, image_shapes)
        find_levels = cast(LevelMapper, self.map_levels)
        levels = rois.new_zeros(len(rois), dtype=torch.int64) if len(maps) == 1 else find_levels(boxes)
        if len(rois) and not 0 <= int(levels.min()) <= int(levels.max()) < len(maps):
            # An invalid box such as (5, 0, 3, 4) has no level.
            return self._pool_by_torchvision(x, boxes, image_shapes)
        maps = [feature.contiguous(memory_format=torch.channels_last) for feature in maps]
        bins = (self.scales, self.output_size, self.sampling_ratio)
        out: Tensor = torch.ops.vovnet.roi_align_levels(maps, rois, levels, *bins, False)
        return out

    def _pool_by_torchvision(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        if boxes[0].dtype == torch.float32:  # torchvision pools maps of the boxes' type
            x = {name: to_float32(feature) for name, feature in x.items()}
        pooled: Tensor = super().forward(x, boxes, image_shapes)
        return pooled


class FusedBoxHead(nn.Module):
    """torchvision's ``TwoMLPHead``: pooled features (K, C, h, w) → (K, width)."""

    def __init__(self, fc6: FusedLinear, fc7: FusedLinear) -> None:
        super().__init__()
        self.fc6 = fc6
        self.fc7 = fc7

    def forward(self, x: Tensor) -> Tensor:
        return self.fc7(self.fc6(x))


class FusedBoxPredictor(nn.Module):
    """torchvision's ``FastRCNNPredictor`` with one linear layer for both predictors.

    Takes (K, C). Returns scores (K, classes) and offsets (K, 4·classes), float32.
    """

    def __init__(self, predictor: nn.Module, classes: int) -> None:
        super().__init__()
        self.predictor = predictor
        self.classes = classes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        both = self.predictor(to_float32(x).flatten(1))
        return both[:, : self.classes], both[:, self.classes :]


class FusedMaskPredictor(nn.Module):
    """torchvision's ``MaskRCNNPredictor``; the transposed 2×2 convolution is a 1×1 convolution and a pixel shuffle.

    (K, C, h, w) → (K, classes, 2h, 2w), float32.
    """

    def __init__(self, conv5_mask: FusedConv, mask_fcn_logits: FusedConv) -> None:
        super().__init__()
        self.conv5_mask = conv5_mask
        self.mask_fcn_logits = mask_fcn_logits

    def forward(self, x: Tensor) -> Tensor:
        return self.mask_fcn_logits(F.pixel_shuffle(to_float32(self.conv5_mask(x)), 2))


class FusedKeypointPredictor(nn.Module):
    """torchvision's ``KeypointRCNNPredictor``; the transposed 4×4 convolution is a 3×3 convolution and a pixel shuffle.

    (K, C, h, w) → (K, keypoints, 4h, 4w), float32: heatmaps, enlarged twice more by interpolation.
    """

    def __init__(self, kps_score_lowres: FusedConv, up_scale: float) -> None:
        super().__init__()
        self.kps_score_lowres = kps_score_lowres
        self.up_scale = up_scale

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.kps_score_lowres(to_float32(x)), 2)
        return F.interpolate(
            x, scale_factor=float(self.up_scale), mode="bilinear", align_corners=False, recompute_scale_factor=False
        )


@replaces(RPNHead)
def fuse_rpn_head(head: RPNHead, settings: Settings) -> FusedRpnHead:
    """torchvision's head of the region proposal network; its predictors compute in float32."""
    predictor = concat_layers([head.cls_logits, head.bbox_pred], settings._replace(precision="fp32"))
    if has_hooks_or_patched_forward(head.conv):
        raise NotFusable
    convs = fold_all(list(head.conv), settings)
    return FusedRpnHead(nn.Sequential(*convs), predictor, head.cls_logits.out_channels)


@replaces(TwoMLPHead)
def fuse_box_head(head: TwoMLPHead, settings: Settings) -> FusedBoxHead:
    """torchvision's two linear layers with ReLUs."""
    layers = (head.fc6, head.fc7)
    linear = all(type(layer) is nn.Linear and layer.bias is not None for layer in layers)
    if not linear or any(map(has_hooks_or_patched_forward, layers)):
        raise NotFusable("its layers are not plain linear ones with biases")
    return FusedBoxHead(*(_fuse_linear(layer, settings) for layer in layers))


@replaces(FastRCNNPredictor)
def fuse_box_predictor(predictor: FastRCNNPredictor, settings: Settings) -> FusedBoxPredictor:
    """torchvision's predictors of scores and boxes; they compute in float32."""
    linear = concat_layers([predictor.cls_score, predictor.bbox_pred], settings._replace(precision="fp32"))
    return FusedBoxPredictor(linear, predictor.cls_score.out_features)


@replaces(MaskRCNNPredictor)
def fuse_mask_predictor(predictor: MaskRCNNPredictor, settings: Settings) -> FusedMaskPredictor:
    """torchvision's transposed 2×2 convolution with stride 2, and its predictor, which computes in float32."""
    up, relu, last = predictor
    if not isinstance(up, nn.ConvTranspose2d) or not _doubles_size(up, kernel=2, padding=0) or up.bias is None:
        raise NotFusable("its transposed convolution is not a plain one of 2×2 with stride 2 and a bias")
    logits = fold(last, None, None, settings._replace(precision="fp32"))
    if has_hooks_or_patched_forward(up) or has_hooks_or_patched_forward(relu):
        raise NotFusable("hooks or a forward of its own")
    # (C, out, 2, 2) -> (4 · out, C, 1, 1): the four pixels of an output channel are neighbouring channels, the order
    # that pixel_shuffle expects.
    weight = up.weight.detach().flatten(1).t().clone()[:, :, None, None]
    parameters = (weight, up.bias.detach().repeat_interleave(4))
    weight, bias = (upcast_weights(parameter, settings.precision) for parameter in parameters)
    return FusedMaskPredictor(FusedConv(weight, bias, ONE_BY_ONE, relu=True, **settings._asdict()), logits)


@replaces(KeypointRCNNPredictor)
def fuse_keypoint_predictor(predictor: KeypointRCNNPredictor, settings: Settings) -> FusedKeypointPredictor:
    """torchvision's transposed 4×4 convolution with stride 2, in float32, and its interpolation."""
    up = predictor.kps_score_lowres
    if not _doubles_size(up, kernel=4, padding=1) or up.bias is None or has_hooks_or_patched_forward(up):
        raise NotFusable("its transposed convolution is not a plain one of 4×4 with stride 2, padding 1 and a bias")
    # Row 2i + a of the output takes row a + 1 + 2d of the kernel where the input is at i - d, for d = 1, 0, -1. One of
    # the three is outside the kernel, which has rows 0 to 3.
    padded = F.pad(up.weight.detach(), (1, 1, 1, 1))  # (C, out, 6, 6)
    pixels = [padded[:, :, a::2, b::2].flip(2, 3) for a in range(2) for b in range(2)]  # (C, out, 3, 3) each
    weight = torch.stack(pixels, dim=2).flatten(1, 2).transpose(0, 1)  # (4 · out, C, 3, 3), as pixel_shuffle expects
    bias, how = up.bias.detach().repeat_interleave(4), settings._replace(precision="fp32")
    conv = FusedConv(weight, bias, _THREE_BY_THREE, relu=False, **how._asdict())
    return FusedKeypointPredictor(conv, predictor.up_scale)


@replaces(MultiScaleRoIAlign)
def fuse_roi_align(pool: MultiScaleRoIAlign, settings: Settings) -> nn.Module:
    """torchvision's RoIAlign, with the scales and levels that it has found already."""
    fused = copy.deepcopy(pool)
    fused.__class__ = FusedRoIAlign
    return fused


def _doubles_size(up: nn.ConvTranspose2d, *, kernel: int, padding: int) -> bool:
    """True if ``up`` is a plain transposed convolution of this kernel and padding with stride 2."""
    usual = type(up) is nn.ConvTranspose2d and (up.kernel_size, up.stride, up.groups) == ((kernel,) * 2, (2, 2), 1)
    return usual and (up.padding, up.output_padding, up.dilation) == ((padding,) * 2, (0, 0), (1, 1))


def _fuse_linear(layer: nn.Linear, settings: Settings) -> FusedLinear:
    weight, bias = (upcast_weights(p.detach().clone(), settings.precision) for p in (layer.weight, layer.bias))
    return FusedLinear(weight, bias, relu=True, **settings._asdict())
