"""Choose the algorithm that computes a convolution fastest on a CPU.

The choice depends on the convolution's shape and the number of threads alone, so results repeat.

Cost model: the number of multiplications, plus loading the packed weights once. Loading does not get faster with more
threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

DIRECT, WINOGRAD_2, WINOGRAD_4, WINOGRAD_STRIDED = range(4)
"""Methods of ``vovnet::packed_conv``."""
BFLOAT16 = 16
"""Flag of a method: maps are bfloat16, and bfloat16 numbers are multiplied and summed in float32."""
FLOAT_PRODUCTS = 32
"""Flag beside :data:`BFLOAT16`: float32 numbers are multiplied nevertheless."""

Algorithm = Literal["auto", "direct"]
"""``auto`` takes the fastest algorithm, ``direct`` never Winograd's transforms, and so rounds least."""
Precision = Literal["fp32", "bf16"]
"""Type of the feature maps and of the factors in products; sums are float32."""
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

IMAGE_CHANNELS = 16
"""A map with fewer channels is read in any layout, in float32, and rounded to bfloat16 while it is read."""
WEIGHT_COST = 8
"""Number of tiles that one thread multiplies with a weight in the time that loading the weight takes."""
FLOAT_CHANNELS = 64
"""With bfloat16 maps, Winograd layers of at most so many output channels multiply float32 numbers.

A network's first layers have the fewest channels, and their rounding errors matter most because all other layers
follow. With this limit and the next one, the error of the whole network is smaller than that of PyTorch's own bfloat16
convolutions, although F(4×4) triples a layer's error. In float32 the error is less than twice PyTorch's without limits.
"""
SMALL_TILE_CHANNELS = 128
"""With bfloat16 maps, layers of at most so many output channels do not use F(4×4)."""


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
    """Return the method for a convolution without dilation and groups, whose padding is half its kernel.

    ``in_channels`` counts all inputs of an aggregation together. ``height`` and ``width`` are those of the output in
    pixels. ``threads`` share the work.
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
    return DIRECT + bit
