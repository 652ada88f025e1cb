"""A convolution, the norm behind it and an activation as one layer of :mod:`vovnet.fusion.layers`."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from vovnet.fusion.layers import FusedConv, FusedLinear
from vovnet.modules import Geometry, conv_geometry, has_hooks_or_patched_forward, is_identity_in_eval

NORMS = (
    BatchNormAct2d,
    FrozenBatchNormAct2d,
    SyncBatchNormAct,
    nn.BatchNorm2d,
    nn.SyncBatchNorm,
    FrozenBatchNorm2d,
)
"""They scale and shift each channel by numbers that do not depend on the image."""


def fold(conv: nn.Module, norm: nn.Module | None, act: nn.Module | None, precision: str, algorithm: str) -> Any:
    """What computes ``act(norm(conv(x)))`` in evaluation.

    Args:
        conv: only a plain ``Conv2d`` can be taken.
        norm: one of :data:`NORMS`, or none; timm's have an activation of their own, which comes before ``act``.
        act: an activation, or none.
        precision: of the new layer.
        algorithm: of the new layer.

    Returns:
        A :class:`FusedConv`, or a text that says why there is none.
    """
    if type(conv) is not nn.Conv2d:
        return f"its convolution is a {type(conv).__name__}"
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return f"its convolution has padding_mode={conv.padding_mode!r}, padding={conv.padding!r}"
    if norm is not None and is_identity_in_eval(norm):
        norm = None
    if norm is not None and (why := _depends(norm)):
        return why
    for part in (conv, norm, act):
        if part is not None and any(has_hooks_or_patched_forward(module) for module in part.modules()):
            return f"its {type(part).__name__} has hooks (as pruning and weight norm have) or its own forward"
    weight, bias = _folded(conv, norm)
    acts = [part for part in (getattr(norm, "act", None), act) if part is not None and not is_identity_in_eval(part)]
    relu = [type(part) for part in acts] == [nn.ReLU]
    geometry = conv_geometry(conv)
    other = None
    if acts and not relu:
        other = nn.Sequential(*copy.deepcopy(acts)) if len(acts) > 1 else copy.deepcopy(acts[0])
    return FusedConv(
        as_computed(weight, precision),
        None if bias is None else as_computed(bias, precision),
        geometry,
        relu=relu,
        act=other,
        precision=precision,
        algorithm=algorithm,
    )


def joined(layers: list[Any], precision: str, algorithm: str) -> Any:
    """Layers of the same input as one whose channels come in their order.

    Args:
        layers: linear layers, or plain 1×1 convolutions.
        precision: of the new layer.
        algorithm: of the new layer.

    Returns:
        A :class:`FusedLinear` or :class:`FusedConv`, or a text that says why there is none.
    """
    first, biased = layers[0], all(layer.bias is not None for layer in layers)
    if any(map(has_hooks_or_patched_forward, layers)) or not biased or len({type(layer) for layer in layers}) > 1:
        return "its predictors have hooks, their own forward, or no biases"
    if type(first) is not nn.Linear and not all(map(_is_one_by_one, layers)):
        return f"its predictors are {type(first).__name__} layers, but not plain 1×1 convolutions"
    weight = torch.cat([layer.weight.detach() for layer in layers])
    bias = torch.cat([layer.bias.detach() for layer in layers])
    if type(first) is nn.Linear:
        return FusedLinear(weight, bias, relu=False, precision=precision, algorithm=algorithm)
    return FusedConv(weight, bias, ONE_BY_ONE, relu=False, precision=precision, algorithm=algorithm)


ONE_BY_ONE = Geometry([1, 1], [0, 0], [1, 1], 1)
"""The geometry of a 1×1 convolution."""


def _is_one_by_one(layer: Any) -> bool:
    plain = type(layer) is nn.Conv2d and layer.kernel_size == (1, 1) and not isinstance(layer.padding, str)
    return plain and conv_geometry(layer) == ONE_BY_ONE


def as_computed(parameter: Tensor, precision: str) -> Tensor:
    """Weights of half precision are widened for bfloat16 products, whose kernels round them themselves."""
    half = parameter.dtype in (torch.bfloat16, torch.float16)
    return parameter.float() if half and precision == "bf16" else parameter


def _depends(norm: Any) -> str:
    if type(norm) not in NORMS:
        return f"its norm is a {type(norm).__name__}"
    if norm.running_mean is None:
        return f"its {type(norm).__name__} takes each batch's own statistics"
    return "" if is_identity_in_eval(getattr(norm, "drop", None)) else f"its norm has a {type(norm.drop).__name__}"


def _folded(conv: Any, norm: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the convolution with the norm in it, computed in float64."""
    weight: Tensor = conv.weight.detach()
    bias = None if conv.bias is None else conv.bias.detach()
    if norm is None:
        return weight.clone(), None if bias is None else bias.clone()
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    if bias is not None:
        shift = shift + bias.double() * scale
    folded = weight.double() * scale[:, None, None, None]
    return folded.to(weight.dtype), shift.to(weight.dtype)
