"""Convert the batch norms of a backbone: freeze them, synchronise them, or replace them by group norms.

The keys of the state dict stay the same, except that frozen norms have no ``num_batches_tracked``. They ignore it when
they load a file that has it, and a batch norm accepts a file without it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from timm.layers import BatchNormAct2d, GroupNormAct, RmsNorm, RmsNorm2d, convert_sync_batchnorm, freeze_batch_norm_2d
from timm.layers.norm_act import SyncBatchNormAct
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from vovnet.errors import InputError

Norm = Literal["frozen_bn", "bn", "sync_bn", "gn"]
FpnNorm = Literal["bn", "sync_bn", "gn"]
GROUPS = 32
"""Groups of a group norm whose channels are a multiple of it (arXiv:1803.08494)."""

_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_OTHER_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, RmsNorm, RmsNorm2d, _InstanceNorm, _BatchNorm)


def batch_norms(net: nn.Module) -> list[str]:
    """Return the names of the batch norms of a network."""
    return [name for name, module in net.named_modules() if isinstance(module, _BATCH_NORMS)]


def convert_norms(
    net: nn.Module, norm: Norm, *, pretrained: bool, force: bool, eps: float | None = None
) -> tuple[str, bool]:
    """Convert the batch norms of ``net``, in place. Other norms (LayerNorm, GroupNorm, …) stay as they are.

    Args:
        net: a timm model.
        norm: what to convert them to.
        pretrained: True if the weights are trained ones, or such weights will be loaded.
        force: allow ``gn`` to replace batch norms of pretrained weights.
        eps: epsilon of these norms; None keeps the model's.

    Returns:
        One line that says what was done, and True if every norm became what ``norm`` says.

    Raises:
        InputError: ``gn`` would replace batch norms of pretrained weights.
    """
    found = batch_norms(net)
    count = f"{len(found)} batch norm{'' if len(found) == 1 else 's'}"
    others = Counter(
        type(m).__name__ for m in net.modules() if isinstance(m, _OTHER_NORMS) and not isinstance(m, _BATCH_NORMS)
    )
    left = "".join(f"; {n} {kind} left as they are" for kind, n in sorted(others.items()))
    complete = norm == "bn" or not others
    if eps is not None:
        for name in found:
            module: Any = net.get_submodule(name)
            module.eps = eps  # every conversion but that to group norms keeps it
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
    """Replace modules in place and move their hooks along, which some of timm's feature extractors need."""
    for name in names:
        parent, _, child = name.rpartition(".")
        old = net.get_submodule(name)
        new = convert(old)
        if new is not old:
            new.train(old.training)
            new._forward_hooks.update(old._forward_hooks)
            new._forward_pre_hooks.update(old._forward_pre_hooks)
            setattr(net.get_submodule(parent), child, new)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels)


def _to_group_norm(module: Any) -> nn.Module:
    """Return a group norm with the weights of a batch norm, and its activation if timm's norm has one."""
    new: Any = _group_norm(module.num_features)
    if isinstance(module, BatchNormAct2d | SyncBatchNormAct):
        new = GroupNormAct(new.num_channels, new.num_groups, apply_act=False)
        new.drop, new.act = module.drop, module.act
    if module.affine:
        new.weight, new.bias = module.weight, module.bias
    return new


_CONVERTERS: dict[Norm, Callable[[nn.Module], nn.Module]] = {
    "frozen_bn": freeze_batch_norm_2d,
    "bn": lambda module: module,
    "sync_bn": convert_sync_batchnorm,
    "gn": _to_group_norm,
}
_LAYERS: dict[FpnNorm, Callable[[int], nn.Module]] = {
    "bn": nn.BatchNorm2d,
    "sync_bn": nn.SyncBatchNorm,
    "gn": _group_norm,
}


def values_per_statistic(norm: nn.Module, shape: Sequence[int]) -> int | None:
    """Return the number of values from which a norm computes each mean and variance; torch refuses to do it from one.

    Args:
        norm: a group norm or batch norm.
        shape: the shape of its input, (N, C, …).

    Returns:
        The number; None for modules that compute no mean of a batch or group, such as batch norms in evaluation.
    """
    if isinstance(norm, nn.GroupNorm):
        return math.prod(shape) // norm.num_groups
    if isinstance(norm, _BatchNorm) and (norm.training or norm.running_mean is None):
        return math.prod(shape) // shape[1]
    return None


def norm_layer(norm: FpnNorm | None) -> Callable[[int], nn.Module] | None:
    """Return the value for a ``norm_layer`` argument of torchvision."""
    return None if norm is None else _LAYERS[norm]
