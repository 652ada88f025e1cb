"""Take feature maps from modules inside a timm model, where timm's own ``feature_info`` has none."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vovnet.adapters.features import Features, quiet_forward
from vovnet.errors import InputError, did_you_mean, reason

_SIDE = 256
"""Side of the image that measures the strides, in pixels."""


class _Outputs:
    """Collects what some modules of a network return. Its methods are hooks, which copies of the network take along."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.found: dict[int, dict[str, Tensor]] = {}
        """The maps of each thread that is in the network, because a server may run it in several at once."""

    def keep(self, name: str) -> _Keeper:
        return _Keeper(self, name)

    def maps(self, module: nn.Module, images: Any, output: Any) -> list[Tensor]:
        """Return the collected maps in place of the network's output."""
        found = self.found.pop(_thread())
        return [found[name] for name in self.names]


class _Keeper:
    """The hook of one module."""

    def __init__(self, outputs: _Outputs, name: str) -> None:
        self.outputs, self.name = outputs, name

    def __call__(self, module: nn.Module, images: Any, output: Tensor) -> None:
        self.outputs.found.setdefault(_thread(), {})[self.name] = output


def _thread() -> int:
    """Return the number of this thread; in a graph that is being compiled, a constant."""
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


def with_outputs(features: Features, names: Sequence[str]) -> Features:
    """Return features whose maps are the outputs of modules, changing their network in place.

    The state dict's keys do not change. The strides are measured; two maps may have the same stride, as torchvision's
    MobileNetV3 pyramid has.

    Args:
        features: the features of a timm model.
        names: the modules, from the finest map to the coarsest, such as ``["blocks.5.0", "blocks.6"]``.

    Raises:
        InputError: the network has no such module, or its output is no map of a stride that a pyramid can take.
    """
    modules = dict(features.net.named_modules())
    if not names:
        raise InputError(f"out_modules is empty; name modules of {features.name}, or give None to take timm's maps")
    for name in names:
        if name not in modules or not name:
            raise InputError(f"out_modules: {features.name} has no module {name!r}; {did_you_mean(name, modules)}")
    outputs = _Outputs(names)
    for name in dict.fromkeys(names):
        modules[name].register_forward_hook(outputs.keep(name))
    features.net.register_forward_hook(outputs.maps)
    try:
        maps = quiet_forward(features.net, features.in_chans, _SIDE, _SIDE)
    except Exception as error:  # the network's own, or of a module that is not run or whose output is no tensor
        raise InputError(
            f"out_modules: {features.name} gives no maps of a {_SIDE}×{_SIDE} image from {', '.join(names)} "
            f"({type(error).__name__}: {reason(error)}); some timm models take any size with backbone_args "
            "{'strict_img_size': False} or {'dynamic_img_size': True}"
        ) from error
    try:
        shapes = [m.permute(0, 3, 1, 2).shape if features.channels_last else m.shape for m in maps]
        found = [(channels, _SIDE / height) for _, channels, height, _ in shapes]
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"out_modules: {', '.join(names)} of {features.name} do not give maps (N, C, H, W)") from error
    strides = [stride for _, stride in found]
    if strides != sorted(strides) or any(math.log2(stride) % 1 for stride in strides):
        raise InputError(
            f"out_modules: {', '.join(names)} of {features.name} give maps with strides "
            f"{', '.join(f'{stride:g}' for stride in strides)}, but they must be powers of two that do not fall"
        )
    return replace(
        features,
        positions=tuple(range(len(names))),
        channels=tuple(channels for channels, _ in found),
        strides=tuple(int(stride) for stride in strides),
    )
