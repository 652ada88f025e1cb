"""Build the detector that a recipe describes: a detector of torchvision over a timm backbone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from vovnet.adapters import FpnBackbone, fpn_backbone
from vovnet.detection.config.categories import Category
from vovnet.detection.config.detectors import DETECTORS, DetectorName
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.config.schema import Recipe
from vovnet.detection.config.validation import check_anchors, check_model
from vovnet.detection.models.one_stage import fcos, retinanet
from vovnet.detection.models.two_stage import faster_rcnn, keypoint_rcnn, mask_rcnn
from vovnet.errors import InputError, reason
from vovnet.terminal.text import shortened

BUILDERS: dict[DetectorName, Callable[[ModelRecipe, FpnBackbone], nn.Module]] = {
    "faster_rcnn": faster_rcnn,
    "mask_rcnn": mask_rcnn,
    "keypoint_rcnn": keypoint_rcnn,
    "retinanet": retinanet,
    "fcos": fcos,
}
"""The builder of each value of ``model.detector``; facts about them are in :mod:`vovnet.detection.config.detectors`."""


class Detector(nn.Module):
    """The type of a detector with weights and categories: torchvision's class with three more attributes.

    Only type checkers use this class. At run time a detector is an instance of torchvision's own ``FasterRCNN``,
    ``MaskRCNN`` or one of its kin, so that TorchScript and every tool for these classes work with it.
    """

    categories: list[Category]
    """The categories in the order of labels: label k means ``categories[k - 1]``."""
    preprocessing: dict[str, Any]
    """How the detector prepares an image, as in ``config.json``."""
    recipe: ModelRecipe
    """The recipe that the detector was built from."""


def build_detector(recipe: Recipe | ModelRecipe, *, download: bool = True) -> nn.Module:
    """Build the detector that a recipe describes.

    Args:
        recipe: a recipe or its ``model`` part. ``num_classes`` must be set; it does not count the background.
        download: False does not download pretrained weights of the backbone, for a caller that loads its own. Norms
            and stages are frozen in both cases.

    Returns:
        torchvision's class for ``model.detector``. It takes a list of float images (in_chans, H, W) in 0..1 of any
        sizes. In evaluation it resizes them to ``min_size`` and ``max_size``. In training it does not resize them.

    Raises:
        InputError: a value cannot be used; the message begins with its key, ``model.…``.
    """
    model = recipe.model if isinstance(recipe, Recipe) else recipe
    check_model(model)
    if model.conventions == "legacy":
        from vovnet.detection.legacy.detectors import build_legacy_detector

        return build_legacy_detector(model, download)
    return assemble(model, recipe_backbone(model, download))


def assemble(model: ModelRecipe, backbone: FpnBackbone) -> nn.Module:
    """Return torchvision's detector around a backbone, with the heads, sizes and thresholds of a recipe."""
    check_anchors(model, len(backbone.level_names))
    return BUILDERS[model.detector](model, backbone)


def recipe_backbone(model: ModelRecipe, download: bool) -> FpnBackbone:
    """Return the backbone and feature pyramid of a recipe.

    Raises:
        InputError: a value cannot be used; the message begins with its key.
    """
    facts = DETECTORS[model.detector]
    try:
        return fpn_backbone(
            model.backbone,
            pretrained=model.pretrained,
            out_indices=model.out_indices,
            out_channels=model.fpn_channels,
            extra_level=facts.extra_level if model.extra_level == "auto" else model.extra_level,
            norm=model.norm,
            trainable_stages=model.trainable_stages,
            fpn_norm=model.fpn_norm,
            in_chans=model.in_chans,
            backbone_args=model.backbone_args,
            download=download,
            norm_eps=model.norm_eps,
            out_modules=model.out_modules,
            strides=facts.strides,
        )
    except InputError as error:
        raise InputError(f"model.backbone {shortened(model.backbone, 100)!r}: {error}") from error
    except Exception as error:
        if not model.backbone_args:
            raise
        # The arguments come from a recipe, which may say anything; timm raises whatever it runs into.
        cause = f"{type(error).__name__}: {reason(error)}"
        raise InputError(
            f"model.backbone_args: {shortened(model.backbone, 100)!r} cannot be built with them ({cause})"
        ) from error
