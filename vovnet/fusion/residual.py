"""The residual blocks of torchvision's ResNets, fused."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from vovnet.fusion.folding import NotFusable, Settings, fold, replaces
from vovnet.fusion.layers import FusedConv
from vovnet.modules import has_hooks_or_patched_forward


class FusedResidualBlock(nn.Module):
    """``relu(convs(x) + shortcut(x))``: (N, C, H, W) → (N, out channels, H', W'), channels-last.

    All convolutions but the last one have their ReLU in them. The last one adds the shortcut to its output.
    """

    def __init__(self, convs: list[FusedConv], downsample: FusedConv | None) -> None:
        super().__init__()
        self.convs = nn.Sequential(*convs[:-1])
        self.last = convs[-1]
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.last(self.convs(x), shortcut)
        return out.relu_()


@replaces(BasicBlock, Bottleneck)
def fuse_residual_block(block: BasicBlock | Bottleneck, settings: Settings) -> FusedResidualBlock:
    """torchvision's block. One ReLU stands behind every convolution but the last, and behind the sum."""
    relu, last = block.relu, "3" if isinstance(block, Bottleneck) else "2"
    names = [number for number in ("1", "2", "3") if number <= last]
    downsample = block.downsample
    parts = [] if downsample is None else list(downsample.children())
    known = downsample is None or (type(downsample) is nn.Sequential and len(parts) == 2)
    if type(relu) is not nn.ReLU or has_hooks_or_patched_forward(relu) or not known:
        raise NotFusable
    if downsample is not None and has_hooks_or_patched_forward(downsample):
        raise NotFusable
    try:
        convs = [
            fold(getattr(block, f"conv{n}"), getattr(block, f"bn{n}"), None if n == last else relu, settings)
            for n in names
        ]
        return FusedResidualBlock(convs, fold(parts[0], parts[1], None, settings) if parts else None)
    except NotFusable as error:
        # The convolutions are then fused one by one.
        raise NotFusable from error
