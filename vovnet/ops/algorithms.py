"""Which method computes a convolution fastest on a CPU: decided from its shape and the number of threads alone, so that
results repeat.

The costs are those of products on which everything else waits: how many numbers are multiplied, and how many weights
have to come from memory first, which many threads wait for as long as few.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

DIRECT, STRASSEN, WINOGRAD_2, WINOGRAD_4, WINOGRAD_STRIDED = range(5)
"""Methods of ``vovnet::packed_conv``."""
BFLOAT16 = 16
"""The bit of a method that says: products of bfloat16 numbers, added up in float32; maps are bfloat16."""
FLOAT_PRODUCTS = 32
"""A bit beside that one: products are of float32 numbers nevertheless."""

Algorithm = Literal["auto", "direct"]
"""``auto`` takes the fastest algorithm, ``direct`` never Winograd or Strassen."""
Precision = Literal["fp32", "bf16"]
"""Type of the feature maps and of the factors in products; sums are float32."""
ALGORITHMS = get_args(Algorithm)
PRECISIONS = get_args(Precision)

IMAGE_CHANNELS = 16
"""A map of fewer channels is read in any layout, in float32, and rounded to bfloat16 while it is read."""
WEIGHT_COST = 8
"""Tiles that one thread multiplies with a weight in the time that the weight takes to come from memory."""
FLOAT_CHANNELS = 64
SMALL_TILE_CHANNELS = 128
"""Up to how many output channels, of bfloat16 maps, Winograd's products are of float32, and up to how many there is no
F(4×4). Of images all products are of float32. A network's first layers have the fewest channels, and their rounding
errors weigh most, as all others follow: with these limits and the next one the whole network's error is less than that
of PyTorch's own bfloat16 convolutions, though F(4×4) triples a layer's. In float32 it is less than twice PyTorch's
without limits."""
STRASSEN_CHANNELS = {"fp32": 256, "bf16": 512}
"""From how many channels on, of input and output, Strassen's product pays, and its errors do not weigh."""


def conv_method(
    in_channels: int,
    out_channels: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    batch: int,
    height: int,
    width: int,
    algorithm: Algorithm = "auto",
    precision: Precision = "fp32",
    threads: int = 1,
) -> int:
    """The method of a convolution without dilation and groups, with a padding of half its kernel.

    Args:
        in_channels: of the input, or of all inputs of an aggregation.
        out_channels: of the output.
        kernel: height and width.
        stride: of height and width.
        batch: images.
        height: of the output, in pixels.
        width: of the output.
        algorithm: ``direct`` takes no other, and rounds least.
        precision: ``fp32`` or ``bf16``.
        threads: that share the work.
    """
    bit = BFLOAT16 if precision == "bf16" else 0
    wide = bit | FLOAT_PRODUCTS if bit else 0
    if in_channels < IMAGE_CHANNELS:
        return DIRECT + wide
    if algorithm == "direct":
        return DIRECT + bit

    def cost(products: int, side: int) -> int:
        tiles = batch * -(-height // side) * -(-width // side)
        return products * (tiles + WEIGHT_COST * threads)

    if tuple(kernel) == (3, 3) and tuple(stride) == (1, 1):
        small = cost(16, 2) < cost(36, 4)
        if out_channels <= FLOAT_CHANNELS:
            return (WINOGRAD_2 if small else WINOGRAD_4) + wide
        return (WINOGRAD_2 if small or (bit and out_channels <= SMALL_TILE_CHANNELS) else WINOGRAD_4) + bit
    if tuple(kernel) == (3, 3) and tuple(stride) == (2, 2) and not bit and cost(49, 3) < cost(9, 1):
        return WINOGRAD_STRIDED
    large = min(in_channels, out_channels) >= STRASSEN_CHANNELS[precision] and batch * height * width >= 300 * threads
    return (STRASSEN if large and tuple(kernel) == (1, 1) else DIRECT) + bit
