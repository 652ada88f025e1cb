"""Fused parts of torchvision's detectors, and the types of the feature maps between them.

:mod:`vovnet.fusion.fuser` imports this module only for models with such parts; the import registers the builders.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.ssd import SSD

from vovnet.fusion import one_stage
from vovnet.fusion.pyramid import FusedPyramid, to_float32
from vovnet.fusion.two_stage import FusedRoIAlign, FusedRpnHead


def cast_backbone_outputs(fused: nn.Module) -> None:
    """Let the backbones of torchvision's detectors return float32: anchors, and so boxes, have the maps' type.

    Where all that reads the pyramid is fused and takes bfloat16, the maps stay bfloat16, and only the anchor generator
    sees float32.
    """
    for module in fused.modules():
        if isinstance(module, GeneralizedRCNN | RetinaNet | FCOS) and _takes_bfloat16(module):
            cast("FusedPyramid", module.backbone.fpn).keeps_bfloat16 = True
            anchors = module.rpn.anchor_generator if isinstance(module, GeneralizedRCNN) else module.anchor_generator
            cast(nn.Module, anchors).register_forward_pre_hook(_float32_sizes)
        elif isinstance(module, GeneralizedRCNN | RetinaNet | FCOS | SSD):
            module.backbone.register_forward_hook(_cast_outputs)


def _takes_bfloat16(detector: GeneralizedRCNN | RetinaNet | FCOS) -> bool:
    has_pyramid = type(getattr(detector.backbone, "fpn", None)) is FusedPyramid
    if not isinstance(detector, GeneralizedRCNN):
        return has_pyramid and one_stage.takes_bfloat16(detector.head)
    heads = detector.roi_heads
    pools = [getattr(heads, f"{name}_roi_pool", None) for name in ("box", "mask", "keypoint")]
    known = has_pyramid and isinstance(detector.rpn.head, FusedRpnHead)
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
