"""torchvision-style builders, which ``torchvision.models.get_model("fasterrcnn_vovnet39_fpn")`` finds by name."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from timm.models._registry import get_arch_pretrained_cfgs
from torchvision.models._api import register_model
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from vovnet.adapters import fpn_backbone
from vovnet.detection.detectors import build_detector
from vovnet.detection.recipe import ModelRecipe, load_recipe
from vovnet.errors import InputError

COCO_OUTPUTS = 91
"""COCO's category ids go to 90, and 0 is the background: what torchvision's builders take when nothing is said."""
LEGACY_OUTPUTS = 81
"""maskrcnn-benchmark numbers COCO's 80 categories without gaps."""
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
    _refuse_unknown(detector.__name__, settings, known)


def _refuse_unknown(name: str, settings: dict[str, Any], known: set[str]) -> None:
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{name} has no argument {key!r}{hint}")


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


def _register_legacy(detector: str, depth: int) -> Callable[..., FasterRCNN]:
    """Make and register the builder of one of the published R rows; torchvision has the plain names already."""
    name = f"{detector.replace('_', '')}_legacy_resnet{depth}_fpn"
    recipe = f"{detector}_R_{depth}_FPN_2x"

    def build(
        *,
        weights: None = None,
        progress: bool = True,
        num_classes: int | None = None,
        weights_backbone: None = None,
        **kwargs: Any,
    ) -> FasterRCNN:
        for key, value in (("weights", weights), ("weights_backbone", weights_backbone)):
            if value is not None:
                raise InputError(
                    f"{key} must be None, got {value!r}: convert a published file (`vovnet convert`) and load the "
                    "folder with vovnet.hub.load_detector"
                )
        outputs = LEGACY_OUTPUTS if num_classes is None else num_classes
        if outputs < 2:
            raise InputError(f"num_classes counts the background and must be 2 or more, got {outputs}")
        model = load_recipe(recipe).model
        fixed = {"detector", "conventions", "backbone", "num_classes"}
        _refuse_unknown(name, kwargs, {field.name for field in fields(ModelRecipe)} - fixed)
        return build_detector(replace(model, num_classes=outputs - 1, **kwargs), download=False)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""The recipe ``{recipe}``'s detector, by maskrcnn-benchmark's conventions.

    Args:
        weights: None; ``vovnet.hub.load_detector`` loads a converted file.
        progress: accepted as in torchvision.
        num_classes: outputs with the background; None is {LEGACY_OUTPUTS}, COCO's 80 classes without gaps.
        weights_backbone: None; torchvision's and timm's ResNets have their strides elsewhere.
        **kwargs: fields of :class:`vovnet.detection.recipe.ModelRecipe`, such as ``box_score_thresh``.

    Raises:
        InputError: a value is out of its range.
        TypeError: an unknown argument.
    """
    register_model(name)(build)
    return build


fasterrcnn_legacy_resnet50_fpn = _register_legacy("faster_rcnn", 50)
fasterrcnn_legacy_resnet101_fpn = _register_legacy("faster_rcnn", 101)
maskrcnn_legacy_resnet50_fpn = _register_legacy("mask_rcnn", 50)
maskrcnn_legacy_resnet101_fpn = _register_legacy("mask_rcnn", 101)
