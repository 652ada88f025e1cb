"""Outlines of objects as polygons, and the targets of the mask head, which are drawn from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import project_masks_on_boxes

Shape = list[npt.NDArray[np.float32]] | npt.NDArray[np.uint8]
"""An object's polygons, each x0, y0, x1, y1, … in pixels; or, if it has none, its bitmap (H, W) of 0 and 1."""

FARTHEST = 1e5
"""Largest distance of a point from the mask in cells: pycocotools' time and memory grow with the distance."""


class Polygons:
    """The outlines of the N objects of an image, in pixels as float32. In a target they behave like a tensor of N rows.

    Reference structures/segmentation_mask.py. There an object without any polygon of three points vanishes from the
    list (395-399), so that later objects get each other's masks. Here it stays, with nothing to draw. An object that
    has only a bitmap, which the reference cannot train on, keeps its bitmap.

    Args:
        objects: for each object its polygons, each ``[x0, y0, x1, y1, …]``, or its bitmap, a 2-d array. Polygons with
            fewer than three points are removed.
    """

    def __init__(self, objects: Iterable[Sequence[npt.ArrayLike] | npt.NDArray[Any]]) -> None:
        self.objects: list[Shape] = []
        for shape in objects:
            if isinstance(shape, np.ndarray) and shape.ndim == 2:
                self.objects.append((shape != 0).astype(np.uint8))
                continue
            parts = [np.asarray(part, dtype=np.float32) for part in shape]
            self.objects.append([part for part in parts if len(part) >= 6])

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, index: int | slice | Sequence[int] | npt.NDArray[Any] | Tensor) -> Polygons:
        """Return the outlines of some objects; ``index`` is a number, a slice, several numbers, or a bool for each."""
        if isinstance(index, Tensor):
            index = index.cpu().numpy()
        if not isinstance(index, slice) and not np.size(index):
            return Polygons([])
        chosen = np.atleast_1d(np.arange(len(self))[index])
        return Polygons(self.objects[number] for number in chosen)

    def __repr__(self) -> str:
        return f"Polygons({len(self)} objects)"

    def to(self, device: Any = None, non_blocking: bool = False) -> Polygons:
        """Return itself, because masks are drawn on the CPU."""
        return self

    def resized(self, ratio_w: float, ratio_h: float) -> Polygons:
        """Return outlines with x and y multiplied by new size / old size; bitmaps are resized to the nearest pixel."""
        ratio = np.array([ratio_w, ratio_h], dtype=np.float32)

        def resize(shape: Shape) -> Shape:
            if isinstance(shape, np.ndarray):
                size = (round(shape.shape[0] * ratio_h), round(shape.shape[1] * ratio_w))
                return F.interpolate(torch.from_numpy(shape)[None, None], size, mode="nearest")[0, 0].numpy()
            return [(part.reshape(-1, 2) * ratio).reshape(-1) for part in shape]

        return Polygons(map(resize, self.objects))

    def flipped(self, width: int) -> Polygons:
        """Return outlines mirrored left to right in an image of this width in pixels: x' = width - x - 1.

        Reference structures/segmentation_mask.py:248-269. The x of polygons runs from 0 to the width, so
        width - x would be right. The reference shifts them by a pixel against the image, and so does this method.
        """

        def flip(shape: Shape) -> Shape:
            if isinstance(shape, np.ndarray):
                return np.ascontiguousarray(shape[:, ::-1])
            parts = [part.copy() for part in shape]
            for part in parts:
                part[::2] = np.float32(width) - part[::2] - np.float32(1)
            return parts

        return Polygons(map(flip, self.objects))


def mask_targets(polygons: Polygons, indices: Tensor, boxes: Tensor, size: int, image_size: tuple[int, int]) -> Tensor:
    """Return the mask head's target for each box: its object's polygons, drawn on a grid over the box.

    Reference modeling/roi_heads/mask_head/loss.py:11-42, structures/segmentation_mask.py:271-333,351-430. torchvision
    samples a bitmap instead, which gives soft targets (models/detection/roi_heads.py:85-97). A box without width or
    height, by which the reference divides, counts as 1 pixel wide or high. Points farther than 100,000 cells from the
    grid, which only occur with boxes below a thousandth of a pixel, are moved to that distance. The targets of bitmaps
    are torchvision's, rounded.

    Args:
        polygons: outlines of the image's N objects.
        indices: (P,), the object of each box in 0..N - 1.
        boxes: (P, 4), inclusive x0, y0, x1, y1 in the same pixels as the polygons.
        size: side of the grid in cells, such as 28.
        image_size: (height, width) of the image, to which boxes are clipped.

    Returns:
        (P, size, size) float32 of 0 and 1, on the boxes' device.
    """
    rows: dict[bool, list[int]] = {True: [], False: []}
    chosen = [polygons.objects[index] for index in indices.tolist()]
    for row, shape in enumerate(chosen):
        rows[isinstance(shape, np.ndarray)].append(row)
    drawn = np.zeros((len(chosen), size, size), dtype=np.uint8)
    corners = boxes.detach().cpu().double().numpy()
    _draw(drawn, [(row, chosen[row]) for row in rows[False]], corners, image_size)
    targets = torch.from_numpy(drawn).to(boxes.device, torch.float32)
    if rows[True]:
        here = torch.tensor(rows[True], device=boxes.device)
        targets[here] = _bitmap_targets(polygons, indices.to(boxes.device)[here], boxes.detach()[here], size)
    return targets


def _draw(
    drawn: npt.NDArray[np.uint8],
    shapes: Sequence[tuple[int, Shape]],
    boxes: npt.NDArray[np.float64],
    image_size: tuple[int, int],
) -> None:
    """Draw polygons into some rows of (P, size, size), in one call, because each call of pycocotools takes a while."""
    from pycocotools import mask as coco_mask

    size = drawn.shape[1]
    height, width = image_size
    start = np.clip(boxes[:, :2], 0, (width - 1, height - 1))
    extent = np.clip(boxes[:, 2:], 0, (width, height)) - start
    # The ratio is computed in double precision and then rounded, as torch does with float32 tensors and Python floats.
    scale = (size / np.where(extent > 0, extent, 1)).astype(np.float32)
    start = start.astype(np.float32)
    parts, owners = [], []
    for row, shape in shapes:
        for part in shape:
            cells = (part.reshape(-1, 2) - start[row]) * scale[row]
            parts.append(np.clip(cells, -FARTHEST, FARTHEST).reshape(-1))
            owners.append(row)
    if not parts:
        return
    runs: dict[int, list[Any]] = {}
    for row, run in zip(owners, coco_mask.frPyObjects(parts, size, size), strict=True):
        runs.setdefault(row, []).append(run)
    joined = [one[0] if len(one) == 1 else coco_mask.merge(one) for one in runs.values()]
    drawn[list(runs)] = coco_mask.decode(joined).transpose(2, 0, 1)


def _bitmap_targets(polygons: Polygons, indices: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Return the targets (P, size, size) of boxes whose objects have bitmaps."""
    objects, places = indices.unique(return_inverse=True)
    bitmaps = torch.stack([torch.from_numpy(polygons.objects[number]) for number in objects.tolist()])
    soft: Tensor = project_masks_on_boxes(bitmaps.to(boxes.device), boxes, places.to(boxes.dtype), size)
    return (soft >= 0.5).to(torch.float32)
