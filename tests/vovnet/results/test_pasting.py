"""Masks pasted without PyTorch equal torchvision's, but for pixels whose probability is 0.5 to the last bit."""

from __future__ import annotations

import tracemalloc

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision.models.detection.roi_heads import paste_masks_in_image

from vovnet.results.pasting import encode_pasted
from vovnet.results.rle import decode


def difference(masks: NDArray[np.float32], boxes: NDArray[np.float32], size: tuple[int, int]) -> tuple[int, float]:
    """Return how many pixels differ from torchvision's, and the distance of the farthest of them from 0.5."""
    pasted = paste_masks_in_image(torch.from_numpy(masks)[:, None], torch.from_numpy(boxes), size)[:, 0].numpy()
    found = [decode({"size": size, "counts": counts}) for counts in encode_pasted(masks, boxes, size)]
    differs = np.array(found, dtype=bool).reshape(pasted.shape) != (pasted > 0.5)
    return int(differs.sum()), float(np.abs(pasted[differs] - 0.5).max(initial=0))


@st.composite
def cases(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float32], tuple[int, int]]:
    """Masks, boxes that may be thin, tiny or reach out of the image, and the image's size."""
    height, width = draw(st.integers(1, 300)), draw(st.integers(1, 300))
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    rows = []
    for _ in range(draw(st.integers(0, 4))):
        # torchvision fails for boxes that do not touch the image; a detector clips its boxes to the image.
        x0, y0 = draw(st.floats(-20, width - 1, width=32)), draw(st.floats(-20, height - 1, width=32))
        x1 = draw(st.floats(max(x0, 0), width + 20, width=32))
        y1 = draw(st.floats(max(y0, 0), height + 20, width=32))
        rows.append([x0, y0, x1, y1])
    side = draw(st.sampled_from([1, 2, 14, 28]))
    masks = random.random((len(rows), side, side), dtype=np.float32)
    if draw(st.booleans()):  # as mask heads return them: most are almost 0 or 1
        masks = (1 / (1 + np.exp(30 * (masks - 0.5)))).astype(np.float32)
    return masks, np.array(rows, dtype=np.float32).reshape(-1, 4), (height, width)


@given(cases())
def test_equal_to_torchvision(case: tuple[NDArray[np.float32], NDArray[np.float32], tuple[int, int]]) -> None:
    _, distance = difference(*case)
    assert distance < 5e-7


def test_hardly_any_pixel_differs() -> None:
    random = np.random.default_rng(0)
    pixels = 0
    for _ in range(20):
        masks = random.random((5, 28, 28), dtype=np.float32)
        corners = np.sort(random.uniform(0, 400, (5, 2, 2)), axis=1).reshape(5, 4).astype(np.float32)
        pixels += difference(masks, corners, (400, 400))[0]
    assert pixels <= 2


def test_boxes_outside_of_the_image() -> None:
    masks = np.ones((2, 28, 28), np.float32)
    boxes = np.array([[30, 0, 40, 5], [0, -50, 5, -40]], np.float32)
    for counts in encode_pasted(masks, boxes, (5, 6)):
        assert not decode({"size": (5, 6), "counts": counts}).any()


def test_memory_is_that_of_one_mask_in_bits() -> None:
    masks = np.random.default_rng(0).random((8, 28, 28), dtype=np.float32)
    boxes = np.tile(np.array([[0, 0, 2000, 1500]], np.float32), (8, 1))
    tracemalloc.start()
    encode_pasted(masks, boxes, (1500, 2000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2000 * 1500 * 4 * 8  # what the probabilities of all masks would take
