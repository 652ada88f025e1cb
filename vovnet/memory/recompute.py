"""Layers that keep less for the backward pass than autograd would, and compute some activations again.

An activation may have a :class:`Recompute`: a function and the tensors that it is computed from again. A layer that
takes such an activation keeps these tensors, which other layers keep anyway, and not the activation. Everything that is
kept goes through autograd's ``save_for_backward``, so checkpointing and saved-tensor hooks work as usual.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils.weak import WeakTensorKeyDictionary

from vovnet.modules import Geometry
from vovnet.ops.registration import AutogradContext
from vovnet.ops.relu_mask import format_of, pack_positive


class Recompute(NamedTuple):
    """How to compute an activation again: ``compute(*tensors)``."""

    compute: Callable[..., Tensor]
    tensors: tuple[Tensor | None, ...]


class Affine(NamedTuple):
    """A norm with fixed statistics and the ReLU behind it: ``relu?(x · scale + shift)``."""

    scale: Tensor  # (channels,)
    shift: Tensor  # (channels,)
    relu: bool  # True if a ReLU follows


_recomputes: MutableMapping[Tensor, tuple[Recompute, int]] = WeakTensorKeyDictionary()
"""Activation → its recompute, and the activation's version at that time.

This is no attribute of the tensor, because attributes are pickled with it.
"""


def set_recompute(x: Tensor, recompute: Recompute) -> Tensor:
    """Let the layers that take ``x`` next compute it again instead of keeping it; return ``x``."""
    _recomputes[x] = recompute, x._version
    return x


def recompute_of(x: Tensor) -> Recompute | None:
    """Return the recompute of an activation; None if it has none or was changed in place since."""
    if torch.compiler.is_compiling() or x not in _recomputes:
        return None
    recompute, version = _recomputes[x]
    return recompute if version == x._version else None


def _register_consumer(x: Tensor, recompute: Recompute | None) -> Recompute:
    """Return what a layer that takes ``x`` keeps of it."""
    if recompute is None:
        return Recompute(_identity, (x.detach(),))
    if isinstance(recompute.compute, _RecomputedNorm):
        recompute.compute.consumers += 1
    return recompute


def cast_for_autocast(x: Tensor) -> Tensor:
    """Return the tensor in autocast's dtype if autocast is on; its recompute gives the same dtype."""
    device = x.device.type
    if not _knows_autocast(device) or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device)) if x.is_floating_point() and x.dtype != torch.float64 else x


def _knows_autocast(device: str) -> bool:
    return device != "meta"  # not is_autocast_available, which PyTorch 2.8 cannot compile


def _without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Turn autocast off for tensors on the device of ``x``."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if _knows_autocast(device) else nullcontext()


def conv_affine(x: Tensor, weight: Tensor, geometry: Geometry, affine: Affine | None, *, recompute: bool) -> Tensor:
    """Compute a convolution, a fixed norm and a ReLU; keep the input (or its recompute) and the output.

    Args:
        x: (N, C, H, W).
        weight: (out channels, C / groups, height, width).
        geometry: of the convolution.
        affine: None for the convolution alone.
        recompute: let the output be computed again from the input and this layer. This layer then keeps one bit per
            element of it.
    """
    x = cast_for_autocast(x)
    scale, shift, relu = affine or (None, None, False)
    weight = weight if scale is None else weight.to(scale.dtype)  # of half-precision models with float32 norms
    source = recompute_of(x)
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not (recompute or source):
        return torch.ops.vovnet.conv_affine_relu(x, weight, scale, shift, *geometry, relu)
    source = _register_consumer(x, source)
    out: Tensor = _Conv.apply(x, weight, scale, shift, geometry, relu, source, recompute)
    if recompute:
        compute_input, count = source.compute, len(source.tensors)  # the closure holds no tensor: autograd keeps them

        def compute(*tensors: Tensor) -> Tensor:
            again, *layer = compute_input(*tensors[:count]), *tensors[count:]
            return torch.ops.vovnet.conv_affine_relu(again, *layer, *geometry, relu)

        layer = (weight.detach(), *(None if value is None else value.detach() for value in (scale, shift)))
        set_recompute(out, Recompute(compute, (*source.tensors, *layer)))
    return out


def aggregate_features(
    features: Sequence[Tensor], weight: Tensor, affine: Affine | None, residual: Tensor | None = None
) -> Tensor:
    """Compute :func:`vovnet.ops.osa_aggregate` with a fixed norm; keep the features, or what they are computed from.

    Args:
        features: (N, Cᵢ, H, W).
        weight: (out channels, ΣCᵢ, 1, 1).
        affine: None for the products alone.
        residual: (N, out channels, H, W), added after the ReLU.
    """
    features = [cast_for_autocast(x) for x in features]
    residual = None if residual is None else cast_for_autocast(residual)
    scale, shift, relu = affine or (None, None, False)
    weight = weight if scale is None else weight.to(scale.dtype)  # of half-precision models with float32 norms
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        folded = _folded(weight, scale)
        return torch.ops.vovnet.osa_aggregate(features, folded, shift, residual, relu, torch.is_grad_enabled())[0]
    sources = [_register_consumer(x, recompute_of(x)) for x in features]
    out: Tensor = _Aggregate.apply(weight, scale, shift, residual, relu, sources, *features)
    return out


def norm_relu(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    *,
    relu: bool,
) -> Tensor:
    """Compute batch norm with the batch's statistics and a ReLU; keep only the input, from which to compute the output.

    Arguments and errors are those of ``torch.nn.functional.batch_norm``. The running statistics are updated in place.
    """
    if x.numel() == x.shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
    again = _RecomputedNorm(eps, relu)
    out, mean, invstd = _Norm.apply(x, weight, bias, running_mean, running_var, momentum, again)
    if not torch.is_grad_enabled():
        return out
    tensors = (x.detach(), mean, invstd, *(None if value is None else value.detach() for value in (weight, bias)))
    return set_recompute(out, Recompute(again, tensors))


def _identity(x: Tensor) -> Tensor:
    return x


def _folded(weight: Tensor, scale: Tensor | None) -> Tensor:
    """Return the convolution's weight with the norm's scale in it."""
    return weight if scale is None else weight * scale[:, None, None, None]


class _Context(AutogradContext, Protocol):
    needs_input_grad: tuple[bool, ...]


class _ConvContext(_Context, Protocol):
    compute_input: Callable[..., Tensor]
    geometry: Geometry


class _Conv(Function):
    @staticmethod
    def forward(
        ctx: _ConvContext,
        x: Tensor,
        weight: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        geometry: Geometry,
        relu: bool,
        source: Recompute,
        keep_mask: bool,
    ) -> Tensor:
        with _without_autocast(x):
            out: Tensor = torch.ops.vovnet.conv_affine_relu(x, weight, scale, shift, *geometry, relu)
        output_or_mask = None if not relu else pack_positive(out) if keep_mask else out
        ctx.compute_input, ctx.geometry = source.compute, geometry
        ctx.save_for_backward(weight, scale, output_or_mask, *source.tensors)
        return out

    @staticmethod
    def backward(ctx: _ConvContext, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale, output_or_mask, *tensors = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:4])
        with _without_autocast(grad):
            x = ctx.compute_input(*tensors)
            gradients = torch.ops.vovnet.conv_affine_relu_backward(
                grad, output_or_mask, x, weight, scale, *ctx.geometry, wanted
            )
        return *(g if want else None for g, want in zip(gradients, wanted, strict=True)), None, None, None, None


class _AggregateContext(_Context, Protocol):
    computes: list[tuple[Callable[..., Tensor], int]]
    """The function that computes each feature, and the number of tensors that it takes."""


class _Aggregate(Function):
    @staticmethod
    def forward(
        ctx: _AggregateContext,
        weight: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        residual: Tensor | None,
        relu: bool,
        sources: Sequence[Recompute],
        *features: Tensor,
    ) -> Tensor:
        with _without_autocast(weight):
            out, mask = torch.ops.vovnet.osa_aggregate(
                list(features), _folded(weight, scale), shift, residual, relu, relu
            )
        ctx.computes = [(source.compute, len(source.tensors)) for source in sources]
        ctx.save_for_backward(weight, scale, mask if relu else None, *(t for s in sources for t in s.tensors))
        return out

    @staticmethod
    def backward(ctx: _AggregateContext, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale, mask, *tensors = ctx.saved_tensors
        assert weight is not None
        wants_weight, wants_scale, wants_shift, wants_residual, _, _, *wanted = ctx.needs_input_grad
        rest = iter(tensors)
        with _without_autocast(grad):
            features = [compute(*(next(rest) for _ in range(count))) for compute, count in ctx.computes]
            d_features, d_folded, d_shift = torch.ops.vovnet.osa_aggregate_backward(
                grad, mask, features, _folded(weight, scale), wanted, wants_weight or wants_scale, wants_shift
            )
            d_scale = (d_folded * weight).sum((1, 2, 3)) if wants_scale else None
            d_weight = _folded(d_folded, scale) if wants_weight else None
        d_parameters = d_weight, d_scale, d_shift if wants_shift else None, grad if wants_residual else None
        return *d_parameters, None, None, *(d if want else None for d, want in zip(d_features, wanted, strict=True))


class _RecomputedNorm:
    """Computes a norm's output again, once in a backward pass for all its consumers, and frees it after the last one.

    The consumers are the layers that took the output, and the gradient of the norm's own ReLU.
    """

    def __init__(self, eps: float, relu: bool) -> None:
        self.eps = eps
        self.relu = relu
        self.consumers = int(relu)
        self._left = 0
        self._result: Tensor | None = None

    def __call__(self, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        result = self._result
        if result is None:
            variance = invstd.square().reciprocal_().sub_(self.eps)
            result = torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, self.eps)[0]
            if self.relu:
                result.relu_()
            self._left = self.consumers
        self._left -= 1
        self._result = result if self._left > 0 else None
        return result


class _NormContext(_Context, Protocol):
    again: _RecomputedNorm

    @property
    def saved_tensors(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:
        """Input, weight, bias, mean, and 1 / standard deviation."""
        ...


class _Norm(Function):
    @staticmethod
    def forward(
        ctx: _NormContext,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        again: _RecomputedNorm,
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, mean, invstd = torch.native_batch_norm(
            x, weight, bias, running_mean, running_var, True, momentum, again.eps
        )
        if again.relu:
            out.relu_()
        ctx.again = again
        ctx.save_for_backward(x, weight, bias, mean, invstd)
        ctx.mark_non_differentiable(mean, invstd)
        return out, mean, invstd

    @staticmethod
    def backward(ctx: _NormContext, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, invstd = ctx.saved_tensors
        grad = grad.contiguous(memory_format=format_of(x))
        if ctx.again.relu:
            grad = torch.ops.aten.threshold_backward(grad, ctx.again(x, mean, invstd, weight, bias), 0)
        wanted = list(ctx.needs_input_grad[:3])
        gradients = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, invstd, True, ctx.again.eps, wanted
        )
        return *(g if want else None for g, want in zip(gradients, wanted, strict=True)), *[None] * 4
