"""What the operators share in how torch calls them: autocast, vmap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

Cast = Callable[[Tensor], Tensor]

_LIBRARY = torch.library.Library("vovnet", "FRAGMENT")
"""Registrations end with it."""


def under_autocast(name: str, prepare: Callable[..., tuple[Any, ...]]) -> None:
    """Say what ``torch.autocast`` does to an operator's feature maps.

    Parameters stay in their own type: the operator folds a norm into them first and then lowers them, so that no
    lowered copy is kept.

    Args:
        name: of the operator in the namespace ``vovnet``.
        prepare: a function that lowers a tensor, and the operator's arguments -> the arguments.
    """

    def on(device: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            wanted = torch.get_autocast_dtype(device)

            def cast(x: Tensor) -> Tensor:
                lowers = x.is_floating_point() and x.dtype != torch.float64 and x.device.type == device
                return x.to(wanted) if lowers else x

            with torch.autocast(device, enabled=False):
                return getattr(torch.ops.vovnet, name)(*prepare(cast, *arguments))

        return call

    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        _LIBRARY.impl(name, on(device), key)


def refuse_vmap(op: CustomOpDef) -> None:
    """Let ``torch.vmap`` end in words."""

    @op.register_vmap
    def _(info: Any, in_dims: Any, *arguments: Any) -> Any:
        raise RuntimeError(
            f"torch.vmap over {op._qualname}: expected feature maps (N, C, H, W) without a mapped dimension; put that "
            "dimension into N and call the operator once"
        )


def refuse_second_derivative(op: CustomOpDef) -> None:
    """Let the gradient of a gradient end in words.

    Args:
        op: the operator that computes a gradient.
    """

    def differentiate(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"{op._qualname}: a second derivative is not implemented; take the plain model (without memory_efficient) "
            "where gradients are differentiated again"
        )

    op.register_autograd(differentiate)
