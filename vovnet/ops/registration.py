"""Shared parts of the operators: autograd's context, autocast, vmap, second derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, Protocol

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

LIBRARY = torch.library.Library("vovnet", "FRAGMENT")
"""Keeps the registrations alive: they end with this object."""


class AutogradContext(Protocol):
    """The part of ``torch.autograd.function.FunctionCtx`` that the operators use."""

    @property
    def saved_tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors given to :meth:`save_for_backward`."""
        ...

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep tensors for the backward pass."""
        ...

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        """Declare outputs that have no gradient."""
        ...


def register_autocast(name: str, prepare: Callable[..., tuple[object, ...]]) -> None:
    """Register what an operator does under ``torch.autocast``: it casts its feature maps.

    Parameters keep their dtype. The operator first folds a norm into them and then casts the result, so no cast copy
    has to be kept for the backward pass.

    Args:
        name: the operator's name in the namespace ``vovnet``.
        prepare: gets a function that casts a tensor, followed by the operator's arguments; returns the arguments.
    """

    def on(device: str) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            dtype = torch.get_autocast_dtype(device)

            def cast(x: Tensor) -> Tensor:
                casts = x.is_floating_point() and x.dtype != torch.float64 and x.device.type == device
                return x.to(dtype) if casts else x

            with torch.autocast(device, enabled=False):
                return getattr(torch.ops.vovnet, name)(*prepare(cast, *arguments))

        return call

    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA"), ("mps", "AutocastMPS")):
        LIBRARY.impl(name, on(device), key)


def refuse_vmap(op: CustomOpDef) -> None:
    """Make ``torch.vmap`` over the operator raise an error that says what to do instead."""

    @op.register_vmap
    def _(info: object, in_dims: object, *arguments: object) -> NoReturn:
        raise RuntimeError(
            f"torch.vmap over {op._qualname}: expected feature maps (N, C, H, W) without a mapped dimension; put that "
            "dimension into N and call the operator once"
        )


def refuse_second_derivative(op: CustomOpDef) -> None:
    """Make the gradient of ``op``, itself a gradient, raise an error that says what to do instead."""

    def differentiate(ctx: object, *grads: object) -> NoReturn:
        raise RuntimeError(
            f"{op._qualname}: a second derivative is not implemented; take the plain model (without memory_efficient) "
            "where gradients are differentiated again"
        )

    op.register_autograd(differentiate)
