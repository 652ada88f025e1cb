"""Building fused layers from a model's modules: :data:`BUILDERS` maps a class to the function that replaces it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar, cast

import timm.models.vovnet as timm_vovnet
import torch
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d, SeparableConvNormAct, SyncBatchNormAct
from timm.layers import ConvNormAct as TimmConvNormAct
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, FrozenBatchNorm2d

from vovnet.fusion.layers import FusedConv, FusedMaxPool2d, FusedOsaBlock
from vovnet.fusion.linear import FusedLinear
from vovnet.memory.layers import original_class
from vovnet.modules import Geometry, conv_geometry, has_hooks_or_patched_forward, is_identity_in_eval, to_pair
from vovnet.ops.algorithms import Algorithm, Precision
from vovnet.vovnet import ConvNormAct, OsaBlock

ONE_BY_ONE = Geometry([1, 1], [0, 0], [1, 1], 1)
"""The geometry of a 1×1 convolution."""

NORMS = (BatchNormAct2d, FrozenBatchNormAct2d, SyncBatchNormAct, nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)
"""Norms that, in evaluation, scale and shift each channel by numbers that do not depend on the image."""

Builder = Callable[..., nn.Module]
"""Takes a module and :class:`Settings`."""
Function = TypeVar("Function", bound=Builder)


class NotFusable(Exception):
    """A module cannot be replaced by a fused one.

    The reason is for the user. It is empty if nobody needs to know because the module's parts are fused one by one.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class NormStays(NotFusable):
    """A norm depends on the image. It stays; its convolution is fused without it."""


class Settings(NamedTuple):
    """How the fused layers compute, as given to :func:`vovnet.fuse`."""

    precision: Precision
    algorithm: Algorithm


BUILDERS: dict[type[nn.Module], Builder] = {}
"""The function that builds the replacement of a module of exactly this class, or raises :class:`NotFusable`."""


def replaces(*kinds: type[nn.Module]) -> Callable[[Function], Function]:
    """Register the decorated function in :data:`BUILDERS` for modules of these classes."""

    def register(build: Function) -> Function:
        BUILDERS.update(dict.fromkeys(kinds, build))
        return build

    return register


def builder_of(module: nn.Module) -> Builder | None:
    """Return the builder for a module's class; for one changed by ``memory_efficient``, that of its original class."""
    return BUILDERS.get(original_class(type(module)))


def fold(conv: nn.Module, norm: nn.Module | None, act: nn.Module | None, settings: Settings) -> FusedConv:
    """Return one layer that computes ``act(norm(conv(x)))`` in evaluation mode.

    timm's norms contain an activation, which comes before ``act``.

    Raises:
        NotFusable: the convolution or the norm is of another kind, or one of the three has hooks. It is a
            :class:`NormStays` if only the norm is of another kind.
    """
    if type(conv) is not nn.Conv2d:
        raise NotFusable(f"its convolution is a {type(conv).__name__}")
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise NotFusable(f"its convolution has padding_mode={conv.padding_mode!r}, padding={conv.padding!r}")
    if is_identity_in_eval(norm):
        norm = None
    for part in (conv, norm, act):
        if part is not None and any(map(has_hooks_or_patched_forward, part.modules())):
            raise NotFusable(
                f"its {type(part).__name__} has hooks (as pruning and weight norm have) or its own forward"
            )
    if norm is not None:
        _check_norm(norm)
    weight, bias = _folded(conv, norm)
    acts = [part for part in (getattr(norm, "act", None), act) if part is not None and not is_identity_in_eval(part)]
    relu = [type(part) for part in acts] == [nn.ReLU]
    other = None
    if acts and not relu:
        other = nn.Sequential(*copy.deepcopy(acts)) if len(acts) > 1 else copy.deepcopy(acts[0])
    weight = upcast_weights(weight, settings.precision)
    bias = None if bias is None else upcast_weights(bias, settings.precision)
    return FusedConv(weight, bias, conv_geometry(conv), relu=relu, act=other, **settings._asdict())


def concat_layers(layers: Sequence[nn.Module], settings: Settings) -> FusedConv | FusedLinear:
    """Return one layer whose output channels are those of all ``layers``, in their order.

    These are linear layers, or 1×1 convolutions, that take the same input.

    Raises:
        NotFusable: the layers are of other kinds, or one has hooks or no bias.
    """
    first, kinds = layers[0], {type(layer) for layer in layers}
    weights = [layer.weight.detach() for layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)]
    biases = [bias.detach() for layer in layers if isinstance(bias := getattr(layer, "bias", None), Tensor)]
    if any(map(has_hooks_or_patched_forward, layers)) or len(biases) < len(layers) or len(kinds) > 1:
        raise NotFusable("its predictors have hooks, their own forward, or no biases")
    if type(first) is not nn.Linear and not all(map(_is_one_by_one, layers)):
        raise NotFusable(f"its predictors are {type(first).__name__} layers, but not plain 1×1 convolutions")
    weight, bias = torch.cat(weights), torch.cat(biases)
    if type(first) is nn.Linear:
        return FusedLinear(weight, bias, relu=False, **settings._asdict())
    return FusedConv(weight, bias, ONE_BY_ONE, relu=False, **settings._asdict())


def upcast_weights(parameter: Tensor, precision: Precision) -> Tensor:
    """Return weights of half precision as float32 if products are bfloat16: those kernels round them themselves."""
    half = parameter.dtype in (torch.bfloat16, torch.float16)
    return parameter.float() if half and precision == "bf16" else parameter


@replaces(ConvNormAct, TimmConvNormAct)
def fuse_conv_norm_act(layer: ConvNormAct | TimmConvNormAct, settings: Settings) -> nn.Module:
    """A convolution, a norm and an activation, which is beside the norm (ours) or in it (timm's); anti-aliasing."""
    folded, blur = fold(layer.conv, layer.bn, getattr(layer, "act", None), settings), layer.aa
    return folded if blur is None or is_identity_in_eval(blur) else nn.Sequential(folded, copy.deepcopy(blur))


@replaces(SeparableConvNormAct)
def fuse_separable_conv(layer: SeparableConvNormAct, settings: Settings) -> nn.Module:
    """timm's depthwise and pointwise convolutions."""
    depthwise = fold(layer.conv_dw, None, None, settings)
    return nn.Sequential(depthwise, fold(layer.conv_pw, layer.bn, None, settings))


@replaces(Conv2dNormActivation)
def fuse_conv_norm_activation(layer: Conv2dNormActivation, settings: Settings) -> FusedConv:
    """torchvision's convolution, and perhaps a norm and an activation."""
    conv, *rest = layer
    norm = rest.pop(0) if rest and isinstance(rest[0], (*NORMS, nn.GroupNorm)) else None
    if len(rest) > 1:
        raise NotFusable(f"its parts are {', '.join(type(part).__name__ for part in layer)}")
    return fold(conv, norm, rest[0] if rest else None, settings)


@replaces(nn.MaxPool2d)
def fuse_max_pool(pool: nn.MaxPool2d, settings: Settings) -> FusedMaxPool2d:
    """A max-pool without indices and dilation."""
    if to_pair(pool.dilation) != [1, 1] or pool.return_indices:
        raise NotFusable("dilation or indices")
    return FusedMaxPool2d(to_pair(pool.kernel_size), to_pair(pool.stride), to_pair(pool.padding), pool.ceil_mode)


@replaces(OsaBlock, timm_vovnet.OsaBlock)
def fuse_osa_block(block: OsaBlock | timm_vovnet.OsaBlock, settings: Settings) -> FusedOsaBlock:
    """Our block or timm's; the parts of one with depthwise convolutions are fused one by one."""
    layers = [*block.conv_mid, block.conv_concat]
    if getattr(block, "conv_reduction", None) is not None or not is_identity_in_eval(block.drop_path):
        raise NotFusable
    if any(map(has_hooks_or_patched_forward, (block.conv_mid, *layers))):
        raise NotFusable
    if any(builder_of(layer) is not fuse_conv_norm_act for layer in layers):
        raise NotFusable
    convs = [conv for layer in layers if isinstance(conv := fuse_conv_norm_act(layer, settings), FusedConv)]
    if len(convs) < len(layers):
        raise NotFusable
    identity: bool = block.identity if isinstance(block, OsaBlock) else block.residual
    attn = copy.deepcopy(getattr(block, "attn", None))  # only timm's block has one
    return FusedOsaBlock(convs[:-1], convs[-1], identity=identity, attn=attn)


def _is_one_by_one(layer: nn.Module) -> bool:
    if type(layer) is not nn.Conv2d or layer.kernel_size != (1, 1) or isinstance(layer.padding, str):
        return False
    return conv_geometry(layer) == ONE_BY_ONE


class _BatchNorm(Protocol):
    """The attributes of the norms in :data:`NORMS` after :func:`_check_norm`."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    eps: float


def _check_norm(norm: nn.Module) -> None:
    if type(norm) not in NORMS:
        raise NormStays(f"its norm is a {type(norm).__name__}")
    if norm.running_mean is None:
        raise NotFusable(f"its {type(norm).__name__} takes each batch's own statistics")
    drop = getattr(norm, "drop", None)
    if not is_identity_in_eval(drop):
        raise NotFusable(f"its norm has a {type(drop).__name__}")


def _folded(conv: nn.Conv2d, norm: nn.Module | None) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of the convolution with the norm folded in, computed in float64."""
    weight = conv.weight.detach()
    bias = None if conv.bias is None else conv.bias.detach()
    if norm is None:
        return weight.clone(), None if bias is None else bias.clone()
    batch_norm = cast(_BatchNorm, norm)
    scale = (batch_norm.running_var.double() + batch_norm.eps).rsqrt()
    if batch_norm.weight is not None:
        scale = scale * batch_norm.weight.detach().double()
    shift = -batch_norm.running_mean.double() * scale
    if batch_norm.bias is not None:
        shift = shift + batch_norm.bias.detach().double()
    if bias is not None:
        shift = shift + bias.double() * scale
    folded = weight.double() * scale[:, None, None, None]
    return folded.to(weight.dtype), shift.to(weight.dtype)
