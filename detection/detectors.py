"""Faster and Mask R-CNN over any timm backbone, as instances of torchvision's own classes.

``build_detector`` builds what a recipe says. Importing this module also registers a torchvision-style builder for each
VoVNet, so that ``torchvision.models.get_model("fasterrcnn_vovnet39_fpn")`` finds it.
"""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable
from typing import Any

from timm.models._registry import get_arch_pretrained_cfgs
from torchvision.models._api import register_model
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from vovnet.adapters import FpnBackbone, fpn_backbone
from vovnet.detection.model_checks import check_anchors, check_model
from vovnet.detection.recipe import ModelRecipe, Recipe
from vovnet.errors import InputError

DETECTORS: dict[str, type[FasterRCNN]] = {"faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}

BOX_POOL, MASK_POOL, SAMPLING_RATIO = 7, 14, 2
"""Cells a side of a pooled box and mask, and samples a side of a cell: torchvision's defaults."""


def build_detector(recipe: Recipe | ModelRecipe, *, download: bool = True) -> FasterRCNN:
    """Build the detector that a recipe describes.

    Args:
        recipe: a whole recipe or its ``model`` part; ``num_classes`` must be set (objects alone: background is added).
        download: False leaves pretrained backbone weights out, for a caller that loads its own over them; norms and
            stages are frozen as if they were there.

    Returns:
        A ``FasterRCNN`` or ``MaskRCNN``. It takes a list of float pictures (in_chans, H, W) in 0..1 of any sizes. In
        evaluation it resizes them to ``min_size`` and ``max_size``; in training it does not: pictures come resized.

    Raises:
        InputError: a field cannot be used; the message begins with its key, ``model.…``.
    """
    model = recipe.model if isinstance(recipe, Recipe) else recipe
    check_model(model)
    backbone = _recipe_backbone(model, download)
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


def _recipe_backbone(model: ModelRecipe, download: bool) -> FpnBackbone:
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
        )
    except InputError as error:
        raise InputError(f"model.backbone {model.backbone!r}: {error}") from error
    except TypeError as error:  # from here it is a wrong key of the recipe, not a wrong call
        raise InputError(f"model.backbone_args: {error}") from error


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
    }


def _box_parts(model: ModelRecipe, backbone: FpnBackbone) -> dict[str, Any]:
    width = model.box_representation_size
    return {
        "box_roi_pool": _roi_pool(backbone, BOX_POOL),
        "box_head": TwoMLPHead(backbone.out_channels * BOX_POOL**2, width),
        "box_predictor": FastRCNNPredictor(width, _outputs(model)),
        "box_score_thresh": model.box_score_thresh,
        "box_nms_thresh": model.box_nms_thresh,
        "box_detections_per_img": model.box_detections_per_img,
        "box_batch_size_per_image": model.box_batch_size_per_image,
    }


def _mask_parts(model: ModelRecipe, backbone: FpnBackbone) -> dict[str, Any]:
    width = model.mask_head_channels
    return {
        "mask_roi_pool": _roi_pool(backbone, MASK_POOL),
        "mask_head": MaskRCNNHeads(backbone.out_channels, (width,) * model.mask_head_convs, 1),
        "mask_predictor": MaskRCNNPredictor(width, width, _outputs(model)),
    }


def _roi_pool(backbone: FpnBackbone, cells: int) -> MultiScaleRoIAlign:
    return MultiScaleRoIAlign(list(backbone.roi_level_names), output_size=cells, sampling_ratio=SAMPLING_RATIO)


def _outputs(model: ModelRecipe) -> int:
    assert model.num_classes is not None  # check_model has seen to it
    return model.num_classes + 1  # the background is class 0


COCO_OUTPUTS = 91
"""COCO's category ids go to 90, and 0 is the background: what torchvision's builders take when nothing is said."""
STAGES = 5
"""Of a VoVNet: the stem and four more."""
DEFAULT_TRAINABLE = 3
"""Stages that torchvision's ResNet detectors train when they start from pretrained weights."""


def _torchvision_style(
    detector: type[FasterRCNN],
    architecture: str,
    *,
    weights: object,
    num_classes: int | None,
    weights_backbone: bool | str | None,
    trainable_backbone_layers: int | None,
    settings: dict[str, Any],
) -> FasterRCNN:
    """The body of every registered builder, after torchvision's ``fasterrcnn_resnet50_fpn``."""
    if weights is not None:
        raise InputError(
            f"weights must be None, got {weights!r}: no published detector weights are here yet; use weights_backbone "
            "for a pretrained backbone"
        )
    _check_settings(detector, settings)
    name, pretrained = _backbone_weights(architecture, weights_backbone)
    if trainable_backbone_layers is not None and not 0 <= trainable_backbone_layers <= STAGES:
        raise InputError(f"trainable_backbone_layers must be 0 to {STAGES}, got {trainable_backbone_layers}")
    if not pretrained and trainable_backbone_layers not in (None, STAGES):  # torchvision warns and trains all, too
        warnings.warn(
            f"trainable_backbone_layers={trainable_backbone_layers} has no effect without weights_backbone: all train",
            stacklevel=3,
        )
    trainable = DEFAULT_TRAINABLE if trainable_backbone_layers is None else trainable_backbone_layers
    backbone = fpn_backbone(
        name,
        pretrained=pretrained,
        norm="frozen_bn" if pretrained else "bn",
        trainable_stages=trainable if pretrained else None,
    )
    if num_classes is None and settings.get("box_predictor") is None:
        num_classes = COCO_OUTPUTS
    normalisation = {"image_mean": list(backbone.mean), "image_std": list(backbone.std)}
    return detector(backbone, num_classes, **{**normalisation, **settings})


def _backbone_weights(architecture: str, weights: bool | str | None) -> tuple[str, bool]:
    """timm's name with the tag, and whether to load pretrained weights."""
    if weights is None or weights is False:
        return architecture, False
    if weights is True or weights == "DEFAULT":
        return architecture, True
    tags = [tag for tag in get_arch_pretrained_cfgs(architecture) if tag]
    if not isinstance(weights, str) or f"{architecture}.{weights}" not in tags:
        raise InputError(
            f"weights_backbone must be None, True, 'DEFAULT' or a tag of {', '.join(tags)}, got {weights!r}"
        )
    return f"{architecture}.{weights}", True


def _check_settings(detector: type[FasterRCNN], settings: dict[str, Any]) -> None:
    """torchvision hands unknown arguments down to its transform, which swallows them; a slip must not go unseen."""
    known = {*inspect.signature(detector).parameters, *inspect.signature(GeneralizedRCNNTransform).parameters}
    known = (known | {"_skip_resize"}) - {"backbone", "num_classes", "kwargs"}
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{detector.__name__} has no argument {key!r}{hint}")


def _register(name: str, detector: type[FasterRCNN], architecture: str) -> Callable[..., FasterRCNN]:
    """Make one builder, with torchvision's signature, and register it with torchvision under ``name``."""

    def build(
        *,
        weights: None = None,
        progress: bool = True,
        num_classes: int | None = None,
        weights_backbone: bool | str | None = None,
        trainable_backbone_layers: int | None = None,
        **kwargs: Any,
    ) -> FasterRCNN:
        return _torchvision_style(
            detector,
            architecture,
            weights=weights,
            num_classes=num_classes,
            weights_backbone=weights_backbone,
            trainable_backbone_layers=trainable_backbone_layers,
            settings=kwargs,
        )

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""{detector.__name__} with a {architecture} backbone and a feature pyramid.

    Args:
        weights: None; there are no published detector weights here yet.
        progress: accepted as in torchvision; timm shows its own progress.
        num_classes: outputs with the background; None is {COCO_OUTPUTS}, as for torchvision's COCO detectors.
        weights_backbone: None for random weights, True or ``"DEFAULT"`` for timm's default pretrained tag, or a tag.
        trainable_backbone_layers: how many of the backbone's last stages train, 0 to {STAGES}; with pretrained weights
            None is {DEFAULT_TRAINABLE}, without them all train.
        **kwargs: arguments of ``torchvision.models.detection.{detector.__name__}``.

    Raises:
        InputError: a value is out of its range.
        TypeError: an unknown argument.
    """
    register_model(name)(build)
    return build


fasterrcnn_vovnet27_slim_fpn = _register("fasterrcnn_vovnet27_slim_fpn", FasterRCNN, "vovnet27_slim")
fasterrcnn_vovnet39_fpn = _register("fasterrcnn_vovnet39_fpn", FasterRCNN, "vovnet39")
fasterrcnn_vovnet57_fpn = _register("fasterrcnn_vovnet57_fpn", FasterRCNN, "vovnet57")
maskrcnn_vovnet27_slim_fpn = _register("maskrcnn_vovnet27_slim_fpn", MaskRCNN, "vovnet27_slim")
maskrcnn_vovnet39_fpn = _register("maskrcnn_vovnet39_fpn", MaskRCNN, "vovnet39")
maskrcnn_vovnet57_fpn = _register("maskrcnn_vovnet57_fpn", MaskRCNN, "vovnet57")
