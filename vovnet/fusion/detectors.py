"""The parts of torchvision's detectors that :func:`vovnet.fuse` puts in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign

from vovnet.fusion.base import kernels_serve
from vovnet.fusion.layers import FusedConv, FusedLinear


class FusedPyramid(nn.Module):
    """torchvision's ``FeaturePyramidNetwork``, whose sums are made by the convolutions that precede them.

    ``{name: (N, Cₗ, Hₗ, Wₗ)}``, from the finest → ``{name: (N, out channels, Hₗ, Wₗ)}`` in the image's precision
    or, with bfloat16 products, in float32: the heads' arithmetic is float32.
    """

    def __init__(self, inner: list[FusedConv], layers: list[FusedConv], extra: nn.Module | None) -> None:
        super().__init__()
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
        return OrderedDict((name, widened(result)) for name, result in zip(names, results, strict=True))


class FusedRpnHead(nn.Module):
    """torchvision's ``RPNHead``, whose two predictors are one convolution.

    Maps (N, C, Hₗ, Wₗ) of all levels → scores (N, A, Hₗ, Wₗ) and offsets (N, 4·A, Hₗ, Wₗ), float32.
    """

    def __init__(self, conv: nn.Module, predictor: FusedConv, anchors: int) -> None:
        super().__init__()
        self.conv = conv
        self.predictor = predictor
        self.anchors = anchors

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        both = [self.predictor(widened(self.conv(feature))) for feature in x]
        return [found[:, : self.anchors] for found in both], [found[:, self.anchors :] for found in both]


class FusedRoIAlign(MultiScaleRoIAlign):
    """torchvision's pooling from all levels at once; scales and levels are found as torchvision finds them."""

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Maps, boxes (Kᵢ, 4) of each image in its pixels, sizes of the images → (K, C, height, width)."""
        me: Any = self
        if me.scales is None or me.map_levels is None:
            super().forward(x, [part[:0] for part in boxes], image_shapes)  # finds them, and pools nothing
        maps = [feature for name, feature in x.items() if name in me.featmap_names]
        rois = torch.cat([F.pad(part, (1, 0), value=i) for i, part in enumerate(boxes)])
        same = all(feature.dtype == torch.float32 for feature in (*maps, rois))
        if not same or rois.requires_grad or not kernels_serve(*maps, rois):
            return super().forward(x, boxes, image_shapes)
        levels = rois.new_zeros(len(rois), dtype=torch.int64) if len(maps) == 1 else me.map_levels(boxes)
        if len(rois) and not 0 <= int(levels.min()) <= int(levels.max()) < len(maps):
            return super().forward(x, boxes, image_shapes)  # of a box that is none, as (5, 0, 3, 4), which has no level
        out: Tensor = torch.ops.vovnet.roi_align_levels(
            [feature.contiguous(memory_format=torch.channels_last) for feature in maps],
            rois,
            levels,
            me.scales,
            me.output_size,
            me.sampling_ratio,
            False,
        )
        return out


class FusedBoxHead(nn.Module):
    """torchvision's ``TwoMLPHead``: pooled maps (K, C, h, w) → (K, width)."""

    def __init__(self, fc6: FusedLinear, fc7: FusedLinear) -> None:
        super().__init__()
        self.fc6 = fc6
        self.fc7 = fc7

    def forward(self, x: Tensor) -> Tensor:
        return self.fc7(self.fc6(x))


class FusedBoxPredictor(nn.Module):
    """torchvision's ``FastRCNNPredictor`` in one product.

    (K, C) → scores (K, classes) and offsets (K, 4·classes), float32.
    """

    def __init__(self, predictor: FusedLinear, classes: int) -> None:
        super().__init__()
        self.predictor = predictor
        self.classes = classes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        both = self.predictor(widened(x).flatten(1))
        return both[:, : self.classes], both[:, self.classes :]


class FusedMaskPredictor(nn.Module):
    """torchvision's ``MaskRCNNPredictor``: its transposed 2×2 convolution is a 1×1 convolution whose channels unfold.

    (K, C, h, w) → (K, classes, 2h, 2w), float32.
    """

    def __init__(self, conv5_mask: FusedConv, mask_fcn_logits: FusedConv) -> None:
        super().__init__()
        self.conv5_mask = conv5_mask
        self.mask_fcn_logits = mask_fcn_logits

    def forward(self, x: Tensor) -> Tensor:
        return self.mask_fcn_logits(F.pixel_shuffle(widened(self.conv5_mask(x)), 2))


def widened(x: Tensor) -> Tensor:
    """bfloat16 becomes float32; everything else stays."""
    return x.float() if x.dtype == torch.bfloat16 else x
