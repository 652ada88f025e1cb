"""RoI pooling from a pyramid without shapes that depend on data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align
from torchvision.ops.poolers import initLevelMapper

if TYPE_CHECKING:
    from collections.abc import Sequence

_MARGIN = 2
"""Rows and columns that repeat a level's last ones, so that sampling at its edge does not reach into the next level."""


class PyramidPool(nn.Module):
    """Pools boxes from all levels at once: torchvision's ``MultiScaleRoIAlign`` with results of fixed shape.

    torchvision pools the boxes of each level separately, and how many there are depends on the data. Here the levels
    lie below each other in one map, and each box is moved to its level's place.

    The result differs from torchvision's where a box narrower than a cell lies in the last cell of a map: torchvision
    takes 0 for samples more than one cell beyond the map, here the map's last value is taken.
    """

    def __init__(self, pool: Any, strides: Sequence[int]) -> None:
        super().__init__()
        self.cells: tuple[int, int] = tuple(pool.output_size)
        self.samples = int(pool.sampling_ratio)
        self.scales = [1 / stride for stride in strides]
        first, last = strides[0].bit_length() - 1, strides[-1].bit_length() - 1
        self.map_levels = pool.map_levels or initLevelMapper(first, last, pool.canonical_scale, pool.canonical_level)

    def forward(self, levels: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Pool boxes (N, P, 4), in the network's pixels, from maps (N, C, H, W): (N · P, C, cells, cells)."""
        widest = levels[0].shape[3] + _MARGIN
        tops, parts, top = [], [], 0
        for level in levels:
            part = F.pad(level, (0, _MARGIN, 0, _MARGIN), mode="replicate")
            parts.append(F.pad(part, (0, widest - part.shape[3])))
            tops.append(torch.full((), top, dtype=torch.float32) if not torch.jit.is_tracing() else _traced(top))
            top = top + part.shape[2]
        flat = boxes.reshape(-1, 4)
        number: Tensor = self.map_levels([flat])
        scale = boxes.new_tensor(self.scales)[number][:, None]
        moved = flat * scale + torch.stack(tops)[number][:, None] * boxes.new_tensor([0.0, 1.0, 0.0, 1.0])
        images = torch.arange(boxes.shape[0], dtype=boxes.dtype)[:, None].expand(-1, boxes.shape[1]).reshape(-1, 1)
        rois = torch.cat((images, moved), dim=1)
        return roi_align(torch.cat(parts, dim=2), rois, self.cells, 1.0, self.samples)


def _traced(size: Any) -> Tensor:
    return torch.as_tensor(size).float()
