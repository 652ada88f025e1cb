"""Masks pasted by matrix products are torchvision's, pixel by pixel."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import clip_boxes_to_image

from vovnet.detection.export.pasting import paste_masks

HEIGHT, WIDTH = 70, 90


@given(seed=st.integers(0, 10**6))
def test_masks_are_torchvisions(seed: int) -> None:
    numbers = torch.Generator().manual_seed(seed)
    low = torch.rand(6, 2, generator=numbers) * torch.tensor([WIDTH, HEIGHT])
    boxes = torch.cat((low, low + torch.rand(6, 2, generator=numbers) * 60), dim=1)
    boxes = clip_boxes_to_image(boxes, (HEIGHT, WIDTH))
    masks = torch.rand(6, 28, 28, generator=numbers)
    wanted = paste_masks_in_image(masks[:, None], boxes, (HEIGHT, WIDTH))[:, 0]
    found = paste_masks(masks, boxes, HEIGHT, WIDTH)
    assert found.dtype == torch.uint8
    clear = (wanted - 0.5).abs() > 1e-5  # the order of sums decides about the others
    assert torch.equal(found.bool()[clear], (wanted > 0.5)[clear])
    assert found.any()
