"""When the compiled kernels serve a call of a fused layer, and what is made of its weights for them.

It is made on first use and kept with the layer, never copied or pickled with it.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

from vovnet.errors import InputError
from vovnet.ops.build import loader

MOST_SHAPES = 1000
"""Of maps, for which a layer remembers the method, and a chain what its call takes."""
moves = 0
"""How often fused layers were moved or converted; what chains remember of their layers may then be out of date."""

_packing = threading.Lock()
"""Threads that meet a layer first at the same time pack it once."""
_forked = False
_warned: set[str] = set()


def _in_child() -> None:
    global _packing, _forked
    _packing = threading.Lock()  # a thread that is not there any more may have held it
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


@contextmanager
def _alone() -> Iterator[None]:
    """On one thread in a forked process: OpenMP's others are not there, and PyTorch would wait for them for ever."""
    threads = torch.get_num_threads()
    if _forked:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if _forked:
            torch.set_num_threads(threads)


class FusedLayer(nn.Module):
    """A layer for inference: it has parameters that never train, and what was made of them for the kernels."""

    def __init__(self, precision: str, algorithm: str) -> None:
        super().__init__()
        self.training = False
        self.precision = precision
        self.algorithm = algorithm
        self._prepared: dict[Any, Any] = {}

    def train(self, mode: bool = True) -> Self:
        """Refuses to train.

        Raises:
            InputError: ``mode`` is true.
        """
        if mode:
            raise InputError(
                "train(): a fused copy is for inference; train the original and fuse it again. Parts of this copy may "
                "be in training mode now: call eval() on it before you use it"
            )
        return super().train(False)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise InputError(
            "load_state_dict(): a fused copy has its own weights, with norms in them; load into the original and fuse "
            "it again"
        )

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        global moves
        super()._apply(fn, recurse)
        self._prepared = {}
        moves += 1
        for parameter in self.parameters():
            warn_if_plain(parameter)
        return self

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return state | {"_prepared": {}}

    @property
    def learns(self) -> bool:
        """Whether somebody wants a parameter's gradient, and may then change it."""
        weight: Any = self.weight
        bias: Any = self.bias
        return bool(weight.requires_grad or (bias is not None and bias.requires_grad))

    def prepared(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` returns, made once for a key."""
        if key not in self._prepared:
            with _packing:
                if key not in self._prepared:
                    # Tensors of inference mode could not be used outside of it.
                    with torch.inference_mode(False), torch.no_grad(), _alone():
                        self._prepared[key] = make()
        return self._prepared[key]

    @torch.compiler.assume_constant_result
    def pack(self, key: tuple[int, ...]) -> bool:
        """Pack the weight for ``key``, a method and perhaps the shape of a kernel, as ``self._prepared[key]``.

        ``torch.compile`` sees only that, as a tensor that was always there.
        """
        weight: Any = self.weight
        shaped = weight.detach().reshape(-1, *key[1:]) if key[1:] else weight.detach()
        self.prepared(key, lambda: torch.ops.vovnet.pack_conv(shaped.contiguous(), key[0]))
        return True

    def lowered(self, dtype: torch.dtype) -> Tensor:
        """The weight as plain PyTorch computes with it beside maps of ``dtype``."""
        weight: Any = self.weight
        if self.precision != "bf16" or weight.dtype == dtype:
            return weight
        if traced() or weight.requires_grad:
            return weight.to(dtype)
        return self.prepared(dtype, lambda: weight.to(dtype))

    def computes_in(self, x: Tensor, weight: Tensor) -> torch.dtype:
        """The type of the maps.

        Raises:
            InputError: ``x`` is of another type or on another device than the layer takes.
        """
        if x.device != weight.device:
            raise InputError(f"x: expected it on {weight.device}, where the fused layer is, got {x.device}")
        low = self.precision == "bf16"
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):  # plain PyTorch then chooses the types
            return x.dtype
        taken = dict.fromkeys((weight.dtype, torch.bfloat16) if low else (weight.dtype,))
        if x.dtype not in taken:
            raise InputError(f"x: expected {' or '.join(map(str, taken))}, got {x.dtype}; convert the image")
        return torch.bfloat16 if low else weight.dtype


def kernels_serve(*maps: Tensor) -> bool:
    """Whether compiled kernels take maps like these, in this mode of PyTorch; the first call may build them."""
    for x in maps:
        known = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
        if not known or 0 in x.shape or differentiates(x):
            return False
    if torch.jit.is_tracing() or torch.is_autocast_enabled("cpu"):
        return False
    return compiled() and not torch.compiler.is_exporting()  # what is traced or exported stays plain PyTorch


@torch.compiler.assume_constant_result
def compiled() -> bool:
    """Whether the kernels are there."""
    return loader.cpu_operators()


@torch.compiler.assume_constant_result
def threads() -> int:
    """Of PyTorch."""
    return torch.get_num_threads()


def traced() -> bool:
    """Whether something records the operators."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def differentiates(*values: Tensor) -> bool:
    """Whether autograd follows one of them, backward or forward."""
    if torch.is_grad_enabled() and any(value.requires_grad for value in values):
        return True
    return not torch.compiler.is_compiling() and any(unpack_dual(value).tangent is not None for value in values)


def warn_if_plain(parameter: Tensor) -> None:
    """Say once, for each type and device, that the kernels are for another one."""
    if parameter.is_meta or (parameter.device.type == "cpu" and parameter.dtype == torch.float32):
        return
    where = f"{parameter.dtype} on {parameter.device.type}"
    if where not in _warned:
        _warned.add(where)
        warnings.warn(
            f"a fused copy in {where} runs as plain PyTorch: the kernels take float32 on the CPU", stacklevel=2
        )


def dense(x: Tensor, precision: str) -> Tensor:
    return x.to(result_type(x, precision)).contiguous(memory_format=torch.channels_last)


def result_type(x: Tensor, precision: str) -> torch.dtype:
    """The type that a layer's output has."""
    return torch.bfloat16 if precision == "bf16" else x.dtype
