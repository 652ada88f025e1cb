"""Facts in the ``config.json`` of a timm folder that decide whether a detector can start from it.

timm's ``pretrained_cfg`` can only describe RGB images in 0..1, and nothing in it tells where the blocks of a ResNet
have their stride. ``vovnet convert`` adds three keys that timm ignores: ``preprocessing``, ``norm_eps`` and
``stride_in_1x1``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from vovnet.detection.config.conventions import CONVENTIONS, ConventionName
from vovnet.detection.config.fields import Flag, Number
from vovnet.detection.config.parts import recipe_part, validate
from vovnet.errors import InputError

_Three = Annotated[list[Number], Field(min_length=3, max_length=3)]
_Positive = Annotated[Number, Field(gt=0)]
_OLD_NOTE = "BGR pixels in 0..255"
_SAME = 1e-3
"""Largest difference of two means or deviations that are the same."""


@recipe_part("preprocessing")
class NetworkInput:
    """The images that a network takes, in the terms of a detector's ``preprocessing``."""

    channel_order: Literal["rgb", "bgr"]
    range: Annotated[list[Number], Field(min_length=2, max_length=2)]
    """Lowest and highest pixel value before the mean is subtracted."""
    mean: _Three
    """Mean of each channel, in the channels' order and the range's units."""
    std: Annotated[list[_Positive], Field(min_length=3, max_length=3)]
    """Standard deviation of each channel, likewise."""

    @property
    def images(self) -> str:
        """Return the images before normalisation as text, such as ``BGR images in 0..255``."""
        return _images(self.channel_order, self.range)

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:.7g}" for value in values) for values in (self.mean, self.std))
        return f"{self.images} less ({mean}), over ({std})"


@recipe_part("")
class NetworkFacts:
    """The keys beside timm's. A folder without them holds a network as timm trains it."""

    preprocessing: NetworkInput | None = None
    """The input; null is RGB in 0..1 with the mean and deviation of ``pretrained_cfg``."""
    norm_eps: Annotated[Number, Field(ge=0, le=1)] | None = None
    """The epsilon of the batch norms that the network was trained with; null leaves a detector its own."""
    stride_in_1x1: Flag | None = None
    """Where a ResNet has its strides, as in a recipe; null is where timm's network of this name has them."""

    def to_json(self) -> dict[str, Any]:
        """Return the keys for ``config.json``, without those that are null."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


def read_facts(config: Mapping[str, Any], path: Path) -> NetworkFacts:
    """Return the facts in timm's ``config.json``.

    Raises:
        InputError: A value has another type or is out of bounds; or an earlier version wrote the folder and told the
            input in a note alone.
    """
    names = [field.name for field in dataclasses.fields(NetworkFacts)]
    cfg = config.get("pretrained_cfg")
    notes = cfg.get("notes") if isinstance(cfg, Mapping) else None
    if config.get("preprocessing") is None and isinstance(notes, list) and any(_OLD_NOTE in str(n) for n in notes):
        raise InputError(
            f"{path}: an earlier version converted these weights and noted only in words that they are for BGR images "
            "in 0..255; convert the published file again, with vovnet convert FILE OUT"
        )
    return validate(NetworkFacts, {name: config[name] for name in names if name in config}, str(path))


def check_start(facts: NetworkFacts, detector: Any, conventions: ConventionName, name: str) -> None:
    """Check that a detector feeds its backbone the images that the weights expect, and has its strides where they do.

    Args:
        facts: The facts about the weights.
        detector: The detector that is about to receive them.
        conventions: Its conventions.
        name: The name of the weights' folder, for messages.

    Raises:
        InputError: The images or the strides differ; the message says how to mend it.
    """
    _check_input(facts.preprocessing, detector.transform, conventions, name)
    theirs = facts.stride_in_1x1 if facts.stride_in_1x1 is not None else False
    check_strides(theirs, detector, name)


def _check_input(given: NetworkInput | None, transform: Any, conventions: ConventionName, name: str) -> None:
    fed = CONVENTIONS[conventions]
    order, limits = ("rgb", [0.0, 1.0]) if given is None else (given.channel_order, given.range)
    if (order, *limits) != (fed.channel_order, *fed.value_range):
        mend = (
            f"fold the input into them: vovnet convert {name} OUT --input bgr255, and init=OUT"
            if conventions == "legacy"
            else "train with model.conventions=legacy"
        )
        raise InputError(
            f"init: the weights of '{name}' are for {_images(order, limits)}, and conventions: {conventions} feeds "
            f"{_images(fed.channel_order, fed.value_range)}; {mend}"
        )
    if given is not None and not (_same(given.mean, transform.image_mean) and _same(given.std, transform.image_std)):
        raise InputError(
            f"init: the weights of '{name}' are for {given}, and this recipe subtracts {list(transform.image_mean)} "
            f"and divides by {list(transform.image_std)}; give 'model.image_mean={given.mean}' "
            f"'model.image_std={given.std}'"
        )


def check_strides(in_1x1: bool, detector: Any, name: str) -> None:
    """Check where the blocks of a ResNet have their strides; a detector with another backbone passes.

    Args:
        in_1x1: True if the weights are of a network with the strides in the first 1×1 convolution.
        detector: The detector that is about to receive them.
        name: The name of the weights, for messages.

    Raises:
        InputError: The detector has them in the other convolution.
    """
    strides = {
        first.stride > second.stride
        for first, second in bottlenecks(detector.backbone.body)
        if first.stride != second.stride
    }
    if strides and strides != {in_1x1}:
        places = {True: "first 1×1", False: "3×3"}
        value = "true (or leave it out)" if in_1x1 else "false"
        raise InputError(
            f"init: '{name}' has the strides of its blocks in the {places[in_1x1]} convolution and this detector in "
            f"the {places[not in_1x1]}, which computes other maps; give model.stride_in_1x1={value} with "
            "conventions: legacy"
        )


def bottlenecks(body: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.Conv2d]]:
    """Yield the first two convolutions, 1×1 and 3×3, of each block of three in a ResNet; other networks have none."""
    for module in body.modules():
        first, second = getattr(module, "conv1", None), getattr(module, "conv2", None)
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d) and hasattr(module, "conv3"):
            yield first, second


def _images(order: str, limits: Any) -> str:
    return f"{order.upper()} images in {limits[0]:g}..{limits[1]:g}"


def _same(first: Any, second: Any) -> bool:
    return len(first) == len(second) and all(abs(a - b) <= _SAME for a, b in zip(first, second, strict=True))
