"""Facts about an ``nn.Module`` that code needs before it replaces the module: hooks, patched methods, geometry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from timm.layers import DropBlock2d, DropPath
from torch import nn

_DROPS = (nn.Identity, nn.Dropout, nn.Dropout2d, DropPath, DropBlock2d)


class Geometry(NamedTuple):
    """The arguments of a 2-d convolution that are not tensors, in the order of ``torch.conv2d``."""

    stride: list[int]  # (height, width)
    padding: list[int]  # zeros on each side, (height, width)
    dilation: list[int]  # (height, width)
    groups: int  # number of channel groups


def conv_geometry(conv: nn.Conv2d) -> Geometry:
    """Return the geometry of a convolution whose padding is given in numbers, not as ``"same"`` or ``"valid"``."""
    assert not isinstance(conv.padding, str)
    return Geometry(to_pair(conv.stride), to_pair(conv.padding), to_pair(conv.dilation), conv.groups)


def to_pair(value: int | Sequence[int]) -> list[int]:
    """Return ``[value, value]`` for an integer, and a list of its elements for a sequence."""
    return [value, value] if isinstance(value, int) else list(value)


def has_hooks(module: nn.Module) -> bool:
    """True if the module has forward or backward hooks, as pruning, weight norm and feature recorders add."""
    before, after = module._forward_pre_hooks, module._forward_hooks
    return bool(before or after or module._backward_pre_hooks or module._backward_hooks)


def has_hooks_or_patched_forward(module: nn.Module) -> bool:
    """True if the module has hooks or its own ``forward`` in ``vars(module)``.

    Such a module must not be replaced: the hook or the patched ``forward`` would no longer run.
    """
    # torch.compile of PyTorch 2.8 does not know vars().
    return "forward" in module.__dict__ or has_hooks(module)


def is_identity_in_eval(module: nn.Module | None) -> bool:
    """True if the module returns its input in evaluation mode and has no hooks; None counts as an identity."""
    if module is None:
        return True
    if has_hooks_or_patched_forward(module):
        return False
    if isinstance(module, nn.Sequential):
        return all(is_identity_in_eval(part) for part in module)
    return type(module) in _DROPS
