"""The norms of a backbone: batch norm as it is, frozen, synchronised, or replaced by group norm.

Keys of the state dict stay the same, except that frozen norms have no ``num_batches_tracked`` (they drop it when they
load a file that has it, and batch norm does without it when it loads theirs).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from timm.layers import (
    BatchNormAct2d,
    FrozenBatchNormAct2d,
    GroupNormAct,
    RmsNorm,
    RmsNorm2d,
    convert_sync_batchnorm,
    freeze_batch_norm_2d,
)
from timm.layers.norm_act import SyncBatchNormAct
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torchvision.ops import FrozenBatchNorm2d

from vovnet.errors import InputError

NORMS = ("frozen_bn", "bn", "sync_bn", "gn")
GROUPS = 32
"""Of group norm, where the channels are a multiple; arXiv:1803.08494."""

_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_FROZEN = (FrozenBatchNorm2d, FrozenBatchNormAct2d)
_OTHER_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, RmsNorm, RmsNorm2d, _InstanceNorm, _BatchNorm)


def batch_norms(net: nn.Module) -> list[str]:
    """Names of the modules that normalise over the batch."""
    return [name for name, module in net.named_modules() if isinstance(module, _BATCH_NORMS)]


def convert_norms(net: nn.Module, norm: str, *, pretrained: bool, force: bool) -> tuple[str, bool]:
    """Give ``net`` the asked kind of norms, in place.

    Norms that are not batch norms (LayerNorm, GroupNorm, …) are left alone.

    Returns:
        A line that says what was done, and whether that is all that was asked for.

    Raises:
        InputError: ``gn`` would take the place of batch norms whose statistics pretrained weights rely on.
    """
    found = batch_norms(net)
    count = f"{len(found)} batch norm{'' if len(found) == 1 else 's'}"
    others = Counter(
        type(m).__name__ for m in net.modules() if isinstance(m, _OTHER_NORMS) and not isinstance(m, _BATCH_NORMS)
    )
    left = "".join(f"; {n} {kind} left as they are" for kind, n in sorted(others.items()))
    complete = norm == "bn" or not others
    if norm == "frozen_bn" and not pretrained and found:
        return f"norm 'frozen_bn': {count} not frozen, because the weights are not pretrained{left}", False
    if norm == "gn" and pretrained and found and not force:
        raise InputError(
            f"norm 'gn' would replace {count} that the pretrained weights were trained with, which spoils them; take "
            "'frozen_bn' or 'bn', or start without pretrained weights, or give force_norm=True"
        )
    done = {"frozen_bn": "frozen", "bn": "train", "sync_bn": "train, synchronised", "gn": "replaced by group norms"}
    replace_modules(net, found, _CONVERTERS[norm])
    return f"norm {norm!r}: {count} {done[norm]}{left}", complete


def replace_modules(net: nn.Module, names: Iterable[str], convert: Callable[[nn.Module], nn.Module]) -> None:
    """Swap modules in place; hooks, which some of timm's feature extractors hang on them, move along."""
    for name in names:
        parent, _, child = name.rpartition(".")
        old = net.get_submodule(name)
        new = convert(old)
        if new is not old:
            new.train(old.training)
            new._forward_hooks.update(old._forward_hooks)
            new._forward_pre_hooks.update(old._forward_pre_hooks)
            setattr(net.get_submodule(parent), child, new)


def frozen(module: nn.Module) -> nn.Module:
    """A batch norm with fixed statistics and weights."""
    return freeze_batch_norm_2d(module)


def _unchanged(module: nn.Module) -> nn.Module:
    return module


def _grouped(module: Any) -> nn.Module:
    channels = int(module.num_features)
    groups = math.gcd(GROUPS, channels)
    new: Any
    with_activation = isinstance(module, BatchNormAct2d | SyncBatchNormAct)
    if with_activation:
        new = GroupNormAct(channels, groups, apply_act=False)
        new.drop, new.act = module.drop, module.act
    else:
        new = nn.GroupNorm(groups, channels)
    if module.affine:
        new.weight, new.bias = module.weight, module.bias
    return new


_CONVERTERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "frozen_bn": frozen,
    "bn": _unchanged,
    "sync_bn": convert_sync_batchnorm,
    "gn": _grouped,
}


def norm_layer(norm: str | None) -> Callable[[int], nn.Module] | None:
    """What torchvision's ``norm_layer`` arguments take, for convolutions of our own."""
    layers: dict[str | None, Callable[[int], nn.Module] | None] = {
        None: None,
        "bn": nn.BatchNorm2d,
        "sync_bn": nn.SyncBatchNorm,
        "gn": lambda channels: nn.GroupNorm(math.gcd(GROUPS, channels), channels),
    }
    return layers[norm]
