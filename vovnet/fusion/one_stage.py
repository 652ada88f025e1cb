"""Fused parts of torchvision's detectors without proposals: ``RetinaNet``, ``FCOS`` and ``SSD``."""

from __future__ import annotations

from torch import nn
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.models.detection.retinanet import RetinaNetClassificationHead, RetinaNetHead, RetinaNetRegressionHead
from torchvision.models.detection.ssd import SSDClassificationHead, SSDRegressionHead

from vovnet.fusion.layers import FusedConv
from vovnet.fusion.plain import PREDICTORS
from vovnet.modules import has_hooks_or_patched_forward

PREDICTORS.update(
    {
        RetinaNetClassificationHead: ("cls_logits",),
        RetinaNetRegressionHead: ("bbox_reg",),
        FCOSClassificationHead: ("cls_logits",),
        FCOSRegressionHead: ("bbox_reg", "bbox_ctrness"),
        SSDClassificationHead: ("module_list",),
        SSDRegressionHead: ("module_list",),
    }
)


def takes_bfloat16(head: nn.Module) -> bool:
    """True if a head of ``RetinaNet`` or ``FCOS`` computes the same for bfloat16 maps as for float32 ones."""
    if type(head) not in (RetinaNetHead, FCOSHead):
        return False
    for part in head.modules():
        own = next(part.parameters(recurse=False), None) is not None
        if isinstance(part, nn.Conv2d) or (not own and has_hooks_or_patched_forward(part)):
            return False
    towers = [getattr(branch, "conv", None) for branch in head.children()]
    return all(isinstance(tower, nn.Sequential) and isinstance(tower[0], FusedConv) for tower in towers)
