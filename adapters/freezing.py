"""Freeze the first stages of a backbone.

A stage ends where timm's ``feature_info`` taps a feature map. timm registers modules in the order in which they run
(timm/models/_features.py, ``FeatureDictNet``), so every module belongs to the first stage whose tap comes no earlier.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from timm.layers import freeze_batch_norm_2d
from torch import nn

from vovnet.adapters.norms import batch_norms, replace_modules
from vovnet.errors import InputError


def freeze_stages(net: nn.Module, taps: Sequence[dict[str, Any]], trainable: int, *, pretrained: bool) -> int:
    """Let only the last ``trainable`` stages of ``net`` train, in place; return the number of stages.

    Parameters of the other stages get ``requires_grad=False``. If the weights are pretrained, their batch norms are
    frozen too, so that these stages are constants.

    Args:
        net: a timm feature extractor.
        taps: timm's ``feature_info`` entries up to the last map in use.
        trainable: 0 to the number of stages.
        pretrained: True if the weights are trained ones, or such weights will be loaded.

    Raises:
        InputError: ``trainable`` is out of range.
    """
    order = {name: i for i, name in enumerate(dict(net.named_modules()))}
    stages = _stages(order, taps)
    ends = sorted(stages)
    if not ends:
        raise InputError("trainable_stages must be None for this model: timm does not say where its stages end")
    if not 0 <= trainable <= len(ends):
        places = ", ".join(stages[end] for end in ends)
        raise InputError(
            f"trainable_stages must be 0 to {len(ends)} (the stages end at {places}), got {trainable}; None trains all"
        )

    def is_frozen(module: str) -> bool:
        stage = min(bisect_left(ends, order[module]), len(ends) - 1)
        return stage < len(ends) - trainable

    for name, parameter in net.named_parameters():
        if is_frozen(name.rpartition(".")[0]):
            parameter.requires_grad_(False)
    if pretrained:
        replace_modules(net, [name for name in batch_norms(net) if is_frozen(name)], freeze_batch_norm_2d)
    return len(ends)


def _stages(order: dict[str, int], taps: Sequence[dict[str, Any]]) -> dict[int, str]:
    """Return the position of each stage's last module in registration order, and how to name the stage.

    A tap that is not found becomes part of the next stage.
    """
    stages: dict[int, str] = {}
    for tap in taps:
        name = _registered_name(order, tap["module"])
        if name is None:
            continue
        inside = [i for module, i in order.items() if module == name or module.startswith(name + ".")]
        end = inside[0] - 1 if tap.get("hook_type") == "forward_pre" else inside[-1]
        stages[end] = f"{tap['module']} (stride {tap['reduction']})"
    return stages


def _registered_name(order: dict[str, int], tap: str) -> str | None:
    """Return a tap's name in timm's extractors: unchanged, flattened (``stages.0`` → ``stages_0``), or in a wrapper."""
    for name in (tap, tap.replace(".", "_", 1), f"model.{tap}", f"body.{tap}"):
        if tap and name in order:
            return name
    return None
