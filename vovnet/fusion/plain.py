"""Convolutions that stand alone, or before a norm and a ReLU, in any module: folded where they stand.

This works on the copy and replaces single children: the convolution becomes a fused one, the norm and the ReLU that it
contains become identities. The code of the modules around them stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vovnet.fusion.calls import Calls, Chain, Slot, calls_of, is_plain_sequence
from vovnet.fusion.folding import NORMS, NotFusable, Settings, fold
from vovnet.fusion.layers import FusedConv, FusedOsaBlock
from vovnet.modules import is_identity_in_eval

PREDICTORS: dict[type[nn.Module], tuple[str, ...]] = {}
"""For classes whose code cannot be followed: the names of convolutions, or lists of them, that they call alone."""

_OTHER_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)
"""Norms that depend on the image and stay."""


def fuse_plain_convs(fused: nn.Module, settings: Settings) -> None:
    """Replace convolutions in a copy in evaluation mode, in place.

    Convolutions before a norm or a ReLU compute in the precision of the copy. Others are taken for predictors and
    compute in float32. What has hooks is left alone, and so is what is called by a module that it does not belong to.
    """
    owners = list(_with_convs(fused))
    recorded = [calls for module in owners if not is_plain_sequence(module) and (calls := calls_of(module))]
    foreign = {found for calls in recorded for found in calls.foreign()}
    for chain in [chain for module in owners for chain in _known_chains(module)]:
        _replace(chain, foreign, settings)
    for calls in recorded:
        _replace_and_check(calls, foreign, settings)


def _with_convs(fused: nn.Module) -> Iterator[nn.Module]:
    """Return the modules that have a convolution somewhere in them, without those in fused layers."""
    inside = {id(part) for block in fused.modules() if isinstance(block, FusedOsaBlock) for part in block.modules()}
    for module in fused.modules():
        if id(module) not in inside and any(type(part) is nn.Conv2d for part in module.modules() if part is not module):
            yield module


def _known_chains(module: nn.Module) -> list[Chain]:
    """Return the chains in a plain sequence, or the convolutions that a class calls alone."""
    if is_plain_sequence(module):
        slots = [Slot(module, key) for key, part in module._modules.items() if not is_identity_in_eval(part)]
        return [slots[i:] for i, slot in enumerate(slots) if type(slot.module) is nn.Conv2d]
    if "forward" in module.__dict__:
        return []
    chains = []
    for name in PREDICTORS.get(type(module), ()):
        child = module._modules[name]
        places = (
            [Slot(child, key) for key in child._modules] if isinstance(child, nn.ModuleList) else [Slot(module, name)]
        )
        chains += [[slot] for slot in places if type(slot.module) is nn.Conv2d]
    return chains


def _replace(chain: Chain, foreign: set[int], settings: Settings) -> list[tuple[Slot, nn.Module]]:
    """Replace a convolution and what follows it, if possible; return the places and what was there."""
    conv, *rest = chain
    folded = [conv]
    norm = rest.pop(0) if rest and type(rest[0].module) in NORMS else None
    has_act = norm is not None and not is_identity_in_eval(getattr(norm.module, "act", None))
    relu = rest[0] if rest and type(rest[0].module) is nn.ReLU and not has_act else None
    folded += [slot for slot in (norm, relu) if slot is not None]
    if any(id(slot.module) in foreign for slot in folded):
        return []
    alone = len(folded) == 1 and not (rest and isinstance(rest[0].module, _OTHER_NORMS))
    try:
        new = _fold(folded, norm, relu, settings, is_predictor=alone)
    except NotFusable:
        return []
    before = [(slot, slot.module) for slot in folded]
    conv.put(new)
    for slot in folded[1:]:
        slot.put(nn.Identity().eval())
    return before


def _fold(folded: Chain, norm: Slot | None, relu: Slot | None, settings: Settings, *, is_predictor: bool) -> FusedConv:
    wide = is_predictor and settings.precision == "bf16"
    how = settings._replace(precision="fp32") if wide else settings
    norm_module, act = (None if slot is None else slot.module for slot in (norm, relu))
    new = fold(folded[0].module, norm_module, act, how)
    if wide:
        new.float().register_forward_pre_hook(cast_inputs, with_kwargs=True)
    return new


def _replace_and_check(calls: Calls, foreign: set[int], settings: Settings) -> None:
    """Replace what a module calls; undo it if its code needs what a fused convolution lacks, as ``conv.stride``."""
    before = [pair for chain in calls.chains(nn.Conv2d) for pair in _replace(chain, foreign, settings)]
    if not before:
        return
    after = calls_of(calls.root)
    if after is None or after.steps() != calls.steps():
        for slot, module in before:
            slot.put(module)


def cast_inputs(
    module: nn.Module, inputs: tuple[object, ...], named: dict[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Return a module's inputs with bfloat16 tensors in the type of its parameters."""
    dtype = next(module.parameters(recurse=False)).dtype

    def cast(x: object) -> object:
        return x.to(dtype) if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x

    return tuple(map(cast, inputs)), {name: cast(x) for name, x in named.items()}
