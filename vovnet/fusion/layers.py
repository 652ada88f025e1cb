"""The layers that :func:`vovnet.fuse` puts into a model.

Each runs the compiled kernels if they take the call, and otherwise computes the same with PyTorch's operators. Calls
that need gradients always use PyTorch's operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vovnet.errors import InputError
from vovnet.fusion.base import MOST_SHAPES, FusedLayer, is_recorded, needs_gradient, num_threads, supported
from vovnet.fusion.chaining import Chainable, run
from vovnet.modules import Geometry
from vovnet.ops import onednn
from vovnet.ops.algorithms import IMAGE_CHANNELS, Algorithm, Precision, conv_method
from vovnet.ops.inference import block_step, conv_step, pool_step, repeated

MOST_CONVS = 16
"""Most convolutions of an OSA block that the kernels take in one call (``kMaxSources`` in csrc/cpu/kernels.h)."""


class FusedConv(FusedLayer, Chainable):
    """A convolution with its norm folded in, followed by an activation and the sum with another feature map.

    (N, C, H, W) → (N, out channels, H', W'), channels-last. The layer keeps ``weight``, (out channels, C / groups,
    height, width), and does not copy it. ``act`` is an activation other than a ReLU.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        *,
        relu: bool,
        act: nn.Module | None = None,
        precision: Precision = "fp32",
        algorithm: Algorithm = "auto",
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
        self.chainable = self.has_kernel and bias is not None
        self.chain_head_only = precision == "bf16" and self.in_channels < IMAGE_CHANNELS

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.weight.shape[1] * self.geometry.groups

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
        """Return ``act(conv2d(x)) + residual``; a smaller residual is repeated, as in a feature pyramid.

        One image without a batch, (C, H, W), gives (out channels, H', W'), as PyTorch's convolutions do.

        Raises:
            InputError: the layer does not take the type, device, dimensions or channels of ``x``.
        """
        if x.dim() == 3 and len(x) == self.in_channels:
            batched: Tensor = self(x[None], None if residual is None else residual[None])
            return batched[0]
        x = self.check_input(x)
        if not self.supported(x, *(() if residual is None else (residual,))):
            return self.reference_forward(x, residual)
        if residual is not None and self.weight.shape[2] > 1:  # the kernels for 3×3 windows add no residual
            return _add(self(x), residual)
        stride, padding, _, _ = self.geometry
        algorithm = self.choose_algorithm(x.shape)
        if residual is not None:
            residual = _channels_last(residual, self.output_dtype(residual))
        out: Tensor = torch.ops.vovnet.packed_conv(
            x, self.weight, self.bias, residual, self.packed[(algorithm,)], stride, padding, self.relu, algorithm
        )
        return out

    def check_input(self, x: Tensor) -> Tensor:
        """Return ``x`` in the type and layout that the layer computes with.

        Raises:
            InputError: as :meth:`forward`.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise InputError(f"x: expected (N, {self.in_channels}, H, W), got {tuple(x.shape)}")
        dtype = self.compute_dtype(x)
        if x.shape[1] < IMAGE_CHANNELS:  # the kernels read images in any layout
            return x.float() if x.dtype == torch.bfloat16 == dtype != self.weight.dtype else x
        return _channels_last(x, dtype)

    def supported(self, x: Tensor, *others: Tensor) -> bool:
        """True if the kernels take the call."""
        ready = self.has_kernel and self.weight.dtype == torch.float32 and not self.requires_grad
        return ready and supported(x, *others)

    def choose_algorithm(self, shape: Sequence[int]) -> int:
        """Return the algorithm for an input (N, C, H, W) of this shape, and pack the weight for it."""
        if torch.compiler.is_compiling():
            return self._choose_algorithm(shape)
        # Choosing takes as long as a small layer's products.
        key = ("algorithm", shape[0], shape[2], shape[3], num_threads())
        found = self.by_shape.get(key)
        if isinstance(found, int):
            return found
        found = self._choose_algorithm(shape)
        if len(self.by_shape) < MOST_SHAPES:
            self.by_shape[key] = found
        return found

    def _choose_algorithm(self, shape: Sequence[int]) -> int:
        batch, _, height, width = self.output_shape(shape)
        sizes = (self.in_channels, self.out_channels, self.weight.shape[2:], self.geometry.stride, batch, height, width)
        algorithm = conv_method(*sizes, algorithm=self.algorithm, precision=self.precision, threads=num_threads())
        self.pack((algorithm,))
        return algorithm

    @property
    def convs(self) -> list[FusedConv]:
        return [self]

    def chain_step(self, is_output: bool) -> list[int]:
        return conv_step(self.geometry.stride, self.geometry.padding, self.relu, is_output)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        stride, padding, _, _ = self.geometry
        kernel = self.weight.shape[2:]
        height, width = ((shape[2 + i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in range(2))
        return shape[0], self.out_channels, height, width

    def reference_forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Compute :meth:`forward` with PyTorch's operators, with gradients. ``x`` comes from :meth:`check_input`."""
        dtype = self.output_dtype(x)
        x = x.to(dtype)
        known = self.act is None and not self.requires_grad and not needs_gradient(x)
        fused = known and not is_recorded() and onednn.fuses_relu(x)
        if fused and self.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
            x = x.contiguous(memory_format=torch.channels_last)
            weight = self.cached(("onednn", dtype), lambda: onednn.reordered(self.weight, self.geometry, x))
            out = onednn.convolution_relu(x, weight, self._bias(dtype), self.geometry, self.relu)
        else:
            weight = self.cast_weight(dtype)
            out = F.conv2d(x, weight, self._bias(weight.dtype), *self.geometry)
            if self.relu:
                out = out.relu_()
            if self.act is not None:
                out = self.act(out)
        return out if residual is None else _add(out, residual)

    def _bias(self, dtype: torch.dtype) -> Tensor | None:
        return None if self.bias is None else self.bias.to(dtype)


def _add(out: Tensor, residual: Tensor) -> Tensor:
    return out + repeated(residual, out.shape[-2:]).to(out.dtype)


def _channels_last(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


class FusedOsaBlock(Chainable):
    """A One-Shot-Aggregation block that does not concatenate its feature maps.

    (N, C, H, W) → (N, out channels, H, W), channels-last. In ``chain``, each 3×3 convolution takes the output of the
    one before; ``aggregate`` is the 1×1 convolution over the input and all their outputs. ``attn`` follows it, and
    ``identity`` adds the input at the end.
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
        unstrided = all(c.geometry.stride == [1, 1] for c in convs)
        self.has_kernel = known and sizes and unstrided and len(convs) <= MOST_CONVS
        self.chainable = self.has_kernel and attn is None

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block.

        Raises:
            InputError: as :meth:`FusedConv.forward`.
        """
        first = self.convs[0]
        x = first.check_input(x)
        x = _channels_last(x, first.output_dtype(x))
        found = run([self], [True], x) if self.has_kernel else None
        if found is not None:
            out = found[0]
        else:
            maps = [x]
            for conv in self.conv_mid:
                maps.append(conv(maps[-1]))
            features = torch.cat([part.to(maps[-1].dtype) for part in maps], dim=1)  # autocast may have changed types
            out = self.conv_concat(features, x if self.identity and self.attn is None else None)
        if self.attn is None:
            return out
        out = self.attn(out).to(out.dtype)
        return out + x if self.identity else out

    @property
    def convs(self) -> list[FusedConv]:
        return cast("list[FusedConv]", [*self.conv_mid, self.conv_concat])

    def chain_step(self, is_output: bool) -> list[int]:
        return block_step(len(self.convs), self.identity and self.attn is None, is_output)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return shape[0], self.conv_concat.out_channels, *shape[2:]


class FusedMaxPool2d(Chainable):
    """A max-pool of channels-last feature maps that does not compute indices. Its pairs are (height, width)."""

    def __init__(self, kernel: list[int], stride: list[int], padding: list[int], ceil_mode: bool) -> None:
        super().__init__()
        self.arguments = kernel, stride, padding, ceil_mode
        self.chainable = True

    @property
    def convs(self) -> list[FusedConv]:
        return []

    def extra_repr(self) -> str:
        return "kernel_size={}, stride={}, padding={}, ceil_mode={}".format(*self.arguments)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H', W')."""
        kernel, stride, padding, ceil_mode = self.arguments
        if x.dim() == 4 and supported(x):
            x = x.contiguous(memory_format=torch.channels_last)
            out: Tensor = torch.ops.vovnet.pool_max(x, kernel, stride, padding, ceil_mode)
            return out
        return F.max_pool2d(x, kernel, stride, padding, 1, ceil_mode)

    def chain_step(self, is_output: bool) -> list[int]:
        return pool_step(*self.arguments, is_output)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        kernel, stride, padding, ceil_mode = self.arguments
        like = torch.empty(*shape, device="meta")
        return tuple(F.max_pool2d(like, kernel, stride, padding, 1, ceil_mode).shape)
