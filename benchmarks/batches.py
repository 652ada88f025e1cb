"""Batches of random images and objects, and waiting for a device; needs PyTorch alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CLASSES = 80

Batch = tuple[list[Tensor], list[dict[str, Any]]]
"""Images, uint8 (3, H, W), and their targets."""


def make_batch(
    number: int, *, size: tuple[int, int], images: int, objects: int, masks: bool, keypoints: int = 0
) -> Batch:
    """Return images of noise, uint8 (3, height, width), with random boxes, filled boxes as masks, and keypoints."""
    generator = torch.Generator().manual_seed(number)
    height, width = size
    limits = torch.tensor([width, height], dtype=torch.float32)
    batch, targets = [], []
    for index in range(images):
        batch.append(torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator))
        sides = limits * (0.1 + 0.5 * torch.rand(objects, 2, generator=generator))
        corners = (limits - sides) * torch.rand(objects, 2, generator=generator)
        boxes = torch.cat((corners, corners + sides), dim=1)
        labels = torch.randint(1, CLASSES + 1, (objects,), generator=generator)
        target: dict[str, Any] = {"boxes": boxes, "labels": labels, "image_id": images * number + index}
        if masks:
            target["masks"] = torch.zeros(objects, height, width, dtype=torch.uint8)
            for mask, (x0, y0, x1, y1) in zip(target["masks"], boxes.round().int().tolist(), strict=True):
                mask[y0:y1, x0:x1] = 1
        if keypoints:
            places = boxes[:, None, :2] + torch.rand(objects, keypoints, 2, generator=generator) * sides[:, None]
            target["keypoints"] = torch.cat((places, torch.full((objects, keypoints, 1), 2.0)), dim=2)
        targets.append(target)
    return batch, targets


def wait(device: torch.device) -> None:
    """Wait until the GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
