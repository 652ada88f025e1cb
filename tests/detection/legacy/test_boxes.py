"""Inclusive boxes against the reference's unit cases and against torchvision's half-open ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou as half_open_iou

from vovnet.detection.legacy.boxes import (
    box_areas,
    box_iou,
    boxes_to_xywh,
    clip_boxes,
    legacy_box_coder,
    legacy_nms,
    resize_boxes,
)

OPEN = torch.tensor([0.0, 0.0, 1.0, 1.0])
"""What turns inclusive integer boxes into torchvision's."""


def integer_boxes(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 60, (count, 2), generator=generator)
    return torch.cat((corners, corners + torch.randint(0, 30, (count, 2), generator=generator)), dim=1).float()


def test_areas_count_pixels() -> None:
    boxes = integer_boxes(20)
    painted = torch.zeros(20, 100, 100)
    for canvas, (x0, y0, x1, y1) in zip(painted, boxes.int().tolist(), strict=True):
        canvas[y0 : y1 + 1, x0 : x1 + 1] = 1
    assert box_areas(boxes).tolist() == painted.flatten(1).sum(1).tolist()


def test_overlap_is_that_of_the_pixels() -> None:
    first, second = integer_boxes(30), integer_boxes(40, seed=1)
    torch.testing.assert_close(box_iou(first, second), half_open_iou(first + OPEN, second + OPEN))


def test_overlap_equals_the_reference(units: dict[str, Any]) -> None:
    assert torch.equal(box_iou(units["match.gt"], units["match.boxes"]), units["match.iou"])


def test_clipping_equals_the_reference(units: dict[str, Any]) -> None:
    assert torch.equal(clip_boxes(units["clip.in"], (400, 600)), units["clip.out_600x400"])


@pytest.mark.parametrize(("kind", "weights"), [("rpn", (1.0, 1.0, 1.0, 1.0)), ("roi", (10.0, 10.0, 5.0, 5.0))])
def test_the_coder_equals_the_reference(units: dict[str, Any], kind: str, weights: Any) -> None:
    coder = legacy_box_coder(weights)
    encoded, wanted = coder.encode_single(units["coder.gt"], units["coder.anchors"]), units[f"coder.{kind}.encode"]
    assert torch.equal(encoded[:, :2], wanted[:, :2])
    # The last bits of logarithm and exponential depend on the processor.
    torch.testing.assert_close(encoded, wanted, rtol=1e-6, atol=1e-6)
    decoded, wanted = (
        coder.decode_single(units[f"coder.{kind}.codes"], units["coder.anchors"]),
        units[f"coder.{kind}.decode"],
    )
    torch.testing.assert_close(decoded, wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))


def test_decoding_undoes_encoding() -> None:
    boxes, anchors = integer_boxes(50, seed=2), integer_boxes(50, seed=3)
    coder = legacy_box_coder((10.0, 10.0, 5.0, 5.0))
    torch.testing.assert_close(coder.decode_single(coder.encode_single(boxes, anchors), anchors), boxes)


@pytest.mark.parametrize("threshold", [3, 5, 7])
def test_suppression_equals_the_reference(units: dict[str, Any], threshold: int) -> None:
    kept = legacy_nms(units["nms.boxes"], units["nms.scores"], threshold / 10)
    assert torch.equal(kept, units[f"nms.keep{threshold}"])


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.75])
def test_a_tie_suppresses_on_the_cpu(threshold: float) -> None:
    shared = round(threshold * 100)
    boxes = torch.tensor([[0.0, 0, 99, 0], [0.0, 0, shared - 1, 0]])  # the second is that share of the first
    assert legacy_nms(boxes, torch.tensor([0.9, 0.8]), threshold).tolist() == [0]
    assert legacy_nms(boxes, torch.tensor([0.9, 0.8]), threshold + 0.001).tolist() == [0, 1]


def test_kept_boxes_come_in_the_order_of_their_index() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [50, 50, 59, 59], [20, 20, 29, 29]])
    assert legacy_nms(boxes, torch.tensor([0.1, 0.9, 0.5]), 0.5).tolist() == [0, 1, 2]


def test_resizing_equals_the_reference(units: dict[str, Any]) -> None:
    boxes = torch.tensor(units["dataset_item0"]["boxes_xyxy"])
    wanted = units["dataset_item0_resize_1200x800"]["boxes_xyxy"]
    assert resize_boxes(boxes, (400, 600), (800, 1200)).tolist() == wanted


def test_width_and_height_include_both_corners() -> None:
    assert boxes_to_xywh(torch.tensor([[2.0, 3, 4, 7]])).tolist() == [[2, 3, 3, 5]]
