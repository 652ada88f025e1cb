"""The base class of fused layers, and the conditions under which the compiled kernels are used."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Self

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

from vovnet.errors import InputError
from vovnet.modules import has_hooks
from vovnet.ops.algorithms import Algorithm, Precision
from vovnet.ops.build import loader
from vovnet.processes import ForkSafeLock

MOST_SHAPES = 1000
"""Number of input shapes for which a layer remembers what it has chosen."""

generation = 0
"""Incremented when a fused layer is moved or converted. Plans of chains made in an earlier generation are outdated."""

_packing = ForkSafeLock()
"""Held while a weight is packed, so that threads that call a layer for the first time at once pack it once."""
_warned: set[str] = set()


class FusedLayer(nn.Module):
    """A layer for inference with one weight, which it packs for the kernels on first use.

    The packed weights are neither copied nor pickled with the layer.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, precision: Precision, algorithm: Algorithm) -> None:
        super().__init__()
        self.training = False
        self.precision: Precision = precision
        self.algorithm: Algorithm = algorithm
        self.packed: dict[Hashable, Tensor] = {}
        """Copies of the weight in other layouts or types."""
        self.by_shape: dict[Hashable, object] = {}
        """The choice for each input shape: an algorithm, or a chain's plan. At most ``MOST_SHAPES`` entries."""

    def train(self, mode: bool = True) -> Self:
        """Refuse to train.

        Raises:
            InputError: ``mode`` is true.
        """
        if mode:
            raise InputError(
                "train(): a fused copy is for inference; train the original and fuse it again. Parts of this copy may "
                "be in training mode now: call eval() on it before you use it"
            )
        return super().train(False)

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        raise InputError(
            "load_state_dict(): a fused copy has its own weights, with norms folded into them; load into the original "
            "and fuse it again"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        global generation
        super()._apply(fn, recurse)
        self.packed, self.by_shape = {}, {}
        generation += 1
        for parameter in self.parameters():
            warn_if_unsupported(parameter)
        return self

    def __getstate__(self) -> dict[str, object]:
        state: dict[str, object] = super().__getstate__()
        return state | {"packed": {}, "by_shape": {}}

    @property
    def requires_grad(self) -> bool:
        """True if a parameter requires a gradient; its values may then change."""
        return self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)

    def cached(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Return ``packed[key]``, which ``make`` computes on the first call."""
        if key not in self.packed:
            with _packing:
                if key not in self.packed:
                    # Tensors made in inference mode could not be used outside of it.
                    with torch.inference_mode(False), torch.no_grad():
                        self.packed[key] = make()
        return self.packed[key]

    @torch.compiler.assume_constant_result
    def pack(self, key: tuple[int, ...]) -> bool:
        """Store the weight, packed for an algorithm, as ``packed[key]``.

        ``torch.compile`` then sees a tensor that was always there.

        Args:
            key: the algorithm, perhaps followed by the (C, height, width) that the weight is viewed as.
        """
        weight = self.weight.detach()
        shaped = weight.reshape(-1, *key[1:]) if key[1:] else weight
        self.cached(key, lambda: torch.ops.vovnet.pack_conv(shaped.contiguous(), key[0]))
        return True

    def cast_weight(self, dtype: torch.dtype) -> Tensor:
        """Return the weight as plain PyTorch needs it for feature maps of ``dtype``."""
        weight = self.weight
        if self.precision != "bf16" or weight.dtype == dtype:
            return weight
        if is_recorded() or weight.requires_grad:
            return weight.to(dtype)
        return self.cached(dtype, lambda: weight.to(dtype))

    def compute_dtype(self, x: Tensor) -> torch.dtype:
        """Return the type that ``x`` is computed with.

        Raises:
            InputError: the layer does not take the type of ``x``, or is on another device.
        """
        weight = self.weight
        if x.device != weight.device:
            raise InputError(f"x: expected it on {weight.device}, where the fused layer is, got {x.device}")
        low = self.precision == "bf16"
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):  # autocast chooses the types
            return x.dtype
        accepted = dict.fromkeys((weight.dtype, torch.bfloat16) if low else (weight.dtype,))
        if x.dtype not in accepted:
            raise InputError(f"x: expected {' or '.join(map(str, accepted))}, got {x.dtype}; convert the image")
        return torch.bfloat16 if low else weight.dtype

    def output_dtype(self, x: Tensor) -> torch.dtype:
        """Return the type of the layer's output for an input ``x``."""
        return torch.bfloat16 if self.precision == "bf16" else x.dtype


def refuse_fused(model: nn.Module, argument: str) -> None:
    """Refuse a fused copy where only PyTorch's operators can be used, as in exported files.

    Raises:
        InputError: a layer of the model is fused.
    """
    if any(isinstance(module, FusedLayer) for module in model.modules()):
        raise InputError(
            f"{argument}: a fused copy, whose operators exported files cannot hold; export the model it was made of"
        )


def supported(*maps: Tensor) -> bool:
    """True if the compiled kernels take these feature maps in PyTorch's current mode. May build the kernels."""
    for x in maps:
        known = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
        if not known or 0 in x.shape or needs_gradient(x):
            return False
    if torch.jit.is_tracing() or torch.is_autocast_enabled("cpu"):
        return False
    # Traced and exported models contain only PyTorch's operators.
    return kernels_available() and not torch.compiler.is_exporting()


@torch.compiler.assume_constant_result
def kernels_available() -> bool:
    """True if the compiled kernels for the CPU can be loaded. The first call may build them."""
    return loader.cpu_operators()


@torch.compiler.assume_constant_result
def num_threads() -> int:
    """Return PyTorch's number of threads."""
    return torch.get_num_threads()


def is_recorded() -> bool:
    """True while ``torch.jit.trace`` or ``torch.compile`` records the operators."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def is_profiled() -> bool:
    """True while a profiler of PyTorch follows this thread, and nothing records the operators."""
    return not is_recorded() and torch.autograd._profiler_enabled()


def needs_gradient(x: Tensor) -> bool:
    """True if autograd follows ``x``, in backward or in forward mode."""
    if torch.is_grad_enabled() and x.requires_grad:
        return True
    return not torch.compiler.is_compiling() and unpack_dual(x).tangent is not None


def warn_of_hooks(module: nn.Module, x: object) -> None:
    """Warn, once, that the hooks of a module see no gradients, if gradients are enabled and the input has none."""
    if is_recorded() or not torch.is_grad_enabled() or not isinstance(x, Tensor) or x.requires_grad:
        return
    if has_hooks(module) and "hooks" not in _warned:
        _warned.add("hooks")
        warnings.warn(
            "a module of a fused copy has hooks, and its feature maps have no gradients. For gradients, as Grad-CAM "
            "needs them, take the model that the copy was made of, or call images.requires_grad_(); if you want none, "
            "call the copy under torch.no_grad()",
            stacklevel=2,
        )


def warn_if_unsupported(parameter: Tensor) -> None:
    """Warn, once for each type and device, that the kernels are not used for such a parameter."""
    if parameter.is_meta or (parameter.device.type == "cpu" and parameter.dtype == torch.float32):
        return
    where = f"{parameter.dtype} on {parameter.device.type}"
    if where not in _warned:
        _warned.add(where)
        warnings.warn(
            f"a fused copy in {where} runs as plain PyTorch: the kernels take float32 on the CPU", stacklevel=2
        )
