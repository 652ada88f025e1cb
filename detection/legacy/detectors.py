"""Build the detector of a recipe with ``conventions: legacy``: torchvision's, with the reference's parts."""

from __future__ import annotations

import warnings
from typing import Any

from timm.layers import FrozenBatchNormAct2d
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.ops import FrozenBatchNorm2d

from vovnet.adapters import FpnBackbone
from vovnet.detection.checkpoints.network_facts import bottlenecks
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.config.parts import shown
from vovnet.detection.legacy.anchors import LegacyAnchorGenerator
from vovnet.detection.legacy.boxes import boxes_to_xywh
from vovnet.detection.legacy.roi_heads import LegacyRoIHeads, legacy_roi_pool
from vovnet.detection.legacy.rpn import LegacyRegionProposalNetwork
from vovnet.detection.legacy.transform import PIXEL_MEAN_BGR, LegacyTransform
from vovnet.detection.models.build import assemble, recipe_backbone
from vovnet.detection.models.two_stage import BOX_POOL, MASK_POOL, SAMPLING_RATIO
from vovnet.errors import InputError


def build_legacy_detector(model: ModelRecipe, download: bool) -> nn.Module:
    """Build the detector of a checked recipe with ``conventions: legacy``, with random weights.

    The detector takes RGB images in [0, 1] like any torchvision detector. Its boxes are inclusive (both corners are
    pixels of the object), and its detections are in the reference's order, by class and then by proposal.

    Raises:
        InputError: a value cannot be used, or has no counterpart in the reference.
    """
    _check_counterparts(model)
    if download and model.pretrained:
        warnings.warn(
            "conventions: legacy: no weights are downloaded, because timm's are for other images; load a converted "
            "checkpoint (vovnet.hub.load_detector, or init in a recipe)",
            stacklevel=3,
        )
    backbone = exact_backbone(recipe_backbone(model, download=False), stride_in_1x1=model.stride_in_1x1 is not False)
    detector: Any = assemble(model, backbone)
    _initialise_heads(detector)
    strides = backbone.strides
    sizes = model.anchor_sizes or [[32 * 2**i] for i in range(len(strides))]
    detector.rpn = _rebuilt_rpn(
        detector.rpn, LegacyAnchorGenerator([size for (size,) in sizes], strides, model.aspect_ratios)
    )
    detector.roi_heads = _rebuilt_roi_heads(detector.roi_heads, backbone)
    detector.transform = LegacyTransform(
        model.min_size,
        model.max_size,
        PIXEL_MEAN_BGR if model.image_mean is None else model.image_mean,
        (1.0, 1.0, 1.0) if model.image_std is None else model.image_std,
    )
    detector.boxes_to_xywh = boxes_to_xywh
    return detector


def _check_counterparts(model: ModelRecipe) -> None:
    wanted = {
        "in_chans": (3,),
        "extra_level": ("pool", "auto"),
        "rpn_head_convs": (1,),
        "rpn_score_thresh": (0.0,),
        "norm_eps": (None,),
        "out_modules": (None,),
    }
    for key, (value, *others) in wanted.items():
        if getattr(model, key) not in (value, *others):
            raise InputError(
                f"model.{key} must be {'null' if value is None else value} with conventions: legacy, got "
                f"{shown(getattr(model, key))}; leave it out"
            )
    if model.anchor_sizes is not None and any(len(level) != 1 for level in model.anchor_sizes):
        raise InputError(
            f"model.anchor_sizes must be one size a level with conventions: legacy, got {model.anchor_sizes}"
        )


def exact_backbone(backbone: FpnBackbone, *, stride_in_1x1: bool = True) -> FpnBackbone:
    """Change a backbone to the reference's arithmetic, in place, and return it.

    Frozen norms have no epsilon (reference layers/batch_norm.py:12-31; torchvision ops/misc.py:61 has 1e-5), and a
    ResNet's stride sits in the first 1×1 convolution of a block (reference modeling/backbone/resnet.py:272-283, its
    ``STRIDE_IN_1X1``; torchvision and timm have it in the 3×3).

    Args:
        backbone: the backbone of a detector.
        stride_in_1x1: False leaves the stride in the 3×3.
    """
    for module in backbone.body.modules():
        if isinstance(module, FrozenBatchNorm2d | FrozenBatchNormAct2d):
            module.eps = 0.0
    for first, second in bottlenecks(backbone.body) if stride_in_1x1 else ():
        first.stride, second.stride = second.stride, first.stride
    return backbone


def _initialise_heads(detector: FasterRCNN) -> None:
    """Initialise box head and predictors, where torchvision does it differently, as the reference does.

    Reference modeling/make_layers.py:95-120, roi_box_feature_extractors.py:55-115, roi_box_predictors.py:35-57,
    roi_mask_predictors.py:18-31.
    """
    heads: Any = detector.roi_heads
    head: Any = heads.box_head
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, a=1)
        elif isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
    predictor: Any = heads.box_predictor
    for layer, deviation in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=deviation)
        nn.init.zeros_(layer.bias)
    if heads.has_mask():
        masks: Any = heads.mask_predictor
        nn.init.zeros_(masks.conv5_mask.bias)
        nn.init.zeros_(masks.mask_fcn_logits.bias)


def _rebuilt_rpn(rpn: Any, anchors: LegacyAnchorGenerator) -> LegacyRegionProposalNetwork:
    """Return the reference's network with the same head and settings."""
    matcher, sampler = rpn.proposal_matcher, rpn.fg_bg_sampler
    return LegacyRegionProposalNetwork(
        anchors,
        rpn.head,
        matcher.high_threshold,
        matcher.low_threshold,
        sampler.batch_size_per_image,
        sampler.positive_fraction,
        rpn._pre_nms_top_n,
        rpn._post_nms_top_n,
        rpn.nms_thresh,
    )


def _rebuilt_roi_heads(heads: Any, backbone: FpnBackbone) -> LegacyRoIHeads:
    matcher, sampler = heads.proposal_matcher, heads.fg_bg_sampler
    levels = backbone.roi_level_names
    strides = backbone.strides[: len(levels)]
    masks = heads.has_mask()
    return LegacyRoIHeads(
        legacy_roi_pool(levels, strides, BOX_POOL, SAMPLING_RATIO),
        heads.box_head,
        heads.box_predictor,
        matcher.high_threshold,
        matcher.low_threshold,
        sampler.batch_size_per_image,
        sampler.positive_fraction,
        None,
        heads.score_thresh,
        heads.nms_thresh,
        heads.detections_per_img,
        mask_roi_pool=legacy_roi_pool(levels, strides, MASK_POOL, SAMPLING_RATIO) if masks else None,
        mask_head=heads.mask_head if masks else None,
        mask_predictor=heads.mask_predictor if masks else None,
    )
