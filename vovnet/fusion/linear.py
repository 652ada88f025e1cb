"""The linear layer that :func:`vovnet.fuse` puts into a model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vovnet.errors import InputError
from vovnet.fusion.base import FusedLayer, num_threads, supported
from vovnet.ops.algorithms import Algorithm, Precision, conv_method


class FusedLinear(FusedLayer):
    """A linear layer that takes feature maps without flattening them: a convolution with a window of the map's size.

    (N, C, H, W) or (N, C · H · W) → (N, out features). The layer keeps ``weight``, (out features, in features), and
    does not copy it.
    """

    bias: nn.Parameter

    def __init__(
        self, weight: Tensor, bias: Tensor, *, relu: bool, precision: Precision = "fp32", algorithm: Algorithm = "auto"
    ) -> None:
        super().__init__(precision, algorithm)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.relu = relu

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, relu={self.relu}, {self.precision}"

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer.

        Raises:
            InputError: the layer does not take the type, device or number of features of ``x``.
        """
        if x.dim() not in (2, 4) or x.shape[1:].numel() != self.weight.shape[1]:
            raise InputError(f"x: expected (N, C, H, W) or (N, C) of {self.weight.shape[1]}, got {tuple(x.shape)}")
        dtype = self.compute_dtype(x)
        x = x.to(dtype)
        maps = x if x.dim() == 4 else x[:, :, None, None]
        ready = self.weight.dtype == torch.float32 and not self.requires_grad
        if not ready or not supported(maps):
            weight = self.cast_weight(dtype)
            out = F.linear(x.flatten(1), weight, self.bias.to(weight.dtype))
            return out.relu_() if self.relu else out
        return self._kernel_forward(maps.contiguous(memory_format=torch.channels_last))

    def _kernel_forward(self, x: Tensor) -> Tensor:
        number, channels, height, width = x.shape
        weight = self.weight.view(-1, channels, height, width)
        sizes = (channels, weight.shape[0], (height, width), (1, 1), number, 1, 1)
        algorithm = conv_method(*sizes, algorithm=self.algorithm, precision=self.precision, threads=num_threads())
        key = (algorithm, channels, height, width)
        self.pack(key)
        out: Tensor = torch.ops.vovnet.packed_conv(
            x, weight, self.bias, None, self.packed[key], [1, 1], [0, 0], self.relu, algorithm
        )
        return out.flatten(1)
