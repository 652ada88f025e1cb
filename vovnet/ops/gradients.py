"""The gradients of a convolution, on a CPU without oneDNN's slow reference implementation."""

from __future__ import annotations

import torch
from torch import Tensor

from vovnet.modules import Geometry

_LIMIT = 2**31
"""Size in bytes from which oneDNN 3.x computes the gradient of a weight by its reference implementation."""


def convolution_backward(
    g: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wants_x: bool, wants_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of a convolution's map and of its weight; None for each that is not wanted.

    If a map on a CPU holds 2 GiB or more, the gradient of the weight is summed over parts of the batch. Otherwise
    oneDNN computes it by its reference implementation if the maps are channels-last: 127 s instead of 0.3 s for a
    3x3 convolution from 64 to 4 channels of 8 images of 1024x1024 on two cores.

    Args:
        g: (N, out channels, H', W'), the gradient of the convolution's output.
        x: (N, C, H, W), the map that was convolved.
        weight: (out channels, C / groups, height, width), of the dtype of ``x``.
        geometry: stride, padding, dilation and groups.
        wants_x: compute the gradient of ``x``.
        wants_weight: compute the gradient of ``weight``.
    """
    parts = _parts(g, x) if wants_weight else 1
    if parts == 1:
        return _backward(g, x, weight, geometry, wants_x, wants_weight)
    d_x, _ = _backward(g, x, weight, geometry, True, False) if wants_x else (None, None)
    d_weight: Tensor | None = None
    for g_part, x_part in zip(g.tensor_split(parts), x.tensor_split(parts), strict=True):
        _, d_part = _backward(g_part, x_part, weight, geometry, False, True)
        d_weight = d_part if d_weight is None or d_part is None else d_weight.add_(d_part)
    return d_x, d_weight


def _backward(
    g: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wants_x: bool, wants_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    stride, padding, dilation, groups = geometry
    wanted = [wants_x, wants_weight, False]
    # No gradient of a bias: convolution_backward may sum it in the map's own dtype.
    d_x, d_weight, _ = torch.ops.aten.convolution_backward(
        g, x, weight, None, stride, padding, dilation, False, [0, 0], groups, wanted
    )
    return d_x if wants_x else None, d_weight if wants_weight else None


def _parts(*maps: Tensor) -> int:
    """Return how many parts of the batch keep every map below the limit, as far as single images allow."""
    largest = max(maps, key=lambda map_: map_.nbytes)
    if largest.device.type != "cpu" or largest.nbytes < _LIMIT:
        return 1
    images_below = max(1, (_LIMIT - 1) // largest[0].nbytes)
    return -(-largest.shape[0] // images_below)
