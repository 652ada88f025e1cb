"""Check that a timm model gives the feature maps that its metadata promises."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from vovnet.adapters.features import Features
from vovnet.errors import InputError

_IMAGES = ((2, 3), (9, 11))
"""Height and width of the images, in strides of the deepest map.

The first is quick. The second is for models whose unpadded convolutions leave nothing of the first. Its sides are
multiples of no larger stride, because detectors only pad to multiples of 32.
"""


def verify_features(features: Features) -> None:
    """Run a small black image, which is not square, through the network; compare the maps with timm's metadata.

    The network's modes and statistics do not change. A map may be a little smaller than image / stride, because of
    convolutions without padding, if torchvision's pooling still rounds its scale to the stride.

    Raises:
        InputError: the network takes only images of its own size, or its maps have other channels or strides.
    """
    step = max(32, *features.strides)
    failures: list[Exception] = []
    for rows, columns in _IMAGES:
        height, width = rows * step, columns * step
        try:
            maps = _quiet_forward(features.net, features.in_chans, height, width)
        except Exception as error:
            failures.append(error)
            continue
        _compare(features, maps, height, width)
        return
    height, width = (n * step for n in _IMAGES[0])
    reason = " ".join(f"{type(failures[0]).__name__} {failures[0]}".split())[:200]
    raise InputError(
        f"{features.name} cannot take a {height}×{width} image, and a detector's have many sizes ({reason}); "
        "some timm models take any size with backbone_args {'strict_img_size': False} or {'dynamic_img_size': True}"
    ) from failures[0]


def _quiet_forward(net: nn.Module, in_chans: int, height: int, width: int) -> Any:
    """Run a black image in evaluation mode; restore the modes."""
    parameter = next(net.parameters())
    image = torch.zeros(1, in_chans, height, width, device=parameter.device, dtype=parameter.dtype)
    training = {module: module.training for module in net.modules()}
    net.eval()
    try:
        with torch.no_grad():
            return net(image)
    finally:
        for module, mode in training.items():
            module.training = mode


def _compare(features: Features, maps: Any, height: int, width: int) -> None:
    if not isinstance(maps, list):
        raise InputError(f"{features.name} returns a {type(maps).__name__}, not a list of maps; drop its feature_cls")
    for position, channels, stride in zip(features.positions, features.channels, features.strides, strict=True):
        shape = tuple(maps[position].shape)
        if features.channels_last:
            shape = (shape[0], shape[3], shape[1], shape[2])
        scales = [round(math.log2(side / found)) for side, found in zip((height, width), shape[2:], strict=True)]
        if shape[:2] != (1, channels) or scales != [round(math.log2(stride))] * 2:
            raise InputError(
                f"{features.name} says that a {height}×{width} image gives a feature map of {channels} channels with "
                f"stride {stride}, but it gives {shape}: its feature_info is wrong, or it is not fit for a pyramid"
            )
