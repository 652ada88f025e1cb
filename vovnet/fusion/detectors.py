"""Fused parts of torchvision's detectors, and their builders.

:mod:`vovnet.fusion.fuser` imports this module only for models with such parts; the import registers the builders.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.ssd import SSD
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelP6P7
from torchvision.ops.poolers import LevelMapper

from vovnet.fusion.base import supported
from vovnet.fusion.folding import (
    ONE_BY_ONE,
    NotFusable,
    Settings,
    concat_layers,
    fold,
    fuse_conv_norm_activation,
    replaces,
    upcast_weights,
)
from vovnet.fusion.layers import FusedConv, FusedLinear
from vovnet.modules import has_hooks_or_patched_forward

PIECE = 1 << 20
"""Number of elements of a bfloat16 map that are converted to float32 at once, as many as caches hold."""


class FusedPyramid(nn.Module):
    """torchvision's ``FeaturePyramidNetwork``; each lateral convolution adds the coarser level to its output.

    Takes ``{name: (N, Cₗ, Hₗ, Wₗ)}``, the finest level first. Returns ``{name: (N, out channels, Hₗ, Wₗ)}`` in the
    type of the input. If products are bfloat16, the maps are float32, which every head takes, unless
    ``keeps_bfloat16``.
    """

    def __init__(self, inner: list[FusedConv], layers: list[FusedConv], extra: ExtraFPNBlock | None) -> None:
        super().__init__()
        self.keeps_bfloat16 = False
        self.inner_blocks = nn.ModuleList(inner)
        self.layer_blocks = nn.ModuleList(layers)
        self.extra_blocks = extra

    def forward(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names, maps = list(x), list(x.values())
        top = self.inner_blocks[-1](maps[-1])
        results = [self.layer_blocks[-1](top)]
        for i in range(len(maps) - 2, -1, -1):
            top = self.inner_blocks[i](maps[i], top)
            results.insert(0, self.layer_blocks[i](top))
        if self.extra_blocks is not None:
            results, names = self.extra_blocks(results, maps, names)
        if not self.keeps_bfloat16:
            results = [to_float32(result) for result in results]
        return OrderedDict(zip(names, results, strict=True))


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


def to_float32(x: Tensor) -> Tensor:
    """Return bfloat16 tensors as float32, and others unchanged."""
    return x.float() if x.dtype == torch.bfloat16 else x


def cast_backbone_outputs(fused: nn.Module) -> None:
    """Let the backbones of torchvision's detectors return float32: anchors, and so boxes, have the maps' type.

    Where all that reads the pyramid is fused and takes bfloat16, the maps stay bfloat16, and only the anchor generator
    sees float32.
    """
    for module in fused.modules():
        if isinstance(module, GeneralizedRCNN) and _takes_bfloat16(module):
            cast("FusedPyramid", module.backbone.fpn).keeps_bfloat16 = True
            cast(nn.Module, module.rpn.anchor_generator).register_forward_pre_hook(_float32_sizes)
        elif isinstance(module, GeneralizedRCNN | RetinaNet | FCOS | SSD):
            module.backbone.register_forward_hook(_cast_outputs)


def _takes_bfloat16(detector: GeneralizedRCNN) -> bool:
    heads = detector.roi_heads
    pools = [getattr(heads, f"{name}_roi_pool", None) for name in ("box", "mask", "keypoint")]
    known = type(getattr(detector.backbone, "fpn", None)) is FusedPyramid and isinstance(
        detector.rpn.head, FusedRpnHead
    )
    return known and all(pool is None or isinstance(pool, FusedRoIAlign) for pool in pools)


def _float32_sizes(module: nn.Module, inputs: tuple[object, list[Tensor]]) -> tuple[object, list[Tensor]]:
    """Give an anchor generator, which reads only sizes and the type, maps in float32 that take no memory."""
    images, maps = inputs
    return images, [
        x.new_empty((), dtype=torch.float32).expand(x.shape) if x.dtype == torch.bfloat16 else x for x in maps
    ]


def _cast_outputs(
    module: nn.Module, inputs: tuple[object, ...], maps: Tensor | Mapping[str, Tensor]
) -> Tensor | Mapping[str, Tensor]:
    if isinstance(maps, Tensor):
        return to_float32(maps)
    return OrderedDict((name, to_float32(x)) for name, x in maps.items()) if isinstance(maps, Mapping) else maps


@replaces(FeaturePyramidNetwork)
def fuse_pyramid(fpn: FeaturePyramidNetwork, settings: Settings) -> FusedPyramid:
    """torchvision's feature pyramid."""
    inner = _fold_all(list(fpn.inner_blocks), settings)
    layers = _fold_all(list(fpn.layer_blocks), settings)
    extra, parts = fpn.extra_blocks, dict[int, nn.Module]()
    if type(extra) is LastLevelP6P7:
        parts = {id(conv): fold(conv, None, None, settings) for conv in (extra.p6, extra.p7)}
    return FusedPyramid(inner, layers, copy.deepcopy(extra, parts))


@replaces(RPNHead)
def fuse_rpn_head(head: RPNHead, settings: Settings) -> FusedRpnHead:
    """torchvision's head of the region proposal network; its predictors compute in float32."""
    predictor = concat_layers([head.cls_logits, head.bbox_pred], settings._replace(precision="fp32"))
    if has_hooks_or_patched_forward(head.conv):
        raise NotFusable
    convs = _fold_all(list(head.conv), settings)
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
    if not isinstance(up, nn.ConvTranspose2d) or not _doubles_size(up) or up.bias is None:
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


@replaces(MultiScaleRoIAlign)
def fuse_roi_align(pool: MultiScaleRoIAlign, settings: Settings) -> nn.Module:
    """torchvision's RoIAlign, with the scales and levels that it has found already."""
    fused = copy.deepcopy(pool)
    fused.__class__ = FusedRoIAlign
    return fused


def _fold_all(layers: Sequence[nn.Module], settings: Settings) -> list[FusedConv]:
    """Fold layers that must all be torchvision's ``Conv2dNormActivation``."""
    if any(map(has_hooks_or_patched_forward, layers)):
        raise NotFusable
    convs = [layer for layer in layers if type(layer) is Conv2dNormActivation]
    if len(convs) < len(layers):
        raise NotFusable
    return [fuse_conv_norm_activation(conv, settings) for conv in convs]


def _doubles_size(up: nn.ConvTranspose2d) -> bool:
    """True if each input pixel becomes 2×2 output pixels that no other pixel reaches."""
    usual = type(up) is nn.ConvTranspose2d and (up.kernel_size, up.stride, up.groups) == ((2, 2), (2, 2), 1)
    return usual and (up.padding, up.output_padding, up.dilation) == ((0, 0), (0, 0), (1, 1))


def _fuse_linear(layer: nn.Linear, settings: Settings) -> FusedLinear:
    weight, bias = (upcast_weights(p.detach().clone(), settings.precision) for p in (layer.weight, layer.bias))
    return FusedLinear(weight, bias, relu=True, **settings._asdict())
