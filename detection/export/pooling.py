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

    A box narrower than a cell is widened to one, and may reach beyond its map. torchvision takes 0 for such samples,
    and here they get the map's last values; so results are multiplied by the part of the samples that lies inside.
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
        tops, ends, parts, top = [], [], [], 0
        for level in levels:
            part = F.pad(level, (0, _MARGIN, 0, _MARGIN), mode="replicate")
            parts.append(F.pad(part, (0, widest - part.shape[3])))
            tops.append(_number(top))
            ends.append(torch.stack((_number(level.shape[3]), _number(level.shape[2]))))
            top = top + part.shape[2]
        flat = boxes.reshape(-1, 4)
        number: Tensor = self.map_levels([flat])
        scaled = flat * boxes.new_tensor(self.scales)[number][:, None]
        moved = scaled + torch.stack(tops)[number][:, None] * boxes.new_tensor([0.0, 1.0, 0.0, 1.0])
        images = torch.arange(boxes.shape[0], dtype=boxes.dtype)[:, None].expand(-1, boxes.shape[1]).reshape(-1, 1)
        rois = torch.cat((images, moved), dim=1)
        pooled = roi_align(torch.cat(parts, dim=2), rois, self.cells, 1.0, self.samples)
        return pooled * self._inside(scaled, torch.stack(ends)[number])

    def _inside(self, boxes: Tensor, ends: Tensor) -> Tensor:
        """Return the part of each cell's samples that lies inside the map, (R, 1, cells, cells).

        Outside samples have the last values in :meth:`forward`'s map, as have all others of a cell with such samples.

        Args:
            boxes: (R, 4) in cells of their maps.
            ends: (R, 2) width and height of the maps.
        """
        parts = []
        for axis, cells in ((1, self.cells[0]), (0, self.cells[1])):
            samples = cells * max(self.samples, 1)  # if their number follows the box, a narrow one has one
            side = (boxes[:, axis + 2] - boxes[:, axis]).clamp(min=1)[:, None]
            places = boxes[:, axis, None] + (torch.arange(samples) + 0.5) / samples * side
            parts.append((places <= ends[:, axis, None]).float().reshape(-1, cells, samples // cells).mean(2))
        return parts[0][:, None, :, None] * parts[1][:, None, None, :]


def _number(size: Any) -> Tensor:
    """Return a size as a tensor () float32 that follows it."""
    return torch.as_tensor(size).float() if torch.jit.is_tracing() else torch.full((), size, dtype=torch.float32)
