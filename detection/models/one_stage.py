"""Detectors that classify every place of the pyramid: torchvision's ``RetinaNet`` and ``FCOS``."""

from __future__ import annotations

from typing import Any

from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.models.detection.retinanet import RetinaNetHead

from vovnet.adapters import FpnBackbone
from vovnet.adapters.norms import norm_layer
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.models.shared import anchor_generator, image_arguments, outputs


def retinanet(model: ModelRecipe, backbone: FpnBackbone) -> RetinaNet:
    """Return torchvision's ``RetinaNet`` around a backbone (arXiv:1708.02002)."""
    sizes = model.anchor_sizes or octave_sizes(backbone)
    anchors = anchor_generator(sizes, model.aspect_ratios)
    per_place = anchors.num_anchors_per_location()[0]
    head = RetinaNetHead(backbone.out_channels, per_place, outputs(model), norm_layer(model.head_norm))
    head.regression_head._loss_type = model.regression_loss  # as torchvision's retinanet_resnet50_fpn_v2 does
    return RetinaNet(backbone, outputs(model), anchor_generator=anchors, head=head, **_arguments(model, backbone))


def fcos(model: ModelRecipe, backbone: FpnBackbone) -> FCOS:
    """Return torchvision's ``FCOS`` around a backbone (arXiv:1904.01355)."""
    anchors = anchor_generator(model.anchor_sizes or [[stride] for stride in backbone.strides], [1.0])
    head = FCOSHead(backbone.out_channels, 1, outputs(model), num_convs=0)
    norm: Any = norm_layer(model.head_norm or "gn")
    convs = _CONVS
    head.classification_head = FCOSClassificationHead(backbone.out_channels, 1, outputs(model), convs, norm_layer=norm)
    head.regression_head = FCOSRegressionHead(backbone.out_channels, 1, convs, norm)
    return FCOS(backbone, outputs(model), anchor_generator=anchors, head=head, **_arguments(model, backbone))


_CONVS = 4
"""Convolutions of a branch of the head; torchvision's default."""


def octave_sizes(backbone: FpnBackbone) -> list[list[int]]:
    """Return the anchor sizes of the paper in pixels: three in an octave at each level, from four strides on.

    They are rounded as torchvision rounds them (retinanet.py, ``_default_anchorgen``).
    """
    return [[int(4 * stride * 2 ** (third / 3)) for third in range(3)] for stride in backbone.strides]


def _arguments(model: ModelRecipe, backbone: FpnBackbone) -> dict[str, Any]:
    return {
        **image_arguments(model, backbone),
        "score_thresh": model.box_score_thresh,
        "nms_thresh": model.box_nms_thresh,
        "detections_per_img": model.box_detections_per_img,
        "topk_candidates": model.topk_candidates,
    }
