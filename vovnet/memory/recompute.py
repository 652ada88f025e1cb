"""Layers that keep less for the backward pass than autograd would, and compute some of it again.

An activation may come with its :class:`Source`: what it can be computed from. Layers that take it then keep the
tensors of the source, which something else keeps anyway, instead of the activation. All that is kept goes through
autograd's ``save_for_backward``, so that checkpointing and saved-tensor hooks see it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils.weak import WeakTensorKeyDictionary

from vovnet.modules import Geometry
from vovnet.ops.relu_mask import format_of, pack_positive

_sources: Any = WeakTensorKeyDictionary()
"""An activation -> its source and its version then. No attribute of it: it would be pickled along."""


class Source(NamedTuple):
    """What an activation can be computed from again: ``compute(*tensors)``."""

    compute: Callable[..., Tensor]
    tensors: tuple[Tensor | None, ...]


class Affine(NamedTuple):
    """A norm with fixed statistics, and what follows it: ``relu?(x · scale + shift)``."""

    scale: Tensor
    shift: Tensor
    relu: bool


def give_source(x: Tensor, source: Source) -> Tensor:
    """Let ``x`` be computed again instead of kept, by whatever takes it next."""
    _sources[x] = source, x._version
    return x


def source_of(x: Tensor) -> Source | None:
    """The source of an activation that has one and was not changed since."""
    if torch.compiler.is_compiling() or x not in _sources:
        return None
    source, version = _sources[x]
    return source if version == x._version else None


def _asked(source: Source | None, x: Tensor) -> Source:
    """What a layer that takes ``x`` keeps of it."""
    if source is None:
        return Source(_identity, (x.detach(),))
    if isinstance(source.compute, _NormAgain):
        source.compute.askers += 1
    return source


def lowered(x: Tensor) -> Tensor:
    """The tensor in autocast's type, where autocast is on; its source's result follows."""
    device = x.device.type
    if (
        not _knows_autocast(device)
        or not torch.is_autocast_enabled(device)
        or not x.is_floating_point()
        or x.dtype == torch.float64
    ):
        return x
    wanted = torch.get_autocast_dtype(device)
    return x if x.dtype == wanted else x.to(wanted)


def _knows_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)  # not on "meta"


def _exactly(x: Tensor) -> AbstractContextManager[Any]:
    """Autocast off, for tensors on the device of ``x``."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if _knows_autocast(device) else nullcontext()


def conv_affine(x: Tensor, weight: Tensor, geometry: Geometry, affine: Affine | None, *, recompute: bool) -> Tensor:
    """A convolution, a fixed norm and a ReLU; keeps its input (or the input's source) and its output.

    Args:
        x: (N, C, H, W).
        weight: (out channels, C / groups, height, width).
        geometry: of the convolution.
        affine: None for the convolution alone.
        recompute: give the output a source: the input's and this layer. It is then not kept here either, but a bit an
            element of it.
    """
    x = lowered(x)
    scale, shift, relu = affine or (None, None, False)
    weight = weight if scale is None else weight.to(scale.dtype)  # of lowered models whose norms are not
    source = source_of(x)
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not (recompute or source):
        return torch.ops.vovnet.conv_affine_relu(x, weight, scale, shift, *geometry, relu)
    source = _asked(source, x)
    out: Tensor = _Conv.apply(x, weight, scale, shift, geometry, relu, source, recompute)
    if recompute:
        compute_input, count = source.compute, len(source.tensors)  # of the source no tensor: autograd keeps those

        def compute(*tensors: Tensor) -> Tensor:
            again, *layer = compute_input(*tensors[:count]), *tensors[count:]
            return torch.ops.vovnet.conv_affine_relu(again, *layer, *geometry, relu)

        layer = (weight.detach(), *(None if value is None else value.detach() for value in (scale, shift)))
        give_source(out, Source(compute, (*source.tensors, *layer)))
    return out


def aggregate_features(
    features: Sequence[Tensor], weight: Tensor, affine: Affine | None, residual: Tensor | None = None
) -> Tensor:
    """:func:`vovnet.ops.osa_aggregate` with a fixed norm, over features or, where they have them, their sources."""
    features = [lowered(x) for x in features]
    residual = None if residual is None else lowered(residual)
    scale, shift, relu = affine or (None, None, False)
    weight = weight if scale is None else weight.to(scale.dtype)  # of lowered models whose norms are not
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        folded = _folded(weight, scale)
        return torch.ops.vovnet.osa_aggregate(features, folded, shift, residual, relu, torch.is_grad_enabled())[0]
    sources = [_asked(source_of(x), x) for x in features]
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
    """Batch norm by the batch's statistics and a ReLU; keeps its input alone, from which its output has its source.

    Args and errors as of ``torch.nn.functional.batch_norm``; the running statistics are updated in place.
    """
    if x.numel() == x.shape[1]:  # as torch.nn.functional.batch_norm
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
    again = _NormAgain(eps, relu)
    out, mean, invstd = _Norm.apply(x, weight, bias, running_mean, running_var, momentum, again)
    if not torch.is_grad_enabled():
        return out
    tensors = (x.detach(), mean, invstd, *(None if value is None else value.detach() for value in (weight, bias)))
    return give_source(out, Source(again, tensors))


def _identity(x: Tensor) -> Tensor:
    return x


def _folded(weight: Tensor, scale: Tensor | None) -> Tensor:
    return weight if scale is None else weight * scale[:, None, None, None]


class _Conv(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        geometry: Geometry,
        relu: bool,
        source: Source,
        keep_bits: bool,
    ) -> Tensor:
        with _exactly(x):
            out: Tensor = torch.ops.vovnet.conv_affine_relu(x, weight, scale, shift, *geometry, relu)
        kept = None if not relu else pack_positive(out) if keep_bits else out
        ctx.compute, ctx.geometry = source.compute, geometry
        ctx.save_for_backward(weight, scale, kept, *source.tensors)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        weight, scale, kept, *tensors = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:4])
        with _exactly(grad):
            x = ctx.compute(*tensors)
            gradients = torch.ops.vovnet.conv_affine_relu_backward(grad, kept, x, weight, scale, *ctx.geometry, wanted)
        return *(g if want else None for g, want in zip(gradients, wanted, strict=True)), None, None, None, None


class _Aggregate(Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        residual: Tensor | None,
        relu: bool,
        sources: Sequence[Source],
        *features: Tensor,
    ) -> Tensor:
        with _exactly(weight):
            out, bits = torch.ops.vovnet.osa_aggregate(
                list(features), _folded(weight, scale), shift, residual, relu, relu
            )
        ctx.computes = [(source.compute, len(source.tensors)) for source in sources]
        ctx.save_for_backward(weight, scale, bits if relu else None, *(t for s in sources for t in s.tensors))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        weight, scale, bits, *tensors = ctx.saved_tensors
        wants_weight, wants_scale, wants_shift, wants_residual, _, _, *wanted = ctx.needs_input_grad
        rest = iter(tensors)
        with _exactly(grad):
            features = [compute(*(next(rest) for _ in range(count))) for compute, count in ctx.computes]
            d_features, d_folded, d_shift = torch.ops.vovnet.osa_aggregate_backward(
                grad, bits, features, _folded(weight, scale), wanted, wants_weight or wants_scale, wants_shift
            )
            d_scale = (d_folded * weight).sum((1, 2, 3)) if wants_scale else None
            d_weight = _folded(d_folded, scale) if wants_weight else None
        return (
            d_weight,
            d_scale,
            d_shift if wants_shift else None,
            grad if wants_residual else None,
            None,
            None,
            *(d if want else None for d, want in zip(d_features, wanted, strict=True)),
        )


class _NormAgain:
    """Computes a norm's output again, once for all who ask for it in a backward pass, and forgets it with the last.

    It is asked for by the layers that took the output, and for the ReLU's own gradient.
    """

    def __init__(self, eps: float, relu: bool) -> None:
        self.eps = eps
        self.relu = relu
        self.askers = int(relu)
        self._left = 0
        self._result: Tensor | None = None

    def __call__(self, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        result = self._result
        if result is None:
            variance = invstd.square().reciprocal_().sub_(self.eps)
            result = torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, self.eps)[0]
            if self.relu:
                result.relu_()
            self._left = self.askers
        self._left -= 1
        self._result = result if self._left > 0 else None
        return result


class _Norm(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        again: _NormAgain,
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
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        x, weight, bias, mean, invstd = ctx.saved_tensors
        grad = grad.contiguous(memory_format=format_of(x))
        if ctx.again.relu:
            grad = torch.ops.aten.threshold_backward(grad, ctx.again(x, mean, invstd, weight, bias), 0)
        wanted = list(ctx.needs_input_grad[:3])
        gradients = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, invstd, True, ctx.again.eps, wanted
        )
        return *(g if want else None for g, want in zip(gradients, wanted, strict=True)), *[None] * 4
