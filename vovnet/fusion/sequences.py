"""Fused layers that follow each other, in one call of the kernels.

Between two calls Python and PyTorch take a tenth of a millisecond, for the layers' weights have driven what they read
out of the caches: with VoVNet-39 and an image of 224 pixels that adds up to 8 % of the time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterable, Sequence
from typing import Any, TypeGuard, cast

import timm.models.vovnet as timm_vovnet
import torch
from timm.models._features import FeatureDictNet, FeatureListNet
from torch import Tensor, nn

from vovnet.fusion import base
from vovnet.fusion.base import MOST_SHAPES, threads
from vovnet.modules import has_hooks_or_patched_forward
from vovnet.vovnet import OsaStage


class Link(nn.Module):
    """A layer that the kernels may take in a chain."""

    chains = False
    """Whether they take this one."""
    begins = False
    """Whether they take it only as a chain's first, as bfloat16 layers that read float32."""

    @property
    def convs(self) -> Sequence[Any]:
        """Its convolutions, :class:`vovnet.fusion.layers.FusedConv`, each with a bias."""
        raise NotImplementedError

    def step(self, kept: bool) -> list[int]:
        """What it is in ``vovnet::packed_chain``."""
        raise NotImplementedError

    def result(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of its output, of an input's."""
        raise NotImplementedError


def run(links: list[Link], kept: Sequence[bool], x: Tensor) -> list[Tensor] | None:
    """The outputs of those layers that are ``kept``; None where the kernels do not serve the call.

    Raises:
        InputError: ``x`` is none that the first convolution takes.
    """
    compiling = torch.compiler.is_compiling()
    if compiling and len(links) > 1:
        return None
    first = next(conv for link in links for conv in link.convs)
    x = first.taken(x)
    if not links[0].convs:  # a pool reads channels-last alone, its convolution perhaps an image that lies in any way
        x = x.contiguous(memory_format=torch.channels_last)
    if not first.served(x) or (torch.is_grad_enabled() and any(conv.learns for link in links for conv in link.convs)):
        return None
    arguments = _found(links, kept, x.shape) if compiling else _arguments(first, links, kept, x.shape)
    return None if arguments is None else list(torch.ops.vovnet.packed_chain(x, *arguments))


def _arguments(
    first: Any, links: list[Link], kept: Sequence[bool], shape: Sequence[int]
) -> tuple[list[Any], ...] | None:
    """Of the operator, for such a map: found once, as it takes as long as small layers' products."""
    prepared = first._prepared
    key = ("chain", *kept, shape[0], shape[2], shape[3], threads())
    known: Any = prepared.get(key)
    if known is None or known[0] != base.moves or known[1] != links:
        known = base.moves, list(links), _found(links, kept, shape)
        if key in prepared or len(prepared) < MOST_SHAPES:
            prepared[key] = known
    found: tuple[list[Any], ...] | None = known[2]
    return found


def _found(links: Sequence[Link], kept: Sequence[bool], shape: Sequence[int]) -> tuple[list[Any], ...] | None:
    convs = [conv for link in links for conv in link.convs]
    one_kind = len({conv.precision for conv in convs}) == 1
    if not one_kind or any(conv.weight.dtype != torch.float32 or conv.weight.device.type != "cpu" for conv in convs):
        return None
    methods: list[int] = []
    steps: list[int] = []
    for link, keep in zip(links, kept, strict=True):
        methods += [conv.method(shape) for conv in link.convs]
        steps += link.step(keep)
        shape = link.result(shape)
    packed = [conv._prepared[(method,)] for conv, method in zip(convs, methods, strict=True)]
    return [conv.weight for conv in convs], [conv.bias for conv in convs], packed, methods, steps


def _chains(layer: Any) -> TypeGuard[Link]:
    return isinstance(layer, Link) and layer.chains and not has_hooks_or_patched_forward(layer)


_STAGES = (OsaStage, timm_vovnet.OsaStage)


def _layers(module: nn.Module) -> list[nn.Module]:
    """What a module calls one after the other."""
    kind, nest = type(module), cast(Any, module)
    if kind not in _NESTS or has_hooks_or_patched_forward(module):
        return [] if kind is nn.Identity and not has_hooks_or_patched_forward(module) else [module]
    layers = []
    for part in (nest.pool, nest.blocks) if kind in _STAGES else module._modules.values():
        if part is not None:
            layers += _layers(part)
    return layers


def follow(modules: Iterable[tuple[str, nn.Module]], x: Any, wanted: Container[str] = ()) -> tuple[Any, dict[str, Any]]:
    """Calls modules one after the other, with as few calls of the kernels as there can be.

    Args:
        modules: and their names.
        x: the first's input.
        wanted: names of modules whose outputs are asked for.

    Returns:
        The last output, and those that are asked for.
    """
    taken: dict[str, Any] = {}
    links: list[Link] = []
    names: list[list[str]] = []  # that each link's output is asked for by

    def call(x: Any) -> Any:
        kept = [bool(asked) or i == len(links) for i, asked in enumerate(names, 1)]
        results = run(links, kept, x) if len(links) > 1 and any(link.convs for link in links) else None
        for link, keep, asked in zip(links, kept, names, strict=True):
            if results is None:
                x = link(x)
            elif keep:
                x = results.pop(0)
            taken.update(dict.fromkeys(asked, x))
        links.clear()
        names.clear()
        return x

    for name, module in modules:
        for layer in _layers(module):
            if _chains(layer):
                if layer.begins:
                    x = call(x)
                links.append(layer)
                names.append([])
            else:
                x = layer(call(x))
        if name in wanted:
            if names:
                names[-1].append(name)
            else:
                taken[name] = x
    return call(x), taken


class FusedSequential(nn.Sequential):
    """A sequence with fused layers in it."""

    def forward(self, x: Any) -> Any:
        return follow(self._modules.items(), x)[0]


_NESTS = {nn.Sequential, *_STAGES, FusedSequential}


class _Features:
    def _collect(self, x: Any) -> dict[str, Any]:
        net: Any = self
        taken = follow(net.items(), x, net.return_layers)[1]
        out: dict[str, Any] = OrderedDict()
        for name, value in taken.items():
            whole = not isinstance(value, tuple | list)
            out[net.return_layers[name]] = value if whole else torch.cat(value, 1) if net.concat else value[0]
        return out


class FusedFeatureDict(_Features, FeatureDictNet):
    """timm's feature extractor as a dictionary, with fused layers in it."""


class FusedFeatureList(_Features, FeatureListNet):
    """timm's feature extractor as a list, with fused layers in it."""


_CHAINED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Sequential: FusedSequential,
    FeatureDictNet: FusedFeatureDict,
    FeatureListNet: FusedFeatureList,
}


def chain(fused: nn.Module) -> None:
    """Let the sequences and feature extractors of a fused copy call its layers together."""
    for module in fused.modules():
        found = _CHAINED.get(type(module))
        layers = [layer for part in module.children() for layer in _layers(part)] if found else []
        if found and not has_hooks_or_patched_forward(module) and sum(map(_chains, layers)) > 1:
            module.__class__ = found
