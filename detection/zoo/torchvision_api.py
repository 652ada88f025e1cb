"""torchvision-style builders, which ``torchvision.models.get_model("fasterrcnn_vovnet39_fpn")`` finds by name."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from typing import Any

import torchvision
from timm.models._registry import get_arch_pretrained_cfgs
from torch import nn
from torchvision.models._api import register_model
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from vovnet.adapters import fpn_backbone
from vovnet.detection.config.loading import load_recipe
from vovnet.detection.config.schema import SETTINGS, ModelRecipe
from vovnet.detection.models.build import build_detector
from vovnet.detection.zoo.weights import (
    FasterRCNN_Legacy_ResNet50_FPN_Weights,
    FasterRCNN_Legacy_ResNet101_FPN_Weights,
    FasterRCNN_VoVNet27_Slim_FPN_Weights,
    FasterRCNN_VoVNet39_FPN_Weights,
    FasterRCNN_VoVNet57_FPN_Weights,
    MaskRCNN_Legacy_ResNet50_FPN_Weights,
    MaskRCNN_Legacy_ResNet101_FPN_Weights,
    MaskRCNN_VoVNet27_Slim_FPN_Weights,
    MaskRCNN_VoVNet39_FPN_Weights,
    MaskRCNN_VoVNet57_FPN_Weights,
    PublishedWeights,
    build_published,
)
from vovnet.errors import InputError, did_you_mean

COCO_OUTPUTS = 91
"""Default of torchvision's builders: COCO's category ids go up to 90, and 0 is the background."""
LEGACY_OUTPUTS = 81
"""Outputs of maskrcnn-benchmark's detectors, which number COCO's 80 categories without gaps."""
STAGES = 5
"""Stages of a VoVNet: the stem and four more."""
DEFAULT_TRAINABLE = 3
"""Stages that torchvision's ResNet detectors train if the backbone is pretrained."""

_FREE = SETTINGS | {"trainable_stages"}
"""Fields of a model recipe that may be changed for published weights. Most are also torchvision's arguments."""


def _torchvision_style(
    detector: type[nn.Module],
    architecture: str,
    *,
    num_classes: int | None,
    weights_backbone: bool | str | None,
    trainable_backbone_layers: int | None,
    settings: dict[str, Any],
) -> nn.Module:
    """Build a detector as torchvision's ``fasterrcnn_resnet50_fpn`` does."""
    _check_settings(detector, settings)
    name, pretrained = _backbone_weights(architecture, weights_backbone)
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
    """Return timm's name with the tag, and True if pretrained weights are loaded."""
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


def _check_settings(detector: type[nn.Module], settings: dict[str, Any]) -> None:
    """Refuse unknown arguments, because torchvision passes them to its transform, which ignores them."""
    known = {*inspect.signature(detector).parameters, *inspect.signature(GeneralizedRCNNTransform).parameters}
    known = (known | {"_skip_resize"}) - {"backbone", "num_classes", "kwargs"}
    _refuse_unknown(detector.__name__, settings, known)


def _refuse_unknown(name: str, settings: dict[str, Any], known: set[str]) -> None:
    for key in settings:
        if key not in known:
            hint = did_you_mean(key, sorted(known))
            raise TypeError(f"{name} has no argument {key!r}; {hint}".rstrip("; "))


def _with_weights(
    weights: PublishedWeights,
    *,
    progress: bool,
    num_classes: int | None,
    weights_backbone: bool | str | None,
    settings: dict[str, Any],
) -> nn.Module:
    """Build the detector of published weights. Arguments may change sizes and thresholds, but not the network.

    Args:
        weights: The published weights.
        progress: Show a progress bar for the download.
        num_classes: Number of outputs, with the background.
        weights_backbone: None, because the weights hold the backbone's.
        settings: torchvision's arguments or fields of the model recipe.

    Raises:
        InputError: An argument contradicts the weights.
    """
    recipe = weights.meta["recipe"]
    model = asdict(load_recipe(recipe).model)
    given = {"num_classes": LEGACY_OUTPUTS if num_classes is None else num_classes, **settings}
    expected = {**{key: model.get(key) for key in settings}, "num_classes": LEGACY_OUTPUTS}
    for key, value in given.items():
        if key not in _FREE and (type(value) is not type(expected[key]) or value != expected[key]):
            raise InputError(f"{key}={value!r} contradicts weights={weights!r} (recipe {recipe}): leave it out")
    if weights_backbone not in (None, False):
        raise InputError(
            f"weights_backbone={weights_backbone!r} contradicts weights={weights!r}, which holds the backbone's: leave "
            "one of them out"
        )
    return build_published(weights, {k: v for k, v in settings.items() if k in _FREE}, progress=progress)


def _offer(name: str, build: Callable[..., nn.Module], weights: type[PublishedWeights]) -> None:
    """Register a builder and its weights with torchvision."""
    build.__name__ = build.__qualname__ = name
    build.__annotations__["weights"] = weights | str | None  # get_model_weights reads it
    register_model(name)(build)
    setattr(torchvision.models.detection, weights.__name__, weights)  # get_weight finds it there


def _register(
    name: str, detector: type[nn.Module], architecture: str, enum: type[PublishedWeights]
) -> Callable[..., nn.Module]:
    """Make a builder with torchvision's signature and register it with torchvision as ``name``."""

    def build(
        *,
        weights: PublishedWeights | str | None = None,
        progress: bool = True,
        num_classes: int | None = None,
        weights_backbone: bool | str | None = None,
        trainable_backbone_layers: int | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        layers = trainable_backbone_layers
        if layers is not None and not 0 <= layers <= STAGES:
            raise InputError(f"trainable_backbone_layers must be 0 to {STAGES}, got {layers}")
        if chosen := enum.verify(weights):
            _check_settings(detector, kwargs)
            return _with_weights(
                chosen,
                progress=progress,
                num_classes=num_classes,
                weights_backbone=weights_backbone,
                settings=kwargs if layers is None else {**kwargs, "trainable_stages": layers},
            )
        return _torchvision_style(
            detector,
            architecture,
            num_classes=num_classes,
            weights_backbone=weights_backbone,
            trainable_backbone_layers=layers,
            settings=kwargs,
        )

    build.__doc__ = f"""{detector.__name__} with a {architecture} backbone and a feature pyramid.

    With ``weights`` it follows maskrcnn-benchmark's conventions, in which they were trained, and has the attributes
    of :func:`vovnet.detection.load_detector`'s result. Otherwise it follows torchvision's. It is in training mode.

    Args:
        weights: A member of :class:`vovnet.detection.zoo.weights.{enum.__name__}` or its name.
        progress: Show a progress bar for the download of ``weights``; timm shows its own for ``weights_backbone``.
        num_classes: Number of outputs, with the background. Default: {COCO_OUTPUTS}, as for torchvision's COCO
            detectors, or {LEGACY_OUTPUTS} with ``weights``, which allow no other.
        weights_backbone: None for random weights, True or ``"DEFAULT"`` for timm's default pretrained tag, or a tag.
        trainable_backbone_layers: Number of the backbone's last stages that train, 0 to {STAGES}. Default:
            {DEFAULT_TRAINABLE} with ``weights_backbone``, otherwise all.
        **kwargs: Arguments of ``torchvision.models.detection.{detector.__name__}``; with ``weights`` only sizes,
            thresholds and numbers of boxes.

    Raises:
        InputError: A value is out of range or contradicts ``weights``, or the weights cannot be fetched.
        TypeError: An argument is unknown.
    """
    _offer(name, build, enum)
    return build


fasterrcnn_vovnet27_slim_fpn = _register(
    "fasterrcnn_vovnet27_slim_fpn", FasterRCNN, "vovnet27_slim", FasterRCNN_VoVNet27_Slim_FPN_Weights
)
fasterrcnn_vovnet39_fpn = _register("fasterrcnn_vovnet39_fpn", FasterRCNN, "vovnet39", FasterRCNN_VoVNet39_FPN_Weights)
fasterrcnn_vovnet57_fpn = _register("fasterrcnn_vovnet57_fpn", FasterRCNN, "vovnet57", FasterRCNN_VoVNet57_FPN_Weights)
maskrcnn_vovnet27_slim_fpn = _register(
    "maskrcnn_vovnet27_slim_fpn", MaskRCNN, "vovnet27_slim", MaskRCNN_VoVNet27_Slim_FPN_Weights
)
maskrcnn_vovnet39_fpn = _register("maskrcnn_vovnet39_fpn", MaskRCNN, "vovnet39", MaskRCNN_VoVNet39_FPN_Weights)
maskrcnn_vovnet57_fpn = _register("maskrcnn_vovnet57_fpn", MaskRCNN, "vovnet57", MaskRCNN_VoVNet57_FPN_Weights)


def _register_legacy(detector: str, depth: int, enum: type[PublishedWeights]) -> Callable[..., nn.Module]:
    """Make and register the builder of a published ResNet detector; torchvision has the names without "legacy"."""
    name = f"{detector.replace('_', '')}_legacy_resnet{depth}_fpn"
    recipe = f"{detector}_R_{depth}_FPN_2x"

    def build(
        *,
        weights: PublishedWeights | str | None = None,
        progress: bool = True,
        num_classes: int | None = None,
        weights_backbone: None = None,
        **kwargs: Any,
    ) -> nn.Module:
        fixed = {"detector", "conventions", "backbone", "num_classes"}
        _refuse_unknown(name, kwargs, {field.name for field in fields(ModelRecipe)} - fixed)
        if chosen := enum.verify(weights):
            return _with_weights(
                chosen, progress=progress, num_classes=num_classes, weights_backbone=weights_backbone, settings=kwargs
            )
        if weights_backbone is not None:
            raise InputError(
                f"weights_backbone must be None, got {weights_backbone!r}: torchvision's and timm's ResNets have their "
                "strides elsewhere; give weights, or train from a converted file (`vovnet convert`, init=FOLDER)"
            )
        outputs = LEGACY_OUTPUTS if num_classes is None else num_classes
        if outputs < 2:
            raise InputError(f"num_classes counts the background and must be 2 or more, got {outputs}")
        model = load_recipe(recipe).model
        return build_detector(replace(model, num_classes=outputs - 1, **kwargs), download=False)

    build.__doc__ = f"""Build the detector of the recipe ``{recipe}``, with maskrcnn-benchmark's conventions.

    Args:
        weights: A member of :class:`vovnet.detection.zoo.weights.{enum.__name__}` or its name.
        progress: Show a progress bar for the download of ``weights``.
        num_classes: Number of outputs, with the background. Default: {LEGACY_OUTPUTS}, for COCO's 80 classes. With
            ``weights`` no other number is allowed.
        weights_backbone: None, because torchvision's and timm's ResNets have their strides in other layers.
        **kwargs: Fields of :class:`~vovnet.detection.config.schema.ModelRecipe`, such as ``box_score_thresh``;
            with ``weights`` only sizes, thresholds, numbers of boxes and ``trainable_stages``.

    Raises:
        InputError: A value is out of range or contradicts ``weights``, or the weights cannot be fetched.
        TypeError: An argument is unknown.
    """
    _offer(name, build, enum)
    return build


fasterrcnn_legacy_resnet50_fpn = _register_legacy("faster_rcnn", 50, FasterRCNN_Legacy_ResNet50_FPN_Weights)
fasterrcnn_legacy_resnet101_fpn = _register_legacy("faster_rcnn", 101, FasterRCNN_Legacy_ResNet101_FPN_Weights)
maskrcnn_legacy_resnet50_fpn = _register_legacy("mask_rcnn", 50, MaskRCNN_Legacy_ResNet50_FPN_Weights)
maskrcnn_legacy_resnet101_fpn = _register_legacy("mask_rcnn", 101, MaskRCNN_Legacy_ResNet101_FPN_Weights)
