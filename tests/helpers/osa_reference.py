"""The reference for the operators: PyTorch's concatenation, convolution, norm and ReLU; and unusual layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

Geometry = tuple[int | tuple[int, int], int | tuple[int, int], int | tuple[int, int], int]
"""Stride, padding, dilation, groups."""


def aggregate(
    inputs: Sequence[Tensor], weight: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool
) -> Tensor:
    out = F.conv2d(torch.cat(list(inputs), 1), weight, bias)
    out = F.relu(out) if relu else out
    return out if residual is None else out + residual


def convolution(
    x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None, geometry: Geometry, relu: bool
) -> Tensor:
    """Compute the convolution and then the norm, which is not folded."""
    out = F.conv2d(x, weight, None, *geometry)
    out = out if scale is None else out * scale.view(1, -1, 1, 1)
    out = out if shift is None else out + shift.view(1, -1, 1, 1)
    return F.relu(out) if relu else out


def _contiguous(values: Tensor) -> Tensor:
    return values.clone(memory_format=torch.contiguous_format)


def _channels_last(values: Tensor) -> Tensor:
    return values.clone(memory_format=torch.channels_last)


def _sliced(values: Tensor) -> Tensor:
    """Return the values as every second channel, row and column of a larger tensor."""
    n, c, h, w = values.shape
    view = values.new_full((n + 1, 2 * c + 1, 2 * h, 2 * w + 1), 7)[1:, 1::2, ::2, 1::2]
    return view.copy_(values)


def _misaligned(values: Tensor) -> Tensor:
    """Return the values contiguous, but not aligned to 16 bytes."""
    view = values.new_empty(values.numel() + 1)[1:].view(values.shape)
    return view.copy_(values)


def _misaligned_last(values: Tensor) -> Tensor:
    n, c, h, w = values.shape
    view = values.new_empty(values.numel() + 1)[1:].view(n, h, w, c).permute(0, 3, 1, 2)
    return view.copy_(values)


def _turned(values: Tensor) -> Tensor:
    """Return the values with height and width exchanged in memory."""
    return values.transpose(2, 3).contiguous().transpose(2, 3)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": _contiguous,
    "channels-last": _channels_last,
    "sliced": _sliced,
    "misaligned": _misaligned,
    "misaligned channels-last": _misaligned_last,
    "turned": _turned,
}
"""``LAYOUTS[name](values)`` returns a copy of the values in this layout."""


def leaf(values: Tensor, layout: str = "contiguous", grad: bool = True) -> Tensor:
    return LAYOUTS[layout](values.detach()).requires_grad_(grad)


def draw(shape: Sequence[int], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return standard normal numbers, equal for equal arguments."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@contextmanager
def kept_bytes() -> Iterator[dict[int, int]]:
    """Record the storages that autograd keeps: address -> bytes."""
    kept: dict[int, int] = {}
    tensors = []  # an address would be given again to the next tensor if one died

    def pack(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        storage = tensor.untyped_storage()
        if storage.nbytes():
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def storages(*tensors: Tensor | None) -> dict[int, int]:
    """Return the storages of the given tensors: address -> bytes."""
    present = (tensor.untyped_storage() for tensor in tensors if tensor is not None)
    return {storage.data_ptr(): storage.nbytes() for storage in present if storage.nbytes()}


def largest_error(got: Tensor, exact: Tensor) -> float:
    """Return the largest error relative to the rms of the exact values, or absolute if these are all zeros."""
    got, exact = got.detach().double(), exact.detach().double()
    return float((got - exact).abs().max()) / (float(exact.square().mean().sqrt()) or 1.0)
