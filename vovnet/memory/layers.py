"""Layers with which OSA networks train in less memory.

The layers of timm and of this library keep more for the backward pass than it needs: the concatenation of every block,
each norm's output beside its input, the aggregation's output for its ReLU, and an eight-byte index for every pooled
element. docs/explanation/memory.md draws this.
"""

from __future__ import annotations

import logging
from typing import Literal, TypeVar, cast, get_args

import timm.models.vovnet as timm_vovnet
import torch
from timm.layers import BatchNormAct2d, DropPath, FrozenBatchNormAct2d
from timm.layers import ConvNormAct as TimmConvNormAct
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from vovnet.errors import InputError
from vovnet.memory.pooling import max_pool
from vovnet.memory.recompute import Affine, aggregate_features, conv_affine, norm_relu
from vovnet.modules import conv_geometry, has_hooks, to_pair
from vovnet.vovnet import ConvNormAct, OsaBlock

M = TypeVar("M", bound=nn.Module)

Memory = Literal["normal", "low"]
_RECOMPUTED: dict[Memory, int] = {"normal": 1, "low": 2}
"""How many of the stem's first convolutions are computed again in the backward pass."""

_NORMS = (BatchNormAct2d, FrozenBatchNormAct2d, nn.BatchNorm2d, FrozenBatchNorm2d)

_log = logging.getLogger("vovnet")


def memory_efficient(model: M, memory: Memory = "normal") -> M:
    """Make a model with OSA blocks train in less memory, in place.

    Outputs and gradients change only by rounding; parameters, buffers and the keys of the state dict stay. This works
    for the networks of this library and timm's ``vovnet*`` and ``ese_vovnet*``: as classifiers, with ``features_only``
    and inside a detector, with batch norms that train or are frozen. On the CPU it is plain PyTorch. ``torch.compile``
    sees the operators of :mod:`vovnet.ops` and decides itself what to compute again.

    Args:
        model: is changed in place: its convolutions, OSA blocks and max-pools become the subclasses of this module.
        memory: ``normal`` computes the first activation of the stem again, ``low`` also the second one (2 % more
            operations).

    Returns:
        The same model.

    Raises:
        InputError: ``memory`` has another value, or the model has no OSA block.
    """
    if memory not in get_args(Memory):
        raise InputError(f"memory must be one of {', '.join(map(repr, get_args(Memory)))}, got {memory!r}")
    if not has_osa_blocks(model):
        raise InputError(
            f"this {type(model).__name__} has no OSA block; expected a vovnet or ese_vovnet of ours or timm's, or a "
            "detector over one"
        )
    for module in model.modules():
        new = _SUBCLASSES.get(type(module))
        if new is not None:
            module.__class__ = new  # the object, its hooks and its parameters stay the same
    for number, conv in enumerate(_stem(model)):
        conv.recompute = number < _RECOMPUTED[memory]
    if left := _unchanged_layers(model):
        _log.info("memory_efficient leaves as they are: %s", ", ".join(left))
    return model


def plain_layers(model: nn.Module) -> None:
    """Undo :func:`memory_efficient`, in place."""
    for module in model.modules():
        if type(module) in _SUBCLASSES.values():
            module.__class__ = original_class(type(module))


def original_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class that :func:`memory_efficient` replaced by ``kind``, or else ``kind`` itself."""
    return next((old for old, new in _SUBCLASSES.items() if new is kind), kind)


def has_osa_blocks(model: nn.Module) -> bool:
    """True if the model has blocks that :func:`memory_efficient` can change."""
    return any(isinstance(module, OsaBlock | timm_vovnet.OsaBlock) for module in model.modules())


class _FoldedNorm(TimmConvNormAct):
    """Forward pass that folds a fixed norm into the convolution. If the norm trains, only its input is kept."""

    recompute = False
    """True if the backward pass computes the output again."""

    def forward(self, x: Tensor) -> Tensor:
        if not _is_plain(self):
            return super().forward(x)
        affine, geometry = _fixed_affine(self), conv_geometry(self.conv)
        if affine is None:
            return _normalise(self, conv_affine(x, self.conv.weight, geometry, None, recompute=False))
        return conv_affine(x, self.conv.weight, geometry, affine, recompute=self.recompute)


class MemoryEfficientConvNormAct(_FoldedNorm, ConvNormAct):
    """:class:`vovnet.vovnet.ConvNormAct` that keeps less."""


class MemoryEfficientTimmConvNormAct(_FoldedNorm):
    """timm's ``ConvNormAct`` that keeps less."""


class MemoryEfficientMaxPool2d(nn.MaxPool2d):
    """A max-pool that keeps one byte per output element."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride, padding = (to_pair(value) for value in (self.kernel_size, self.stride, self.padding))
        if to_pair(self.dilation) != [1, 1] or self.return_indices or kernel[0] * kernel[1] > 255 or x.dim() != 4:
            return super().forward(x)
        return max_pool(x, kernel, stride, padding, self.ceil_mode)


class MemoryEfficientOsaBlock(OsaBlock):
    """:class:`vovnet.vovnet.OsaBlock` without its concatenation."""

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for conv in self.conv_mid:
            features.append(conv(features[-1]))
        adds_input = self.identity and _does_nothing(self.drop_path)
        out = _aggregate(self.conv_concat, features, x if adds_input else None)
        if self.identity and not adds_input:
            out = self.drop_path(out) + x
        return out


class MemoryEfficientTimmOsaBlock(timm_vovnet.OsaBlock):
    """timm's ``OsaBlock`` without its concatenation."""

    def forward(self, x: Tensor) -> Tensor:
        if has_hooks(self.conv_mid):  # this module makes the concatenation
            return super().forward(x)
        features = [x]
        last = x if self.conv_reduction is None else self.conv_reduction(x)
        for conv in self.conv_mid:
            last = conv(last)
            features.append(last)
        adds_input = self.residual and self.attn is None and _does_nothing(self.drop_path)
        out = _aggregate(self.conv_concat, features, x if adds_input else None)
        if self.attn is not None:
            out = self.attn(out)
        if self.drop_path is not None:
            out = self.drop_path(out)
        return out + x if self.residual and not adds_input else out


_SUBCLASSES: dict[type[nn.Module], type[nn.Module]] = {
    ConvNormAct: MemoryEfficientConvNormAct,
    TimmConvNormAct: MemoryEfficientTimmConvNormAct,
    nn.MaxPool2d: MemoryEfficientMaxPool2d,
    OsaBlock: MemoryEfficientOsaBlock,
    timm_vovnet.OsaBlock: MemoryEfficientTimmOsaBlock,
}


def _aggregate(layer: TimmConvNormAct, features: list[Tensor], residual: Tensor | None) -> Tensor:
    """Compute the aggregation layer of the features' concatenation, and add the residual."""
    if has_hooks(layer) or not _is_plain(layer):
        out: Tensor = layer(torch.cat(features, dim=1))
    elif (affine := _fixed_affine(layer)) is not None:
        return aggregate_features(features, layer.conv.weight, affine, residual)
    else:
        out = _normalise(layer, aggregate_features(features, layer.conv.weight, None))
    return out if residual is None else out + residual


def _is_plain(layer: TimmConvNormAct) -> bool:
    """True if the layer is only a zero-padded convolution, a batch norm and a ReLU or no activation, without hooks."""
    if torch.jit.is_tracing():  # a trace should contain plain PyTorch
        return False
    conv, norm = layer.conv, layer.bn
    if any(has_hooks(module) for module in layer.modules() if module is not layer):
        return False  # the hooks would not be called
    plain_conv = type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and conv.bias is None
    plain_norm = type(norm) in _NORMS and _does_nothing(getattr(norm, "drop", None))
    relu = all(type(act) is nn.ReLU for act in _activations(layer))
    return plain_conv and not isinstance(conv.padding, str) and plain_norm and relu and _does_nothing(layer.aa)


def _activations(layer: TimmConvNormAct) -> list[nn.Module]:
    """Return what follows the normalisation: inside timm's norms, and beside the norm in our layers."""
    found = getattr(layer.bn, "act", None), getattr(layer, "act", None)
    return [act for act in found if act is not None and type(act) is not nn.Identity]


def _does_nothing(module: nn.Module | None) -> bool:
    """True if a module that may drop something returns its input now, and has no hooks."""
    if module is not None and has_hooks(module):
        return False
    if isinstance(module, DropPath):
        return not module.training or not module.drop_prob
    return module is None or isinstance(module, nn.Identity)


def _fixed_affine(layer: TimmConvNormAct) -> Affine | None:
    """Return the scale and shift of a norm that does not depend on the batch; None if the norm does."""
    norm = cast(nn.BatchNorm2d, layer.bn)  # or a frozen norm, which has the same attributes
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None or (isinstance(norm, nn.BatchNorm2d) and norm.training):
        return None
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = norm.weight * scale
    shift = -mean * scale
    if norm.bias is not None:
        shift = norm.bias + shift
    return Affine(scale, shift, len(_activations(layer)) > 0)


def _normalise(layer: TimmConvNormAct, x: Tensor) -> Tensor:
    """Normalise with the batch's statistics as ``nn.BatchNorm2d.forward`` does, and apply the activation."""
    norm = cast(nn.BatchNorm2d, layer.bn)
    if torch.compiler.is_compiling() or x.numel() == 0:
        x = norm(x)
        return layer.act(x) if isinstance(layer, ConvNormAct) else x
    tracks = norm.training and norm.track_running_stats
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if tracks and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    running = (norm.running_mean, norm.running_var) if tracks else (None, None)
    return norm_relu(x, norm.weight, norm.bias, *running, momentum, norm.eps, relu=len(_activations(layer)) > 0)


def _stem(model: nn.Module) -> list[_FoldedNorm]:
    """Return the convolutions before the first OSA block whose output goes only into the next one, in order."""
    convs: list[_FoldedNorm] = []
    for module in model.modules():
        if isinstance(module, OsaBlock | timm_vovnet.OsaBlock):
            break
        if isinstance(module, _FoldedNorm):
            convs.append(module)
        elif isinstance(module, TimmConvNormAct | timm_vovnet.SeparableConvNormAct):
            break
    return convs[:-1]


def _unchanged_layers(model: nn.Module) -> list[str]:
    """Return the names of layers that contain something :func:`memory_efficient` does not handle."""
    return [
        f"{name} ({type(module.conv).__name__}, {type(module.bn).__name__})"
        for name, module in model.named_modules()
        if isinstance(module, _FoldedNorm) and not _is_plain(module)
    ]
