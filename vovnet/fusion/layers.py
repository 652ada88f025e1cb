"""The layers that :func:`vovnet.fuse` puts in: convolutions with folded norms, OSA blocks, max-pools, linear layers.

Where the compiled kernels serve a call they run it; else plain PyTorch computes the same, and what needs a gradient
always does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vovnet.errors import InputError
from vovnet.fusion.base import (
    MOST_SHAPES,
    FusedLayer,
    dense,
    differentiates,
    kernels_serve,
    result_type,
    threads,
    traced,
)
from vovnet.fusion.sequences import Link, run
from vovnet.modules import Geometry
from vovnet.ops import onednn
from vovnet.ops.algorithms import IMAGE_CHANNELS, conv_method
from vovnet.ops.inference import block_step, conv_step, pool_step, repeated

MOST_CONVS = 16
"""Of an OSA block that the kernels take in one call (``kMaxSources`` in csrc/cpu/kernels.h)."""


class FusedConv(FusedLayer, Link):
    """A convolution with its norm folded in, a ReLU or another activation, and perhaps a map that is added last.

    (N, C, H, W) → (N, out channels, H', W'), channels-last.

    Args:
        weight: (out channels, C / groups, height, width); the layer takes it over.
        bias: (out channels,) or None.
        geometry: stride, padding, dilation and groups.
        relu: whether there is a ReLU.
        act: another activation.
        precision: ``fp32`` or ``bf16``.
        algorithm: ``auto`` or ``direct``.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        *,
        relu: bool,
        act: nn.Module | None = None,
        precision: str = "fp32",
        algorithm: str = "auto",
    ) -> None:
        super().__init__(precision, algorithm)
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.geometry = geometry
        self.relu = relu
        self.act = act
        stride, padding, dilation, groups = geometry
        size = weight.shape[2]
        usual = size == weight.shape[3] and size in (1, 3) and padding == [size // 2] * 2
        self.has_kernel = usual and groups == 1 and dilation == [1, 1] and stride in ([1, 1], [2, 2]) and act is None
        self.chains = self.has_kernel and bias is not None
        self.begins = precision == "bf16" and self.in_channels < IMAGE_CHANNELS

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.weight.shape[1] * self.geometry[3]

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.weight.shape[0]

    def extra_repr(self) -> str:
        size, (stride, padding, dilation, groups) = tuple(self.weight.shape[2:]), self.geometry
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={size}, stride={tuple(stride)}, padding="
            f"{tuple(padding)}, dilation={tuple(dilation)}, groups={groups}, relu={self.relu}, {self.precision}"
        )

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``act(conv2d(x)) + residual``; a smaller residual is repeated, as in a pyramid.

        Raises:
            InputError: ``x`` has another type, device, number of dimensions or of channels than the layer takes.
        """
        x = self.taken(x)
        if not self.served(x, *(() if residual is None else (residual,))):
            return self.plain(x, residual)
        if residual is not None and self.weight.shape[2] > 1:  # Winograd's transforms add nothing to their pixels
            return _added(self(x), residual)
        stride, padding, _, _ = self.geometry
        method = self.method(x.shape)
        if residual is not None:
            residual = dense(residual, self.precision)
        out: Tensor = torch.ops.vovnet.packed_conv(
            x, self.weight, self.bias, residual, self._prepared[(method,)], stride, padding, self.relu, method
        )
        return out

    def taken(self, x: Tensor) -> Tensor:
        """``x``, checked, in the type and layout that the layer computes with."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise InputError(f"x: expected (N, {self.in_channels}, H, W), got {tuple(x.shape)}")
        dtype = self.computes_in(x, self.weight)
        if x.shape[1] < IMAGE_CHANNELS:  # the kernels read an image as it lies
            return x.float() if x.dtype == torch.bfloat16 == dtype != self.weight.dtype else x
        return x.to(dtype).contiguous(memory_format=torch.channels_last)

    def served(self, x: Tensor, *others: Tensor) -> bool:
        """Whether the kernels take the call."""
        ready = self.has_kernel and self.weight.dtype == torch.float32 and not self.learns
        return ready and kernels_serve(x, *others)

    def method(self, shape: Sequence[int]) -> int:
        """How products are computed for a (N, C, H, W) map; the weight is packed for it."""
        if torch.compiler.is_compiling():
            return self._chosen(shape)
        # Choosing takes as long as a small layer's products.
        key = ("method", shape[0], shape[2], shape[3], threads())
        found: int | None = self._prepared.get(key)
        if found is None:
            found = self._chosen(shape)
            if len(self._prepared) < MOST_SHAPES:
                self._prepared[key] = found
        return found

    def _chosen(self, shape: Sequence[int]) -> int:
        batch, _, height, width = self.result(shape)
        method = conv_method(
            self.in_channels,
            self.out_channels,
            tuple(self.weight.shape[2:]),
            tuple(self.geometry[0]),
            batch,
            height,
            width,
            algorithm=self.algorithm,
            precision=self.precision,
            threads=threads(),
        )
        self.pack((method,))
        return method

    @property
    def convs(self) -> list[FusedConv]:
        """Itself."""
        return [self]

    def step(self, kept: bool) -> list[int]:
        """In a chain."""
        stride, padding, _, _ = self.geometry
        return conv_step(stride, padding, self.relu, kept)

    def result(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the output, of an input's."""
        stride, padding, _, _ = self.geometry
        kernel = self.weight.shape[2:]
        height, width = ((shape[2 + i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in range(2))
        return shape[0], self.out_channels, height, width

    def plain(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The same by PyTorch, with gradients."""
        dtype = result_type(x, self.precision)
        x = x.to(dtype)
        known = self.act is None and not self.learns and not differentiates(x)
        fused = known and not traced() and onednn.fuses_relu(x)
        if fused and self.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
            x = x.contiguous(memory_format=torch.channels_last)
            weight = self.prepared(("onednn", dtype), lambda: onednn.reordered(self.weight, self.geometry, x))
            out = onednn.convolution_relu(x, weight, self._bias(dtype), self.geometry, self.relu)
        else:
            weight = self.lowered(dtype)
            out = F.conv2d(x, weight, self._bias(weight.dtype), *self.geometry)
            if self.relu:
                out = out.relu_()
            if self.act is not None:
                out = self.act(out)
        return out if residual is None else _added(out, residual)

    def _bias(self, dtype: torch.dtype) -> Tensor | None:
        return None if self.bias is None else self.bias.to(dtype)


def _added(out: Tensor, residual: Tensor) -> Tensor:
    return out + repeated(residual, out.shape[-2:]).to(out.dtype)


class FusedOsaBlock(Link):
    """One-Shot Aggregation without its concatenation, and without maps between its convolutions.

    (N, C, H, W) → (N, out channels, H, W), channels-last.

    Args:
        chain: the 3×3 convolutions, each fed by the one before.
        aggregate: the 1×1 convolution of the input and of all that the chain gives.
        identity: add the input in the end.
        attn: an attention before that.
    """

    def __init__(
        self, chain: Sequence[FusedConv], aggregate: FusedConv, *, identity: bool, attn: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv_mid = nn.ModuleList(chain)
        self.conv_concat = aggregate
        self.identity = identity
        self.attn = attn
        convs = [*chain, aggregate]
        known = all(c.has_kernel and c.relu and c.bias is not None and c.in_channels >= IMAGE_CHANNELS for c in convs)
        sizes = [c.weight.shape[2] for c in convs] == [3] * len(chain) + [1]
        unstrided = all(c.geometry[0] == [1, 1] for c in convs)
        self.has_kernel = known and sizes and unstrided and len(convs) <= MOST_CONVS
        self.chains = self.has_kernel and attn is None

    def forward(self, x: Tensor) -> Tensor:
        """Raises InputError as :meth:`FusedConv.forward`."""
        first = self.convs[0]
        x = dense(first.taken(x), first.precision)
        found = run([self], [True], x) if self.has_kernel else None
        if found is not None:
            out = found[0]
        else:
            maps = [x]
            for conv in self.conv_mid:
                maps.append(conv(maps[-1]))
            joined = torch.cat([part.to(maps[-1].dtype) for part in maps], dim=1)  # autocast may have changed types
            out = self.conv_concat(joined, x if self.identity and self.attn is None else None)
        if self.attn is None:
            return out
        out = self.attn(out).to(out.dtype)
        return out + x if self.identity else out

    @property
    def convs(self) -> list[Any]:
        """The chain's and the aggregation."""
        return [*self.conv_mid, self.conv_concat]

    def step(self, kept: bool) -> list[int]:
        """In a chain, but for the attention."""
        return block_step(len(self.convs), self.identity and self.attn is None, kept)

    def result(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the output, of an input's."""
        return shape[0], self.convs[-1].out_channels, *shape[2:]


class FusedLinear(FusedLayer):
    """A linear layer as a convolution as large as its map, which is not flattened first.

    (N, C, H, W) or (N, C · H · W) → (N, out features).

    Args:
        weight: (out features, in features); the layer takes it over.
        bias: (out features,).
        relu: whether there is a ReLU.
        precision: ``fp32`` or ``bf16``.
        algorithm: ``auto`` or ``direct``.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, *, relu: bool, precision: str = "fp32", algorithm: str = "auto"
    ) -> None:
        super().__init__(precision, algorithm)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.relu = relu

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, relu={self.relu}, {self.precision}"

    def forward(self, x: Tensor) -> Tensor:
        """Raises InputError where ``x`` has another type, device or number of features than the layer takes."""
        if x.dim() not in (2, 4) or x.shape[1:].numel() != self.weight.shape[1]:
            raise InputError(f"x: expected (N, C, H, W) or (N, C) of {self.weight.shape[1]}, got {tuple(x.shape)}")
        dtype = self.computes_in(x, self.weight)
        x = x.to(dtype)
        maps = x if x.dim() == 4 else x[:, :, None, None]
        ready = self.weight.dtype == torch.float32 and not self.learns
        if not ready or not kernels_serve(maps):
            weight = self.lowered(dtype)
            out = F.linear(x.flatten(1), weight, self.bias.to(weight.dtype))
            return out.relu_() if self.relu else out
        return self._served(maps.contiguous(memory_format=torch.channels_last))

    def _served(self, x: Tensor) -> Tensor:
        number, channels, height, width = x.shape
        weight = self.weight.view(-1, channels, height, width)
        method = conv_method(
            channels,
            weight.shape[0],
            (height, width),
            (1, 1),
            number,
            1,
            1,
            algorithm=self.algorithm,
            precision=self.precision,
            threads=threads(),
        )
        key = (method, channels, height, width)
        self.pack(key)
        out: Tensor = torch.ops.vovnet.packed_conv(
            x, weight, self.bias, None, self._prepared[key], [1, 1], [0, 0], self.relu, method
        )
        return out.flatten(1)


class FusedMaxPool2d(Link):
    """A max-pool of channels-last maps that writes no indices.

    Args:
        kernel: height and width of the window.
        stride: of the window.
        padding: around the map.
        ceil_mode: windows may begin inside and end outside.
    """

    def __init__(self, kernel: list[int], stride: list[int], padding: list[int], ceil_mode: bool) -> None:
        super().__init__()
        self.arguments = kernel, stride, padding, ceil_mode
        self.chains = True

    @property
    def convs(self) -> list[Any]:
        """None."""
        return []

    def extra_repr(self) -> str:
        return "kernel_size={}, stride={}, padding={}, ceil_mode={}".format(*self.arguments)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H', W')."""
        kernel, stride, padding, ceil_mode = self.arguments
        if x.dim() == 4 and kernels_serve(x):
            x = x.contiguous(memory_format=torch.channels_last)
            out: Tensor = torch.ops.vovnet.pool_max(x, kernel, stride, padding, ceil_mode)
            return out
        return F.max_pool2d(x, kernel, stride, padding, 1, ceil_mode)

    def step(self, kept: bool) -> list[int]:
        """In a chain."""
        return pool_step(*self.arguments, kept)

    def result(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the output, of an input's."""
        kernel, stride, padding, ceil_mode = self.arguments
        like = torch.empty(*shape, device="meta")
        return tuple(F.max_pool2d(like, kernel, stride, padding, 1, ceil_mode).shape)
