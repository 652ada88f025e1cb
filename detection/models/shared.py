"""What the builders of all detectors share: sizes, normalisation, anchors, numbers of outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchvision.models.detection.anchor_utils import AnchorGenerator

from vovnet.adapters import FpnBackbone
from vovnet.detection.config.model import ModelRecipe


def image_arguments(model: ModelRecipe, backbone: FpnBackbone) -> dict[str, Any]:
    """Return the arguments with which every detector of torchvision prepares images."""
    return {
        "min_size": model.min_size,
        "max_size": model.max_size,
        "image_mean": list(backbone.mean if model.image_mean is None else model.image_mean),
        "image_std": list(backbone.std if model.image_std is None else model.image_std),
        "_skip_resize": True,
    }


def anchor_generator(sizes: Sequence[Sequence[int]], aspect_ratios: Sequence[float]) -> AnchorGenerator:
    """Return a generator with the sizes in pixels of each level, and the same aspect ratios on every level."""
    return AnchorGenerator(tuple(tuple(level) for level in sizes), (tuple(aspect_ratios),) * len(sizes))


def outputs(model: ModelRecipe) -> int:
    """Return the number of classes with the background, which is class 0."""
    assert model.num_classes is not None  # check_model refuses None
    return model.num_classes + 1
