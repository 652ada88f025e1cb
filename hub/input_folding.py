"""Fold the input normalisation of a network into its first convolution and the norm behind it.

A network that was trained on RGB images in 0..1, less ImageNet's mean and over its deviation, then takes other images
(BGR in 0..255 less a mean, for example) and computes the same maps. Only the border differs: the first convolution pads
with zeros, which are the mean of the new input and no longer that of the old one.
"""

from __future__ import annotations

from collections.abc import Mapping

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from vovnet.detection.checkpoints.network_facts import NetworkInput
from vovnet.detection.legacy.transform import PIXEL_MEAN_BGR
from vovnet.errors import InputError

INPUTS = {"bgr255": NetworkInput("bgr", [0.0, 255.0], list(PIXEL_MEAN_BGR), [1.0, 1.0, 1.0])}
"""The values of ``--input``: what ``conventions: legacy`` feeds."""
IMAGENET = NetworkInput("rgb", [0.0, 1.0], list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD))
DETECTRON2 = NetworkInput("bgr", [0.0, 255.0], [103.53, 116.28, 123.675], [1.0, 1.0, 1.0])
"""The input of vovnet-detectron2's networks; ``pixel_mean`` and ``pixel_std`` in a file replace its numbers."""


def named_input(name: str) -> NetworkInput:
    """Return the input that ``--input`` names.

    Raises:
        InputError: There is none of this name.
    """
    if name not in INPUTS:
        raise InputError(f"--input '{name}': expected {' or '.join(INPUTS)}")
    return INPUTS[name]


def fold_input(
    tensors: Mapping[str, Tensor], first_conv: str, source: NetworkInput, target: NetworkInput
) -> dict[str, Tensor]:
    """Return the tensors of a network that takes ``target`` and computes what the given one computes of ``source``.

    Each weight of the first convolution is scaled, and its channels are reordered. What the means add to each output
    is a constant inside the image. It is subtracted from the norm's running mean, which is right for a frozen norm and
    for one that trains: a norm that trains subtracts the mean of its batch, and its running mean follows the outputs.
    The arithmetic is in float64; each tensor keeps its type.

    Args:
        tensors: The network's state dict. Its first convolution has no bias, and a batch norm follows it.
        first_conv: The convolution's name, as in timm's ``pretrained_cfg``: ``conv1`` is followed by ``bn1``,
            ``stem.0.conv`` by ``stem.0.bn``.
        source: The input of the network.
        target: The input of the result.
    """
    parent, dot, leaf = first_conv.rpartition(".")
    weight_key, mean_key = f"{first_conv}.weight", f"{parent}{dot}{leaf.replace('conv', 'bn')}.running_mean"
    weight = tensors[weight_key].double()
    folded, constant = weight.clone(), weight.new_zeros(len(weight))
    for position, channel in enumerate(target.channel_order):
        old = source.channel_order.index(channel)
        (low, high), (new_low, new_high) = source.range, target.range
        units = (high - low) / (new_high - new_low)
        folded[:, position] = weight[:, old] * (target.std[position] * units / source.std[old])
        at_zero = low + (target.mean[position] - new_low) * units  # the old pixel value where the new input is 0
        constant += weight[:, old].sum(dim=(1, 2)) * ((at_zero - source.mean[old]) / source.std[old])
    mean = tensors[mean_key]
    return {
        **tensors,
        weight_key: folded.to(tensors[weight_key].dtype),
        mean_key: (mean.double() - constant).to(mean.dtype),
    }
