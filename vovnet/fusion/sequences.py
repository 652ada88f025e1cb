"""Containers that call fused layers in chains: sequences, stages and timm's feature extractors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterable, Sequence
from typing import TypeAlias, TypeGuard

import timm.models.vovnet as timm_vovnet
import torch
from timm.models._features import FeatureDictNet, FeatureListNet
from torch import Tensor, nn
from torch.profiler import record_function

from vovnet.fusion.base import is_profiled, warn_of_hooks
from vovnet.fusion.chaining import Chainable, run
from vovnet.modules import has_hooks_or_patched_forward
from vovnet.vovnet import OsaStage

Features: TypeAlias = Tensor | Sequence[Tensor]
"""The output of a module; timm's feature extractors allow a tuple or a list of tensors, too."""


def run_sequence(
    modules: Iterable[tuple[str, nn.Module]], x: Features, wanted: Container[str] = ()
) -> tuple[Features, dict[str, Features]]:
    """Call named modules one after the other, with as few calls of the kernels as possible.

    Under a profiler, layers are called one by one, so that it shows each by its name.

    Returns:
        The last output, and by name the outputs of the modules that are ``wanted``.
    """
    outputs: dict[str, Features] = {}
    layers: list[Chainable] = []  # the chain that has not been called yet
    names: list[list[str]] = []  # for each of its layers, the names in ``wanted`` that its output belongs to

    def call(x: Features) -> Features:
        is_output = [bool(asked) or i == len(layers) for i, asked in enumerate(names, 1)]
        results, profiled = None, is_profiled()
        if len(layers) > 1 and not profiled and isinstance(x, Tensor) and any(layer.convs for layer in layers):
            results = run(layers, is_output, x)
        for layer, returned, asked in zip(layers, is_output, names, strict=True):
            if results is None:
                x = _call_named(layer, x) if profiled else layer(x)
            elif returned:
                x = results.pop(0)
            outputs.update(dict.fromkeys(asked, x))
        layers.clear()
        names.clear()
        return x

    for name, module in modules:
        for layer in _layers(module):
            if _is_chainable(layer):
                if layer.chain_head_only:
                    x = call(x)
                layers.append(layer)
                names.append([])
            else:
                x = call(x)
                warn_of_hooks(layer, x)
                x = _call_named(layer, x) if is_profiled() else layer(x)
        if name in wanted:
            if names:
                names[-1].append(name)
            else:
                outputs[name] = x
    return call(x), outputs


def _call_named(layer: nn.Module, x: Features) -> Features:
    """Call a layer inside a range that profilers show by its name."""
    with record_function(getattr(layer, "label", "") or type(layer).__name__):
        out: Features = layer(x)
    return out


def chain_sequences(fused: nn.Module) -> None:
    """Let the sequences and feature extractors of a fused copy call their layers in chains, and name the layers."""
    for module in fused.modules():
        chained = _CHAINED.get(type(module))
        if chained is None or has_hooks_or_patched_forward(module):
            continue
        layers = [layer for part in module.children() for layer in _layers(part)]
        if sum(map(_is_chainable, layers)) > 1:
            module.__class__ = chained
    for name, module in fused.named_modules():
        if isinstance(module, Chainable):
            module.label = f"{name} ({type(module).__name__})".lstrip()


class FusedSequential(nn.Sequential):
    """A sequence that calls its layers in chains."""

    def forward(self, x: Features) -> Features:
        warn_of_hooks(self, x)
        return run_sequence(self._modules.items(), x)[0]


class FusedFeatureDict(FeatureDictNet):
    """timm's feature extractor that returns a dictionary; it calls its layers in chains."""

    def _collect(self, x: Tensor) -> dict[str, Tensor]:
        outputs = run_sequence(self.items(), x, self.return_layers)[1]
        out: dict[str, Tensor] = OrderedDict()
        for name, value in outputs.items():
            if not isinstance(value, Tensor):
                value = torch.cat(list(value), 1) if self.concat else value[0]
            out[self.return_layers[name]] = value
        return out


class FusedFeatureList(FusedFeatureDict, FeatureListNet):
    """timm's feature extractor that returns a list; it calls its layers in chains."""


_STAGES = (OsaStage, timm_vovnet.OsaStage)
_CONTAINERS = (nn.Sequential, FusedSequential, *_STAGES)  # torch.compile of PyTorch 2.8 cannot look into a set
_CHAINED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Sequential: FusedSequential,
    FeatureDictNet: FusedFeatureDict,
    FeatureListNet: FusedFeatureList,
}


def _is_chainable(layer: nn.Module) -> TypeGuard[Chainable]:
    return isinstance(layer, Chainable) and layer.chainable and not has_hooks_or_patched_forward(layer)


def _layers(module: nn.Module) -> list[nn.Module]:
    """Return what a module calls one after the other."""
    kind = type(module)
    if kind not in _CONTAINERS or has_hooks_or_patched_forward(module):
        return [] if kind is nn.Identity and not has_hooks_or_patched_forward(module) else [module]
    # A stage registers its parts in any order; its forward calls the pool first.
    parts = (module.pool, module.blocks) if isinstance(module, _STAGES) else module._modules.values()
    return [layer for part in parts if part is not None for layer in _layers(part)]
