"""Consecutive fused layers in one call of the compiled kernels.

Python and PyTorch need about 0.1 ms between two calls, because reading the layers' weights has evicted the
interpreter's data from the caches. For VoVNet-39 and a 224×224 image these pauses add up to 8 % of the time.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vovnet.fusion import base
from vovnet.fusion.base import MOST_SHAPES, num_threads
from vovnet.ops.algorithms import Precision


class ChainedConv(Protocol):
    """The attributes of a convolution that a chain reads (:class:`vovnet.fusion.layers.FusedConv`)."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    precision: Precision
    packed: dict[Hashable, Tensor]
    by_shape: dict[Hashable, object]

    @property
    def requires_grad(self) -> bool: ...
    def check_input(self, x: Tensor) -> Tensor: ...
    def supported(self, x: Tensor) -> bool: ...
    def choose_algorithm(self, shape: Sequence[int]) -> int: ...


class Chainable(nn.Module):
    """A layer that can be part of a chain."""

    chainable = False
    """True if the kernels take this layer in a chain."""
    chain_head_only = False
    """True if the kernels take it only as the first layer of a chain: a bfloat16 layer that reads float32 images."""
    label = ""
    """What profilers call the layer: its name in the fused copy."""

    @property
    def convs(self) -> Sequence[ChainedConv]:
        """The layer's convolutions, in the order in which they are computed. Each has a bias."""
        raise NotImplementedError

    def chain_step(self, is_output: bool) -> list[int]:
        """Return the layer's description for ``vovnet::packed_chain``."""
        raise NotImplementedError

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the output for an input of ``shape``."""
        raise NotImplementedError


class _Plan(NamedTuple):
    """The arguments of ``vovnet::packed_chain`` that follow the input."""

    weights: list[Tensor]
    biases: list[Tensor]
    packed: list[Tensor]
    algorithms: list[int]
    steps: list[int]


class _CachedPlan(NamedTuple):
    generation: int
    layers: list[Chainable]
    plan: _Plan | None


def run(layers: list[Chainable], is_output: Sequence[bool], x: Tensor) -> list[Tensor] | None:
    """Compute consecutive layers in one call; return None if the kernels do not take the call.

    Args:
        layers: at least one of them has a convolution.
        is_output: one flag for each layer.
        x: the input of the first layer.

    Returns:
        The outputs of the layers whose flag is set.

    Raises:
        InputError: the first convolution does not take ``x``.
    """
    compiling = torch.compiler.is_compiling()
    if compiling and len(layers) > 1:
        return None
    if x.dim() == 3:
        return None  # one image without a batch, which the layers take one by one
    first = next(conv for layer in layers for conv in layer.convs)
    x = first.check_input(x)
    if not layers[0].convs:  # a pool needs channels-last; a convolution may read images in any layout
        x = x.contiguous(memory_format=torch.channels_last)
    if not first.supported(x):
        return None
    if torch.is_grad_enabled() and any(conv.requires_grad for layer in layers for conv in layer.convs):
        return None
    if compiling:
        plan = _make_plan(layers, is_output, x.shape)
    else:
        plan = _cached_plan(first.by_shape, layers, is_output, x.shape)
    return None if plan is None else list(torch.ops.vovnet.packed_chain(x, *plan))


def _cached_plan(
    cache: dict[Hashable, object], layers: list[Chainable], is_output: Sequence[bool], shape: Sequence[int]
) -> _Plan | None:
    """Return the plan for an input of ``shape``. It is cached: making one takes as long as a small layer's products."""
    key = ("chain", *is_output, shape[0], shape[2], shape[3], num_threads())
    known = cache.get(key)
    if not isinstance(known, _CachedPlan) or known.generation != base.generation or known.layers != layers:
        known = _CachedPlan(base.generation, list(layers), _make_plan(layers, is_output, shape))
        if key in cache or len(cache) < MOST_SHAPES:
            cache[key] = known
    return known.plan


def _make_plan(layers: Sequence[Chainable], is_output: Sequence[bool], shape: Sequence[int]) -> _Plan | None:
    convs = [conv for layer in layers for conv in layer.convs]
    one_precision = len({conv.precision for conv in convs}) == 1
    if not one_precision or any(
        conv.weight.dtype != torch.float32 or conv.weight.device.type != "cpu" for conv in convs
    ):
        return None
    algorithms: list[int] = []
    steps: list[int] = []
    for layer, wanted in zip(layers, is_output, strict=True):
        algorithms += [conv.choose_algorithm(shape) for conv in layer.convs]
        steps += layer.chain_step(wanted)
        shape = layer.output_shape(shape)
    weights: list[Tensor] = [conv.weight for conv in convs]
    biases: list[Tensor] = [conv.bias for conv in convs if conv.bias is not None]
    packed = [conv.packed[(algorithm,)] for conv, algorithm in zip(convs, algorithms, strict=True)]
    return _Plan(weights, biases, packed, algorithms, steps)
