"""Which method computes a convolution fastest on a CPU: decided from its shape alone, so that results repeat.

The costs are those of products on which everything else waits: how many numbers are multiplied, and how many weights
have to come from memory first, which many threads wait for as long as few.
"""

from __future__ import annotations

from collections.abc import Sequence

DIRECT, STRASSEN, WINOGRAD_2, WINOGRAD_4, WINOGRAD_STRIDED = range(5)
"""Methods of ``vovnet::packed_conv``."""
BFLOAT16 = 16
"""The bit of a method that says: products of bfloat16 numbers, added up in float32; maps are bfloat16."""

ALGORITHMS = ("auto", "direct")
PRECISIONS = ("fp32", "bf16")

WEIGHT_COST = 8
"""Tiles that one thread multiplies with a weight in the time that the weight takes to come from memory."""
EXACT_CHANNELS = {"fp32": (0, 0), "bf16": (64, 160)}
"""Up to how many output channels there is no Winograd, and no F(4×4): a network's first layers have the fewest, and
their rounding errors weigh most, as all others follow. In float32 the whole network's error is less than twice that of
PyTorch's own convolutions without such limits; in bfloat16, where F(4×4) triples a layer's, it is less than PyTorch's
with these."""


def conv_method(
    in_channels: int,
    out_channels: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    batch: int,
    height: int,
    width: int,
    algorithm: str = "auto",
    precision: str = "fp32",
    threads: int = 1,
) -> int:
    """The method of a convolution without dilation and groups, with a padding of half its kernel.

    Args:
        in_channels: of the input, or of all inputs of an aggregation.
        out_channels: of the output.
        kernel: height and width.
        stride: of height and width.
        batch: pictures.
        height: of the output, in pixels.
        width: of the output.
        algorithm: ``direct`` takes no other, and rounds least.
        precision: ``fp32`` or ``bf16``.
        threads: that share the work.
    """
    bit = BFLOAT16 if precision == "bf16" else 0
    if algorithm == "direct":
        return DIRECT + bit
    pixels = batch * height * width
    direct_to, two_to = EXACT_CHANNELS[precision]
    if tuple(kernel) == (3, 3) and in_channels >= 16 and out_channels > direct_to:

        def cost(products: int, side: int) -> int:
            tiles = batch * -(-height // side) * -(-width // side)
            return products * (tiles + WEIGHT_COST * threads)

        if tuple(stride) == (1, 1):
            small = out_channels <= two_to or cost(16, 2) < cost(36, 4)
            return (WINOGRAD_2 if small else WINOGRAD_4) + bit
        if tuple(stride) == (2, 2) and precision == "fp32" and cost(49, 3) < cost(9, 1):
            return WINOGRAD_STRIDED
    large = tuple(kernel) == (1, 1) and in_channels >= 256 and out_channels >= 256 and pixels >= 300 * threads
    return STRASSEN if large and precision == "fp32" else DIRECT + bit
