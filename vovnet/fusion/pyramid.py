"""torchvision's feature pyramid, fused, and what the fused parts of its detectors share."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelP6P7

from vovnet.fusion.folding import NotFusable, Settings, fold, fuse_conv_norm_activation, replaces
from vovnet.fusion.layers import FusedConv
from vovnet.modules import has_hooks_or_patched_forward


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


def to_float32(x: Tensor) -> Tensor:
    """Return bfloat16 tensors as float32, and others unchanged."""
    return x.float() if x.dtype == torch.bfloat16 else x


@replaces(FeaturePyramidNetwork)
def fuse_pyramid(fpn: FeaturePyramidNetwork, settings: Settings) -> FusedPyramid:
    """torchvision's feature pyramid."""
    inner = fold_all(list(fpn.inner_blocks), settings)
    layers = fold_all(list(fpn.layer_blocks), settings)
    extra, parts = fpn.extra_blocks, dict[int, nn.Module]()
    if type(extra) is LastLevelP6P7:
        parts = {id(conv): fold(conv, None, None, settings) for conv in (extra.p6, extra.p7)}
    return FusedPyramid(inner, layers, copy.deepcopy(extra, parts))


def fold_all(layers: Sequence[nn.Module], settings: Settings) -> list[FusedConv]:
    """Fold layers that must all be torchvision's ``Conv2dNormActivation``."""
    if any(map(has_hooks_or_patched_forward, layers)):
        raise NotFusable
    convs = [layer for layer in layers if type(layer) is Conv2dNormActivation]
    if len(convs) < len(layers):
        raise NotFusable
    return [fuse_conv_norm_activation(conv, settings) for conv in convs]
