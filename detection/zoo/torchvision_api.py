"""torchvision-style builders, which ``torchvision.models.get_model("fasterrcnn_vovnet39_fpn")`` finds by name."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

from timm.models._registry import get_arch_pretrained_cfgs
from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from vovnet.adapters import fpn_backbone
from vovnet.detection.zoo import weights as enums
from vovnet.detection.zoo.kinds import FASTER, FASTER_V2, FCOS, KEYPOINT, MASK, MASK_V2, RETINANET, RETINANET_V2, Kind
from vovnet.detection.zoo.published_resnets import (  # noqa: F401 (registers them, too)
    fasterrcnn_legacy_resnet50_fpn,
    fasterrcnn_legacy_resnet101_fpn,
    maskrcnn_legacy_resnet50_fpn,
    maskrcnn_legacy_resnet101_fpn,
)
from vovnet.detection.zoo.registration import LEGACY_OUTPUTS, offer, refuse_unknown, with_weights
from vovnet.detection.zoo.weights import PublishedWeights, unpublished
from vovnet.errors import InputError

STAGES = 5
"""Stages of a VoVNet: the stem and four more."""
DEFAULT_TRAINABLE = 3
"""Stages that torchvision's ResNet detectors train if the backbone is pretrained."""


def _torchvision_style(
    kind: Kind,
    architecture: str,
    *,
    num_classes: int | None,
    weights_backbone: bool | str | None,
    trainable_backbone_layers: int | None,
    settings: dict[str, Any],
) -> nn.Module:
    """Build a detector as torchvision's ``fasterrcnn_resnet50_fpn`` does."""
    _check_settings(kind.detector, settings)
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
        norm=kind.pretrained_norm if pretrained else "bn",
        trainable_stages=trainable if pretrained else None,
        strides=kind.facts.strides,
        extra_level=kind.extra_level,
        fpn_norm=kind.fpn_norm,
    )
    if num_classes is None and settings.get("box_predictor") is None:
        num_classes = kind.outputs
    normalisation = {"image_mean": list(backbone.mean), "image_std": list(backbone.std)}
    heads = {} if kind.heads is None else kind.heads(backbone, num_classes, settings)
    return kind.detector(backbone, num_classes, **{**normalisation, **heads, **settings})


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
    refuse_unknown(detector.__name__, settings, known)


def _register(kind: Kind, architecture: str, enum: type[PublishedWeights] | None = None) -> Callable[..., nn.Module]:
    """Make a builder with torchvision's signature and register it with torchvision.

    Args:
        kind: The kind of detector.
        architecture: timm's name of the backbone.
        enum: The published weights; None if there are none.
    """
    published = enum or unpublished(kind.weights(architecture))

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
        if chosen := published.verify(weights):
            _check_settings(kind.detector, kwargs)
            return with_weights(
                chosen,
                progress=progress,
                num_classes=num_classes,
                weights_backbone=weights_backbone,
                settings=kwargs if layers is None else {**kwargs, "trainable_stages": layers},
            )
        return _torchvision_style(
            kind,
            architecture,
            num_classes=num_classes,
            weights_backbone=weights_backbone,
            trainable_backbone_layers=layers,
            settings=kwargs,
        )

    build.__doc__ = _described(kind, architecture, published)
    offer(kind.builder(architecture), build, published)
    return build


def _described(kind: Kind, architecture: str, enum: type[PublishedWeights]) -> str:
    """Return the docstring of a builder."""
    with_weights, outputs, other = "", str(kind.outputs), ""
    if [*enum]:
        with_weights = """ With ``weights`` it follows maskrcnn-benchmark's conventions, in which they were trained, and
    has the attributes of :func:`vovnet.detection.load_detector`'s result. Otherwise it follows torchvision's."""
        outputs += f", or {LEGACY_OUTPUTS} with ``weights``, which allow no other"
        other = "; with ``weights`` only sizes, thresholds and numbers of boxes"
    return f"""{kind.title} with a {architecture} backbone and a feature pyramid.

    It is in training mode.{with_weights}

    Args:
        weights: A member of ``{enum.__name__}`` ({len({*enum}) or "none are published"}) or its name, or None.
        progress: Show a progress bar for the download of ``weights``; timm shows its own for ``weights_backbone``.
        num_classes: Number of outputs, with the background. Default: {outputs}.
        weights_backbone: None for random weights, True or ``"DEFAULT"`` for timm's default pretrained tag, or a tag.
        trainable_backbone_layers: Number of the backbone's last stages that train, 0 to {STAGES}. Default:
            {DEFAULT_TRAINABLE} with ``weights_backbone``, otherwise all.
        **kwargs: Arguments of ``torchvision.models.detection.{kind.detector.__name__}``{other}.

    Raises:
        InputError: A value is out of range or contradicts ``weights``, or the weights cannot be fetched.
        TypeError: An argument is unknown.
    """


fasterrcnn_vovnet27_slim_fpn = _register(FASTER, "vovnet27_slim", enums.FasterRCNN_VoVNet27_Slim_FPN_Weights)
fasterrcnn_vovnet39_fpn = _register(FASTER, "vovnet39", enums.FasterRCNN_VoVNet39_FPN_Weights)
fasterrcnn_vovnet57_fpn = _register(FASTER, "vovnet57", enums.FasterRCNN_VoVNet57_FPN_Weights)
maskrcnn_vovnet27_slim_fpn = _register(MASK, "vovnet27_slim", enums.MaskRCNN_VoVNet27_Slim_FPN_Weights)
maskrcnn_vovnet39_fpn = _register(MASK, "vovnet39", enums.MaskRCNN_VoVNet39_FPN_Weights)
maskrcnn_vovnet57_fpn = _register(MASK, "vovnet57", enums.MaskRCNN_VoVNet57_FPN_Weights)
keypointrcnn_vovnet27_slim_fpn = _register(KEYPOINT, "vovnet27_slim")
keypointrcnn_vovnet39_fpn = _register(KEYPOINT, "vovnet39")
keypointrcnn_vovnet57_fpn = _register(KEYPOINT, "vovnet57")
retinanet_vovnet27_slim_fpn = _register(RETINANET, "vovnet27_slim")
retinanet_vovnet39_fpn = _register(RETINANET, "vovnet39")
retinanet_vovnet57_fpn = _register(RETINANET, "vovnet57")
fcos_vovnet27_slim_fpn = _register(FCOS, "vovnet27_slim")
fcos_vovnet39_fpn = _register(FCOS, "vovnet39")
fcos_vovnet57_fpn = _register(FCOS, "vovnet57")

fasterrcnn_vovnet27_slim_fpn_v2 = _register(FASTER_V2, "vovnet27_slim")
fasterrcnn_vovnet39_fpn_v2 = _register(FASTER_V2, "vovnet39")
fasterrcnn_vovnet57_fpn_v2 = _register(FASTER_V2, "vovnet57")
maskrcnn_vovnet27_slim_fpn_v2 = _register(MASK_V2, "vovnet27_slim")
maskrcnn_vovnet39_fpn_v2 = _register(MASK_V2, "vovnet39")
maskrcnn_vovnet57_fpn_v2 = _register(MASK_V2, "vovnet57")
retinanet_vovnet27_slim_fpn_v2 = _register(RETINANET_V2, "vovnet27_slim")
retinanet_vovnet39_fpn_v2 = _register(RETINANET_V2, "vovnet39")
retinanet_vovnet57_fpn_v2 = _register(RETINANET_V2, "vovnet57")
