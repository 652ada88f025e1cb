"""Builders of the published ResNet detectors, ``torchvision.models.get_model("fasterrcnn_legacy_resnet50_fpn")``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from torch import nn

from vovnet.detection.config.loading import load_recipe
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.models.build import build_detector
from vovnet.detection.zoo.registration import LEGACY_OUTPUTS, offer, refuse_unknown, with_weights
from vovnet.detection.zoo.weights import (
    FasterRCNN_Legacy_ResNet50_FPN_Weights,
    FasterRCNN_Legacy_ResNet101_FPN_Weights,
    MaskRCNN_Legacy_ResNet50_FPN_Weights,
    MaskRCNN_Legacy_ResNet101_FPN_Weights,
    PublishedWeights,
)
from vovnet.errors import InputError


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
        refuse_unknown(name, kwargs, {field.name for field in fields(ModelRecipe)} - fixed)
        if chosen := enum.verify(weights):
            return with_weights(
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
        **kwargs: Fields of :class:`~vovnet.detection.config.model.ModelRecipe`, such as ``box_score_thresh``;
            with ``weights`` only sizes, thresholds, numbers of boxes and ``trainable_stages``.

    Raises:
        InputError: A value is out of range or contradicts ``weights``, or the weights cannot be fetched.
        TypeError: An argument is unknown.
    """
    offer(name, build, enum)
    return build


fasterrcnn_legacy_resnet50_fpn = _register_legacy("faster_rcnn", 50, FasterRCNN_Legacy_ResNet50_FPN_Weights)
fasterrcnn_legacy_resnet101_fpn = _register_legacy("faster_rcnn", 101, FasterRCNN_Legacy_ResNet101_FPN_Weights)
maskrcnn_legacy_resnet50_fpn = _register_legacy("mask_rcnn", 50, MaskRCNN_Legacy_ResNet50_FPN_Weights)
maskrcnn_legacy_resnet101_fpn = _register_legacy("mask_rcnn", 101, MaskRCNN_Legacy_ResNet101_FPN_Weights)
