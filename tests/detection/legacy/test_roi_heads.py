"""The heads' levels, matching, losses and final selection against golden numbers and plain restatements."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from vovnet.detection.legacy.boxes import smooth_l1
from vovnet.detection.legacy.masks import Polygons
from vovnet.detection.legacy.roi_heads import LegacyLevelMapper, LegacyRoIHeads, box_losses, legacy_roi_pool, mask_loss

CLASSES = 4
"""With the background."""
NAMES, STRIDES = ("0", "1"), (4, 8)


def heads(
    *, masks: bool = False, threshold: float = 0.05, most: int = 100, sampled: int = 512, channels: int = 2
) -> LegacyRoIHeads:
    parts: dict[str, Any] = {}
    if masks:
        parts = {
            "mask_roi_pool": legacy_roi_pool(NAMES, STRIDES, 14, 2),
            "mask_head": MaskRCNNHeads(channels, (4,), 1),
            "mask_predictor": MaskRCNNPredictor(4, 4, CLASSES),
        }
    return LegacyRoIHeads(
        legacy_roi_pool(NAMES, STRIDES, 7, 2),
        TwoMLPHead(channels * 49, 8),
        FastRCNNPredictor(8, CLASSES),
        0.5,
        0.5,
        sampled,
        0.25,
        None,
        threshold,
        0.5,
        most,
        **parts,
    )


def test_levels_equal_the_reference(units: dict[str, Any]) -> None:
    mapper = LegacyLevelMapper(2, 5)
    boxes = units["levels.boxes"]
    wanted = units["levels.idx"].to(torch.int64)
    assert torch.equal(mapper([boxes]), wanted)
    assert torch.equal(mapper([boxes[:100], boxes[100:100], boxes[100:]]), wanted)


@pytest.mark.parametrize(("stride", "level"), [(4, 0), (8, 1)])
@pytest.mark.parametrize("cells", [7, 14])
def test_pooling_is_the_unaligned_one_at_the_strides_scale(stride: int, level: int, cells: int) -> None:
    """Against RoIAlign's sum done by hand at one cell's samples (fact 19)."""
    generator = torch.Generator().manual_seed(3)
    maps = {"0": torch.randn(1, 1, 50, 50, generator=generator), "1": torch.randn(1, 1, 25, 25, generator=generator)}
    side = 100.0 if level == 0 else 199.0
    pool: Any = legacy_roi_pool(NAMES, STRIDES, cells, 2)
    pool.map_levels = lambda boxes: torch.full((1,), level)
    (out,) = pool(maps, [torch.tensor([[8.0, 4.0, 8.0 + side / 2, 4.0 + side / 4]])], [(200, 200)])
    values = maps[str(level)][0, 0].double().numpy()
    x0, y0, width, height = 8 / stride, 4 / stride, side / 2 / stride, side / 4 / stride
    row, column = cells // 2, cells - 2
    total = 0.0
    for i in (0.25, 0.75):
        for j in (0.25, 0.75):
            total += bilinear(values, y0 + (row + i) * height / cells, x0 + (column + j) * width / cells)
    assert float(out[0, row, column]) == pytest.approx(total / 4, abs=1e-5)


def bilinear(values: np.ndarray[Any, Any], y: float, x: float) -> float:
    top, left = int(y), int(x)
    dy, dx = y - top, x - left
    rows = values[top : top + 2, left : left + 2]
    return float((rows * np.outer((1 - dy, dy), (1 - dx, dx))).sum())


@pytest.mark.parametrize("cells", [7, 14])
def test_pooling_equals_the_reference(units: dict[str, Any], cells: int) -> None:
    feature, rois = units["roialign.feat"], units["roialign.rois"]
    wanted = units[f"roialign.out{cells}"]
    boxes = [rois[rois[:, 0] == number, 1:] for number in range(len(feature))]
    order = torch.cat([torch.where(rois[:, 0] == number)[0] for number in range(len(feature))])
    equal = {}
    for stride in (4, 8, 16, 32):
        out = legacy_roi_pool(["0"], [stride], cells, 2)({"0": feature}, boxes, [(100, 120)] * 2)
        equal[stride] = torch.equal(out, wanted[order])
    assert sum(equal.values()) == 1, equal  # the scale that the unit case was made with, and no other


def test_the_matching_equals_the_reference(units: dict[str, Any]) -> None:
    roi = heads()
    wanted = units["match.roi"]
    labels = torch.arange(1, len(units["match.gt"]) + 1)
    (matched,), (classes,) = roi.assign_targets_to_proposals([units["match.boxes"]], [units["match.gt"]], [labels])
    assert torch.equal(matched, wanted.clamp(min=0))
    assert torch.equal(classes, torch.where(wanted >= 0, wanted + 1, 0))


def test_without_objects_all_is_background() -> None:
    (matched,), (classes,) = heads().assign_targets_to_proposals(
        [torch.tensor([[0.0, 0, 9, 9]])], [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)]
    )
    assert matched.tolist() == classes.tolist() == [0]


def test_a_sample_comes_in_ascending_order_after_objects_were_appended() -> None:
    boxes = torch.tensor([[40.0 * i, 0, 40.0 * i + 20, 20] for i in range(6)])
    target = {"boxes": boxes[[4, 1]] + 1, "labels": torch.tensor([3, 2])}
    rows = {tuple(box): row for row, box in enumerate(torch.cat((boxes, target["boxes"])).tolist())}
    torch.manual_seed(1)
    (chosen,), (objects,), (labels,), _ = heads(sampled=10).select_training_samples([boxes], [target])
    places = [rows[tuple(box)] for box in chosen.tolist()]
    assert places == sorted(places)
    assert {0, 2, 3, 5} < set(places)
    positive = {
        row: (thing, label)
        for row, thing, label in zip(places, objects.tolist(), labels.tolist(), strict=True)
        if label
    }
    assert len(positive) == 2  # int(10 / 4) of the four that match
    assert positive.items() <= {1: (1, 2), 4: (0, 3), 6: (0, 3), 7: (1, 2)}.items()


# The final selection, said again: fact 22.


def plain_selection(
    logits: Tensor, offsets: Tensor, proposals: Tensor, size: tuple[int, int], threshold: float, most: int
) -> list[tuple[int, int, float, list[float]]]:
    """Class, proposal, score and box of what stays, in order."""
    exponentials = torch.exp(logits.double() - logits.double().max(dim=1, keepdim=True).values)
    scores = (exponentials / exponentials.sum(1, keepdim=True)).tolist()
    found = []
    for label in range(1, logits.shape[1]):
        candidates = [row for row in range(len(proposals)) if scores[row][label] > threshold]
        boxes = {row: plain_box(proposals[row], offsets[row, 4 * label : 4 * label + 4], size) for row in candidates}
        kept: list[int] = []
        for row in sorted(candidates, key=lambda one: -scores[one][label]):
            if all(plain_overlap(boxes[row], boxes[other]) < 0.5 for other in kept):
                kept.append(row)
        found += [(label, row, scores[row][label], boxes[row]) for row in sorted(kept)]
    if len(found) > most:
        least = sorted((one[2] for one in found), reverse=True)[most - 1]
        found = [one for one in found if one[2] >= least - 1e-9]
    return found


def plain_box(proposal: Tensor, code: Tensor, size: tuple[int, int]) -> list[float]:
    x0, y0, x1, y1 = proposal.tolist()
    dx, dy, dw, dh = (value / weight for value, weight in zip(code.tolist(), (10, 10, 5, 5), strict=True))
    width, height = x1 - x0 + 1, y1 - y0 + 1
    x, y = x0 + width / 2 + dx * width, y0 + height / 2 + dy * height
    w = width * math.exp(min(dw, math.log(62.5)))
    h = height * math.exp(min(dh, math.log(62.5)))
    corners = (x - w / 2, y - h / 2, x + w / 2 - 1, y + h / 2 - 1)
    return [
        min(max(value, 0), most)
        for value, most in zip(corners, (size[1] - 1, size[0] - 1, size[1] - 1, size[0] - 1), strict=True)
    ]


def plain_overlap(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    areas = sum((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b))
    return width * height / (areas - width * height)


def candidates(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, CLASSES, generator=generator)
    offsets = torch.randn(count, 4 * CLASSES, generator=generator)
    corners = torch.randint(0, 120, (count, 2), generator=generator).float()
    sides = torch.randint(5, 60, (count, 2), generator=generator).float()
    return logits, offsets, torch.cat((corners, corners + sides), dim=1)


@pytest.mark.parametrize(("threshold", "most"), [(0.05, 1000), (0.0, 20), (0.3, 1000), (0.05, 1), (0.999999, 100)])
def test_final_detections(threshold: float, most: int) -> None:
    counts, sizes = (60, 0, 45), [(140, 160), (100, 100), (90, 150)]
    parts = [candidates(count, seed) for seed, count in enumerate(counts)]
    roi = heads(threshold=threshold, most=most)
    boxes, scores, labels = roi.postprocess_detections(
        torch.cat([part[0] for part in parts]),
        torch.cat([part[1] for part in parts]),
        [part[2] for part in parts],
        sizes,
    )
    for i, size in enumerate(sizes):
        wanted = plain_selection(*parts[i], size, threshold, most)
        assert labels[i].tolist() == [one[0] for one in wanted]
        torch.testing.assert_close(
            scores[i].double(), torch.tensor([one[2] for one in wanted]).double(), atol=1e-6, rtol=0
        )
        expected = torch.tensor([one[3] for one in wanted], dtype=torch.float64).reshape(-1, 4)
        torch.testing.assert_close(boxes[i].double(), expected, atol=2e-4, rtol=0)


def test_all_that_tie_with_the_last_one_stay() -> None:
    proposals = torch.tensor([[30.0 * i, 0, 30.0 * i + 9, 9] for i in range(6)])
    logits = torch.tensor([[0.0, 3, -9, -9], [0.0, 1, -9, -9], [0.0, 2, -9, -9]] + [[0.0, 1, -9, -9]] * 3)
    _, scores, _ = heads(most=3).postprocess_detections(logits, torch.zeros(6, 16), [proposals], [(200, 200)])
    assert len(scores[0]) == 6  # four tie with the third
    _, scores, _ = heads(most=2).postprocess_detections(logits, torch.zeros(6, 16), [proposals], [(200, 200)])
    assert len(scores[0]) == 2


def test_nothing_found_has_the_right_shapes() -> None:
    roi = heads(masks=True, threshold=0.9999).eval()
    maps = {"0": torch.zeros(1, 2, 16, 16), "1": torch.zeros(1, 2, 8, 8)}
    with torch.no_grad():
        (found,), losses = roi(maps, [torch.tensor([[0.0, 0, 9, 9]])], [(64, 64)])
    assert losses == {}
    assert {key: tuple(value.shape) for key, value in found.items()} == {
        "boxes": (0, 4),
        "labels": (0,),
        "scores": (0,),
        "masks": (0, 1, 28, 28),
    }


def test_smooth_l1_equals_the_reference(units: dict[str, Any]) -> None:
    difference = units["sl1.x"] - units["sl1.y"]
    assert float(smooth_l1(difference, 1.0).sum()) == units["smooth_l1_sum"]["beta=1"]
    assert float(smooth_l1(difference, 1 / 9).sum()) == units["smooth_l1_sum"]["beta=1/9"]


def test_box_losses() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, CLASSES, generator=generator)
    offsets = 2 * torch.randn(12, 4 * CLASSES, generator=generator)
    wanted = torch.randn(12, 4, generator=generator)
    labels = torch.tensor([0, 3, 1, 0, 2, 0, 0, 1, 0, 0, 3, 0])
    losses = box_losses(logits, offsets, labels, wanted)
    entropy = distance = 0.0
    for row, label in enumerate(labels.tolist()):
        values = logits[row].double().tolist()
        entropy += math.log(sum(map(math.exp, values))) - values[label]
        for k in range(4) if label else ():
            far = abs(float(offsets[row, 4 * label + k]) - float(wanted[row, k]))
            distance += far * far / 2 if far < 1 else far - 0.5
    assert float(losses["loss_classifier"]) == pytest.approx(entropy / 12, rel=1e-5)
    assert float(losses["loss_box_reg"]) == pytest.approx(distance / 12, rel=1e-5)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def test_mask_loss() -> None:
    """Rectangles whose edges fall between cells, so that what is drawn needs no rule for edges."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, CLASSES, 28, 28, generator=generator)
    boxes = [torch.tensor([[10.0, 20, 38, 48], [0, 0, 56, 28]]), torch.tensor([[4.0, 4, 60, 60]])]
    targets = [
        {"polygons": Polygons([[rectangle(0, 0, 4, 4)], [rectangle(10, 20, 24, 48)], [rectangle(28, 0, 100, 100)]])},
        {"polygons": Polygons([[rectangle(4, 4, 32, 18), rectangle(32, 32, 60, 60)]])},
    ]
    objects = [torch.tensor([1, 2]), torch.tensor([0])]
    classes = torch.tensor([2, 1, 3])
    loss = mask_loss(logits, classes, boxes, objects, targets, [(100, 100), (80, 80)])
    drawn = np.zeros((3, 28, 28))
    drawn[0, :, :14] = 1
    drawn[1, :, 14:] = 1
    drawn[2, :7, :14] = 1
    drawn[2, 14:, 14:] = 1
    total = 0.0
    for row, label in enumerate(classes.tolist()):
        values = logits[row, label].double().numpy()
        total += float((np.logaddexp(0, values) - values * drawn[row]).sum())
    assert float(loss) == pytest.approx(total / (3 * 28 * 28), rel=1e-6)


def training_inputs(
    boxes: Tensor,
) -> tuple[dict[str, Tensor], list[Tensor], list[tuple[int, int]], list[dict[str, Any]]]:
    maps = {"0": torch.randn(1, 2, 16, 16), "1": torch.randn(1, 2, 8, 8)}
    targets = [
        {
            "boxes": boxes,
            "labels": torch.ones(len(boxes), dtype=torch.int64),
            "polygons": Polygons([[rectangle(*box)] for box in boxes.tolist()]),
        }
    ]
    return maps, [torch.tensor([[30.0, 30, 40, 40], [0, 0, 5, 5]])], [(64, 64)], targets


def test_no_positives_give_a_mask_loss_of_nothing_with_a_gradient() -> None:
    torch.manual_seed(0)
    roi = heads(masks=True).train()
    _, losses = roi(*training_inputs(torch.zeros(0, 4)))
    assert [float(losses[key].detach()) for key in ("loss_mask", "loss_box_reg")] == [0, 0]
    sum(losses.values()).backward()
    for part in (roi.mask_head, roi.mask_predictor):
        assert isinstance(part, nn.Module)
        for parameter in part.parameters():
            assert parameter.grad is not None
            assert not parameter.grad.any()


def test_objects_themselves_are_among_the_boxes() -> None:
    """No proposal is near the object, so that only it can be positive: reference rpn/inference.py:53-74."""
    torch.manual_seed(0)
    _, losses = heads(masks=True).train()(*training_inputs(torch.tensor([[8.0, 8, 27, 27]])))
    assert float(losses["loss_mask"].detach()) > 0
    assert float(losses["loss_box_reg"].detach()) >= 0


@pytest.mark.parametrize("key", ["boxes", "labels", "polygons"])
def test_a_missing_target_is_named(key: str) -> None:
    *rest, targets = training_inputs(torch.tensor([[8.0, 8, 27, 27]]))
    del targets[0][key]
    with pytest.raises(ValueError, match=key):
        heads(masks=True).train()(*rest, targets)


def test_training_without_targets_is_refused() -> None:
    maps, proposals, sizes, _ = training_inputs(torch.zeros(0, 4))
    with pytest.raises(ValueError, match="targets"):
        heads().train()(maps, proposals, sizes)
