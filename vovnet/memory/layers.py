"""Training in less memory: OSA networks keep what they must for the backward pass and nothing twice.

What timm's and our networks keep beside that: the concatenation of every block, the norm's input beside its output, the
aggregation's output for its ReLU, eight bytes of index for every pooled element. docs/operators.md draws it.
"""

from __future__ import annotations

import logging
from typing import Any

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

LEVELS = {"normal": 1, "low": 2}
"""How many of the stem's first convolutions are computed again in the backward pass."""

_log = logging.getLogger("vovnet")


def memory_efficient(model: nn.Module, memory: str = "normal") -> nn.Module:
    """Make a model with OSA blocks train in less memory, in place.

    Outputs and gradients are the same but for rounding; parameters, buffers and the state dict's keys stay. Works on
    our networks and timm's ``vovnet*`` and ``ese_vovnet*``, as classifiers, with ``features_only`` and inside of a
    detector, with batch norms that train or are frozen. On the CPU it is plain PyTorch. ``torch.compile`` sees the
    operators of :mod:`vovnet.ops` and decides itself what to compute again.

    Args:
        model: changed in place: its convolutions, OSA blocks and max-pools become the subclasses of this module.
        memory: ``normal`` computes the stem's first activation again, ``low`` its second, too (2 % more operations).

    Returns:
        The same model.

    Raises:
        InputError: ``memory`` is neither, or the model has no OSA block.
    """
    if memory not in LEVELS:
        raise InputError(f"memory must be one of {', '.join(map(repr, LEVELS))}, got {memory!r}")
    if not has_osa_blocks(model):
        raise InputError(
            f"this {type(model).__name__} has no OSA block; expected a vovnet or ese_vovnet of ours or timm's, or a "
            "detector over one"
        )
    for module in model.modules():
        new = _SUBCLASSES.get(type(module))
        if new is not None:
            module.__class__ = new  # the same object: whoever refers to it, its hooks and its parameters stay
    for number, conv in enumerate(_stem(model)):
        conv.recompute = number < LEVELS[memory]
    if left := _left_alone(model):
        _log.info("memory_efficient leaves as they are: %s", ", ".join(left))
    return model


def plain_layers(model: nn.Module) -> None:
    """Give a model the classes back that it had before :func:`memory_efficient`, in place."""
    for module in model.modules():
        plain = next((old for old, new in _SUBCLASSES.items() if new is type(module)), None)
        if plain is not None:
            module.__class__ = plain


def has_osa_blocks(model: nn.Module) -> bool:
    """Whether :func:`memory_efficient` has something to do."""
    return any(isinstance(module, OsaBlock | timm_vovnet.OsaBlock) for module in model.modules())


class _FoldedNorm(TimmConvNormAct):
    """Forward pass that folds a fixed norm into the convolution; a norm that trains keeps only its input."""

    recompute = False
    """Whether the output is computed again where it is needed in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        if not _is_plain(self):
            return super().forward(x)
        affine, geometry = _fixed(self), conv_geometry(self.conv)
        if affine is None:
            return _normalise(self, conv_affine(x, self.conv.weight, geometry, None, recompute=False))
        return conv_affine(x, self.conv.weight, geometry, affine, recompute=self.recompute)


class MemoryEfficientConvNormAct(_FoldedNorm, ConvNormAct):
    """Our convolution, norm and activation."""


class MemoryEfficientTimmConvNormAct(_FoldedNorm):
    """timm's convolution, norm and activation."""


class MemoryEfficientMaxPool2d(nn.MaxPool2d):
    """A max-pool that keeps a byte an output."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride, padding = (to_pair(value) for value in (self.kernel_size, self.stride, self.padding))
        if to_pair(self.dilation) != [1, 1] or self.return_indices or kernel[0] * kernel[1] > 255 or x.dim() != 4:
            return super().forward(x)
        return max_pool(x, kernel, stride, padding, self.ceil_mode)


class MemoryEfficientOsaBlock(OsaBlock):
    """Our block without its concatenation."""

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for conv in self.conv_mid:
            features.append(conv(features[-1]))
        fused = self.identity and _passes(self.drop_path)
        out = _aggregated(self.conv_concat, features, x if fused else None)
        if self.identity and not fused:
            out = self.drop_path(out) + x
        return out


class MemoryEfficientTimmOsaBlock(timm_vovnet.OsaBlock):
    """timm's block without its concatenation."""

    def forward(self, x: Tensor) -> Tensor:
        if has_hooks(self.conv_mid):  # it makes the concatenation
            return super().forward(x)
        features = [x]
        last = x if self.conv_reduction is None else self.conv_reduction(x)
        for conv in self.conv_mid:
            last = conv(last)
            features.append(last)
        fused = self.residual and self.attn is None and _passes(self.drop_path)
        out = _aggregated(self.conv_concat, features, x if fused else None)
        if self.attn is not None:
            out = self.attn(out)
        if self.drop_path is not None:
            out = self.drop_path(out)
        return out + x if self.residual and not fused else out


_SUBCLASSES: dict[type[nn.Module], type[nn.Module]] = {
    ConvNormAct: MemoryEfficientConvNormAct,
    TimmConvNormAct: MemoryEfficientTimmConvNormAct,
    nn.MaxPool2d: MemoryEfficientMaxPool2d,
    OsaBlock: MemoryEfficientOsaBlock,
    timm_vovnet.OsaBlock: MemoryEfficientTimmOsaBlock,
}


def _aggregated(layer: Any, features: list[Tensor], residual: Tensor | None) -> Tensor:
    """What the aggregation layer makes of the features' concatenation, and the residual."""
    if has_hooks(layer) or not _is_plain(layer):
        out = layer(torch.cat(features, dim=1))
    elif (affine := _fixed(layer)) is not None:
        return aggregate_features(features, layer.conv.weight, affine, residual)
    else:
        out = _normalise(layer, aggregate_features(features, layer.conv.weight, None))
    return out if residual is None else out + residual


def _is_plain(layer: Any) -> bool:
    """Whether a ConvNormAct is a convolution with zeros around it, a batch norm and a ReLU, and nothing more."""
    if torch.jit.is_tracing():  # what it records stays plain torch
        return False
    conv, norm = layer.conv, layer.bn
    plain_conv = type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and conv.bias is None
    plain_norm = type(norm) in _NORMS
    known = _passes(getattr(norm, "drop", None)) and all(type(act) is nn.ReLU for act in _activations(layer))
    if any(has_hooks(module) for module in layer.modules() if module is not layer):
        return False  # they would not be called
    return plain_conv and not isinstance(conv.padding, str) and plain_norm and known and _passes(layer.aa)


_NORMS = (BatchNormAct2d, FrozenBatchNormAct2d, nn.BatchNorm2d, FrozenBatchNorm2d)


def _activations(layer: Any) -> list[nn.Module]:
    """Return what is applied after the normalisation: inside timm's norms, and beside the norm in our layers."""
    found = getattr(layer.bn, "act", None), getattr(layer, "act", None)
    return [act for act in found if act is not None and type(act) is not nn.Identity]


def _passes(module: nn.Module | None) -> bool:
    """Whether a module that may drop something lets everything through, and nobody looks at it."""
    if module is not None and has_hooks(module):
        return False
    if isinstance(module, DropPath):
        return not module.training or not module.drop_prob
    return module is None or isinstance(module, nn.Identity)


def _fixed(layer: Any) -> Affine | None:
    """A norm that does not depend on the batch as a scale and a shift; None for one that trains."""
    norm = layer.bn
    if isinstance(norm, nn.BatchNorm2d) and (norm.training or norm.running_mean is None):
        return None
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = norm.weight * scale
    shift = -norm.running_mean * scale
    if norm.bias is not None:
        shift = norm.bias + shift
    return Affine(scale, shift, bool(_activations(layer)))


def _normalise(layer: Any, x: Tensor) -> Tensor:
    """As ``BatchNormAct2d.forward`` does where it takes the batch's statistics."""
    norm = layer.bn
    if torch.compiler.is_compiling() or x.numel() == 0:
        x = norm(x)
        return layer.act(x) if hasattr(layer, "act") else x
    tracks = norm.training and norm.track_running_stats
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if tracks and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    return norm_relu(
        x,
        norm.weight,
        norm.bias,
        norm.running_mean if tracks else None,
        norm.running_var if tracks else None,
        momentum,
        norm.eps,
        relu=bool(_activations(layer)),
    )


def _stem(model: nn.Module) -> list[_FoldedNorm]:
    """The convolutions before the first OSA block that only feed the next one, in order."""
    convs: list[_FoldedNorm] = []
    for module in model.modules():
        if isinstance(module, OsaBlock | timm_vovnet.OsaBlock):
            break
        if isinstance(module, _FoldedNorm):
            convs.append(module)
        elif isinstance(module, TimmConvNormAct | timm_vovnet.SeparableConvNormAct):
            break
    return convs[:-1]


def _left_alone(model: nn.Module) -> list[str]:
    """Layers of a kind that is handled here, but with something in them that is not."""
    return [
        f"{name} ({type(module.conv).__name__}, {type(module.bn).__name__})"
        for name, module in model.named_modules()
        if isinstance(module, _FoldedNorm) and not _is_plain(module)
    ]
