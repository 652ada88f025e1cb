"""What the torchvision-style builders share: registration with torchvision, published weights, checks of arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torchvision
from torch import nn
from torchvision.models._api import register_model

from vovnet.detection.config.detectors import DETECTORS
from vovnet.detection.config.loading import load_recipe
from vovnet.detection.config.model import SETTINGS
from vovnet.detection.zoo.weights import PublishedWeights, build_published
from vovnet.errors import InputError, did_you_mean

LEGACY_OUTPUTS = 81
"""Outputs of maskrcnn-benchmark's detectors, which number COCO's 80 categories without gaps."""

_FREE = SETTINGS | {"trainable_stages"}
"""Fields of a model recipe that may be changed for published weights. Most are also torchvision's arguments."""


def offer(name: str, build: Callable[..., nn.Module], weights: type[PublishedWeights]) -> None:
    """Register a builder and its weights with torchvision."""
    build.__name__ = build.__qualname__ = name
    build.__annotations__["weights"] = weights | str | None  # get_model_weights reads it
    register_model(name)(build)
    setattr(torchvision.models.detection, weights.__name__, weights)  # get_weight finds it there


def refuse_unknown(name: str, settings: dict[str, Any], known: set[str]) -> None:
    """Refuse arguments that nothing would read.

    Raises:
        TypeError: An argument is unknown.
    """
    for key in settings:
        if key not in known:
            hint = did_you_mean(key, sorted(known))
            raise TypeError(f"{name} has no argument {key!r}; {hint}".rstrip("; "))


def with_weights(
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
    if model["extra_level"] == "auto" != settings.get("extra_level"):
        model["extra_level"] = DETECTORS[model["detector"]].extra_level
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
