"""Build the detector that a recipe describes: torchvision's ``FasterRCNN`` or ``MaskRCNN`` over a timm backbone."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

from vovnet.adapters import FpnBackbone, fpn_backbone
from vovnet.adapters.norms import norm_layer
from vovnet.detection.config.schema import Category, ModelRecipe, Recipe
from vovnet.detection.config.validation import check_anchors, check_model
from vovnet.errors import InputError, reason

DETECTORS: dict[str, type[FasterRCNN]] = {"faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}

BOX_POOL, MASK_POOL, SAMPLING_RATIO = 7, 14, 2
"""Side of a pooled box and of a pooled mask in cells, and of a cell in samples; torchvision's defaults."""


class Detector(FasterRCNN):
    """The type of a detector with weights and categories: torchvision's class with three more attributes.

    Only type checkers use this class. At run time a detector is an instance of torchvision's own ``FasterRCNN`` or
    ``MaskRCNN``, so that TorchScript and every tool for these classes work with it.
    """

    categories: list[Category]
    """The categories in the order of labels: label k means ``categories[k - 1]``."""
    preprocessing: dict[str, Any]
    """How the detector prepares an image, as in ``config.json``."""
    recipe: ModelRecipe
    """The recipe that the detector was built from."""


def build_detector(recipe: Recipe | ModelRecipe, *, download: bool = True) -> FasterRCNN:
    """Build the detector that a recipe describes.

    Args:
        recipe: a recipe or its ``model`` part. ``num_classes`` must be set; it does not count the background.
        download: False does not download pretrained weights of the backbone, for a caller that loads its own. Norms
            and stages are frozen in both cases.

    Returns:
        A ``FasterRCNN`` or ``MaskRCNN``. It takes a list of float images (in_chans, H, W) in 0..1 of any sizes. In
        evaluation it resizes them to ``min_size`` and ``max_size``. In training it does not resize them.

    Raises:
        InputError: a value cannot be used; the message begins with its key, ``model.…``.
    """
    model = recipe.model if isinstance(recipe, Recipe) else recipe
    check_model(model)
    if model.conventions == "legacy":
        from vovnet.detection.legacy.detectors import build_legacy_detector

        return build_legacy_detector(model, download)
    return assemble(model, recipe_backbone(model, download))


def assemble(model: ModelRecipe, backbone: FpnBackbone) -> FasterRCNN:
    """Return torchvision's detector around a backbone, with the heads, sizes and thresholds of a recipe."""
    check_anchors(model, len(backbone.level_names))
    return DETECTORS[model.detector](
        backbone,
        min_size=model.min_size,
        max_size=model.max_size,
        image_mean=list(backbone.mean if model.image_mean is None else model.image_mean),
        image_std=list(backbone.std if model.image_std is None else model.image_std),
        **_rpn_parts(model, backbone),
        **_box_parts(model, backbone),
        **(_mask_parts(model, backbone) if model.detector == "mask_rcnn" else {}),
        _skip_resize=True,
    )


def recipe_backbone(model: ModelRecipe, download: bool) -> FpnBackbone:
    """Return the backbone and feature pyramid of a recipe.

    Raises:
        InputError: a value cannot be used; the message begins with its key.
    """
    try:
        return fpn_backbone(
            model.backbone,
            pretrained=model.pretrained,
            out_indices=model.out_indices,
            out_channels=model.fpn_channels,
            extra_level=model.extra_level,
            norm=model.norm,
            trainable_stages=model.trainable_stages,
            fpn_norm=model.fpn_norm,
            in_chans=model.in_chans,
            backbone_args=model.backbone_args,
            download=download,
            norm_eps=model.norm_eps,
            out_modules=model.out_modules,
        )
    except InputError as error:
        raise InputError(f"model.backbone {model.backbone!r}: {error}") from error
    except Exception as error:
        if not model.backbone_args:
            raise
        # The arguments come from a recipe, which may say anything; timm raises whatever it runs into.
        cause = f"{type(error).__name__}: {reason(error)}"
        raise InputError(f"model.backbone_args: {model.backbone!r} cannot be built with them ({cause})") from error


def _rpn_parts(model: ModelRecipe, backbone: FpnBackbone) -> dict[str, Any]:
    levels = len(backbone.level_names)
    sizes = model.anchor_sizes or [[32 * 2**i] for i in range(levels)]
    anchors = AnchorGenerator(tuple(tuple(s) for s in sizes), (tuple(model.aspect_ratios),) * levels)
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
        "box_predictor": FastRCNNPredictor(width, _outputs(model)),
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
        "mask_predictor": MaskRCNNPredictor(width, width, _outputs(model)),
    }


def _roi_pool(backbone: FpnBackbone, cells: int) -> MultiScaleRoIAlign:
    return MultiScaleRoIAlign(list(backbone.roi_level_names), output_size=cells, sampling_ratio=SAMPLING_RATIO)


def _outputs(model: ModelRecipe) -> int:
    assert model.num_classes is not None  # check_model refuses None
    return model.num_classes + 1  # the background is class 0
