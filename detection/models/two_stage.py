"""Detectors that classify proposals: torchvision's ``FasterRCNN``, ``MaskRCNN`` and ``KeypointRCNN``."""

from __future__ import annotations

from typing import Any, cast

from torch import nn
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from vovnet.adapters import FpnBackbone
from vovnet.adapters.norms import norm_layer
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.models.shared import anchor_generator, image_arguments, outputs

BOX_POOL, MASK_POOL, SAMPLING_RATIO = 7, 14, 2
"""Side of a pooled box and of a pooled mask in cells, and of a cell in samples; torchvision's defaults."""


def faster_rcnn(model: ModelRecipe, backbone: FpnBackbone) -> FasterRCNN:
    """Return torchvision's ``FasterRCNN`` around a backbone (arXiv:1506.01497)."""
    return FasterRCNN(backbone, **_box_arguments(model, backbone))


def mask_rcnn(model: ModelRecipe, backbone: FpnBackbone) -> MaskRCNN:
    """Return torchvision's ``MaskRCNN`` around a backbone (arXiv:1703.06870)."""
    boxes = _box_arguments(model, backbone)
    return MaskRCNN(backbone, **boxes, **_mask_parts(model, backbone))


def keypoint_rcnn(model: ModelRecipe, backbone: FpnBackbone) -> KeypointRCNN:
    """Return torchvision's ``KeypointRCNN`` around a backbone (arXiv:1703.06870, section 5)."""
    boxes = _box_arguments(model, backbone)
    return KeypointRCNN(backbone, **boxes, **_keypoint_parts(model, backbone))


def default_anchor_sizes(backbone: FpnBackbone) -> list[list[int]]:
    """Return the anchor sizes of the paper in pixels: one a level, from 32 on."""
    return [[32 * 2**i] for i in range(len(backbone.level_names))]


def _box_arguments(model: ModelRecipe, backbone: FpnBackbone) -> dict[str, Any]:
    return {**image_arguments(model, backbone), **_rpn_parts(model, backbone), **_box_parts(model, backbone)}


def _rpn_parts(model: ModelRecipe, backbone: FpnBackbone) -> dict[str, Any]:
    anchors = anchor_generator(model.anchor_sizes or default_anchor_sizes(backbone), model.aspect_ratios)
    anchors_per_place = anchors.num_anchors_per_location()[0]
    return {
        "rpn_anchor_generator": anchors,
        "rpn_head": RPNHead(backbone.out_channels, anchors_per_place, conv_depth=model.rpn_head_convs),
        "rpn_pre_nms_top_n_train": model.rpn_pre_nms_top_n_train,
        "rpn_pre_nms_top_n_test": model.rpn_pre_nms_top_n_test,
        "rpn_post_nms_top_n_train": model.rpn_post_nms_top_n_train,
        "rpn_post_nms_top_n_test": model.rpn_post_nms_top_n_test,
        "rpn_batch_size_per_image": model.rpn_batch_size_per_image,
        "rpn_score_thresh": model.rpn_score_thresh,
    }


def _box_parts(model: ModelRecipe, backbone: FpnBackbone) -> dict[str, Any]:
    width = model.box_representation_size
    return {
        "box_roi_pool": _roi_pool(backbone, BOX_POOL),
        "box_head": _box_head(model, backbone.out_channels),
        "box_predictor": FastRCNNPredictor(width, outputs(model)),
        "box_score_thresh": model.box_score_thresh,
        "box_nms_thresh": model.box_nms_thresh,
        "box_detections_per_img": model.box_detections_per_img,
        "box_batch_size_per_image": model.box_batch_size_per_image,
    }


def _box_head(model: ModelRecipe, channels: int) -> nn.Module:
    width = model.box_representation_size
    if not model.box_head_convs:
        return TwoMLPHead(channels * BOX_POOL**2, width)
    convs = [model.box_head_channels] * model.box_head_convs
    return FastRCNNConvFCHead((channels, BOX_POOL, BOX_POOL), convs, [width], norm_layer(model.head_norm))


def _mask_parts(model: ModelRecipe, backbone: FpnBackbone) -> dict[str, Any]:
    width = model.mask_head_channels
    return {
        "mask_roi_pool": _roi_pool(backbone, MASK_POOL),
        "mask_head": MaskRCNNHeads(
            backbone.out_channels, (width,) * model.mask_head_convs, 1, norm_layer(model.head_norm)
        ),
        "mask_predictor": MaskRCNNPredictor(width, width, outputs(model)),
    }


def _keypoint_parts(model: ModelRecipe, backbone: FpnBackbone) -> dict[str, Any]:
    width = model.keypoint_head_channels
    return {
        "keypoint_roi_pool": _roi_pool(backbone, MASK_POOL),
        "keypoint_head": KeypointRCNNHeads(backbone.out_channels, (width,) * model.keypoint_head_convs),
        "keypoint_predictor": KeypointRCNNPredictor(width, model.num_keypoints),
    }


def _roi_pool(backbone: FpnBackbone, cells: int) -> MultiScaleRoIAlign:
    """Return torchvision's pooling with scales of 1 / stride.

    torchvision infers the scales from the first image that it sees (ops/poolers.py, ``_infer_scale``), for all later
    ones, too. They are wrong if padding makes that image much larger.
    """
    names = list(backbone.roi_level_names)
    pool: Any = MultiScaleRoIAlign(names, output_size=cells, sampling_ratio=SAMPLING_RATIO)
    strides = backbone.strides[: len(names)]
    first, last = (stride.bit_length() - 1 for stride in (strides[0], strides[-1]))
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(first, last, pool.canonical_scale, pool.canonical_level)
    return cast(MultiScaleRoIAlign, pool)
