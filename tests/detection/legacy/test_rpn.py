"""The proposal network against facts 12 to 16 said again, slowly, in plain Python."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from vovnet.detection.legacy.anchors import LegacyAnchorGenerator
from vovnet.detection.legacy.rpn import LegacyRegionProposalNetwork

STRIDES, SIZES, RATIOS = (8, 16), (16, 32), (0.5, 1.0, 2.0)
MAPS = ((6, 8), (3, 4))
"""Heights and widths of two levels of images padded to 48 × 64."""

Box = tuple[float, float, float, float]


class Answers(nn.Module):
    """A head that says what it is told."""

    def __init__(self, scores: list[Tensor], offsets: list[Tensor]) -> None:
        super().__init__()
        self.scores, self.offsets = scores, offsets

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return self.scores, self.offsets


def answers(image_count: int, seed: int = 0, spread: float = 0.3) -> Answers:
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.randn(image_count, 3, h, w, generator=generator) for h, w in MAPS]
    offsets = [spread * torch.randn(image_count, 12, h, w, generator=generator) for h, w in MAPS]
    return Answers(scores, offsets)


def network(head: nn.Module, pre: int = 40, post: int = 15, sampled: int = 10**7) -> LegacyRegionProposalNetwork:
    anchors = LegacyAnchorGenerator(SIZES, STRIDES, RATIOS)
    limits = {"training": pre, "testing": pre}, {"training": post, "testing": post}
    return LegacyRegionProposalNetwork(anchors, head, 0.7, 0.3, sampled, 0.5, *limits, 0.7)


def inputs(*sizes: tuple[int, int]) -> tuple[ImageList, dict[str, Tensor]]:
    images = ImageList(torch.zeros(len(sizes), 3, 48, 64), list(sizes))
    return images, {str(i): torch.zeros(len(sizes), 1, h, w) for i, (h, w) in enumerate(MAPS)}


# What follows says the facts again, one box at a time.


def plain_anchors(level: int) -> list[Box]:
    stride, size = STRIDES[level], SIZES[level]
    height, width = MAPS[level]
    found = []
    for y in range(height):
        for x in range(width):
            for ratio in RATIOS:
                w = round(math.sqrt(stride * stride / ratio))
                h = round(w * ratio)
                w, h = w * size / stride, h * size / stride
                middle = (stride - 1) / 2
                found.append(
                    (
                        x * stride + middle - (w - 1) / 2,
                        y * stride + middle - (h - 1) / 2,
                        x * stride + middle + (w - 1) / 2,
                        y * stride + middle + (h - 1) / 2,
                    )
                )
    return found


def plain_overlap(a: Box, b: Box) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    areas = sum((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b))
    return width * height / (areas - width * height)


def plain_box(anchor: Box, code: list[float], size: tuple[int, int]) -> Box:
    width, height = anchor[2] - anchor[0] + 1, anchor[3] - anchor[1] + 1
    x, y = anchor[0] + width / 2 + code[0] * width, anchor[1] + height / 2 + code[1] * height
    limit = math.log(1000 / 16)
    w, h = width * math.exp(min(code[2], limit)), height * math.exp(min(code[3], limit))
    corners = (x - w / 2, y - h / 2, x + w / 2 - 1, y + h / 2 - 1)
    last = (size[1] - 1, size[0] - 1, size[1] - 1, size[0] - 1)
    return tuple(min(max(value, 0.0), most) for value, most in zip(corners, last, strict=True))  # type: ignore[return-value]


def plain_level(
    head: Answers, image: int, level: int, size: tuple[int, int], pre: int, post: int
) -> list[tuple[float, Box]]:
    logits = head.scores[level][image].permute(1, 2, 0).flatten().tolist()
    codes = head.offsets[level][image].reshape(3, 4, *MAPS[level]).permute(2, 3, 0, 1).reshape(-1, 4).tolist()
    scored = sorted(zip(logits, plain_anchors(level), codes, strict=True), key=lambda one: -one[0])[:pre]
    kept: list[tuple[float, Box]] = []
    for logit, anchor, code in scored:
        box = plain_box(anchor, code, size)
        if all(plain_overlap(box, other) < 0.7 for _, other in kept):
            kept.append((1 / (1 + math.exp(-logit)), box))
    return kept[:post]


def plain_proposals(head: Answers, sizes: list[tuple[int, int]], pre: int, post: int, training: bool) -> list[Tensor]:
    found = [
        [one for level in range(len(MAPS)) for one in plain_level(head, i, level, size, pre, post)]
        for i, size in enumerate(sizes)
    ]
    if training:
        least = sorted((score for part in found for score, _ in part), reverse=True)[:post][-1]
        chosen = [[box for score, box in part if score >= least] for part in found]
    else:
        chosen = [[box for _, box in sorted(part, key=lambda one: -one[0])[:post]] for part in found]
    return [torch.tensor(part, dtype=torch.float64).reshape(-1, 4) for part in chosen]


@pytest.mark.parametrize(("pre", "post"), [(40, 15), (500, 300), (7, 1000), (144, 4)])
@pytest.mark.parametrize("training", [False, True])
def test_proposals(pre: int, post: int, training: bool) -> None:
    sizes = [(48, 64), (41, 50), (30, 64)]
    head = answers(3)
    rpn = network(head, pre, post).train(training)
    images, maps = inputs(*sizes)
    targets = [{"boxes": torch.tensor([[4.0, 4, 24, 24]])}] * 3
    found, losses = rpn(images, maps, targets if training else None)
    wanted = plain_proposals(head, sizes, pre, post, training)
    assert [len(part) for part in found] == [len(part) for part in wanted]
    for part, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(part.double(), expected, atol=2e-4, rtol=0)
    assert set(losses) == ({"loss_objectness", "loss_rpn_box_reg"} if training else set())
    assert not any(part.requires_grad for part in found)


def test_training_takes_the_best_of_the_batch_not_of_each_image() -> None:
    head = answers(2)
    for scores in head.scores:
        scores[1] -= 100  # nothing of the second image is better than anything of the first
    images, maps = inputs((48, 64), (48, 64))
    targets = [{"boxes": torch.tensor([[4.0, 4, 24, 24]])}] * 2
    assert [len(part) for part in network(head).train()(images, maps, targets)[0]] == [15, 0]
    assert [len(part) for part in network(head).eval()(images, maps)[0]] == [15, 15]


def test_training_keeps_levels_in_their_order_and_testing_sorts_by_score() -> None:
    head = answers(1)
    head.scores[0] -= 3
    head.scores[1] += 3  # the second level is the best
    images, maps = inputs((48, 64))
    targets = [{"boxes": torch.tensor([[4.0, 4, 24, 24]])}]
    (trained,), _ = network(head, post=40).train()(images, maps, targets)
    (tested,), _ = network(head, post=40).eval()(images, maps)
    first, second = (len(plain_level(head, 0, level, (48, 64), 40, 40)) for level in (0, 1))
    assert first + second > 40
    torch.testing.assert_close(tested[:second], trained[-second:])


def test_saturated_scores_which_all_tie_give_the_same_twice() -> None:
    head = answers(1)
    for scores in head.scores:
        scores += 60
    images, maps = inputs((48, 64))
    (first,), _ = network(head, pre=1000, post=1000).eval()(images, maps)
    (second,), _ = network(head, pre=1000, post=1000).eval()(images, maps)
    assert len(first)
    assert torch.equal(first, second)


@pytest.mark.parametrize("size", [(48, 64), (33, 40)])
def test_targets_of_anchors(size: tuple[int, int]) -> None:
    """Facts 15 and 16: who is positive, negative or neither, and the losses of all of them."""
    head = answers(1)
    objects = [(3.0, 2.0, 21.0, 30.0), (16.0, 0.0, 31.0, 15.0), (0.0, 20.0, 39.0, 32.0)]
    images, maps = inputs(size)
    rpn = network(head).train()
    _, losses = rpn(images, maps, [{"boxes": torch.tensor(objects)}])
    anchors = [box for level in range(2) for box in plain_anchors(level)]
    table = [[plain_overlap(thing, anchor) for anchor in anchors] for thing in objects]
    logits = torch.cat([part[0].permute(1, 2, 0).flatten() for part in head.scores]).double()
    codes = [
        part[0].reshape(3, 4, h, w).permute(2, 3, 0, 1).reshape(-1, 4)
        for part, (h, w) in zip(head.offsets, MAPS, strict=True)
    ]
    predicted = torch.cat(codes).double().tolist()
    entropy, distance, sampled = 0.0, 0.0, 0
    for i, anchor in enumerate(anchors):
        x0, y0, x1, y1 = anchor
        if not (x0 >= 0 and y0 >= 0 and x1 < size[1] and y1 < size[0]):
            continue
        column = [row[i] for row in table]
        thing = max(range(3), key=lambda k: column[k])
        low_quality = any(column[k] == max(table[k]) for k in range(3))
        if max(column) >= 0.7 or low_quality:
            label = 1.0
        elif max(column) < 0.3:
            label = 0.0
        else:
            continue
        sampled += 1
        logit = float(logits[i])
        entropy += math.log1p(math.exp(-abs(logit))) + max(logit, 0) - logit * label
        if label:
            for got, wanted in zip(predicted[i], plain_code(anchor, objects[thing]), strict=True):
                far = abs(got - wanted)
                distance += far * far * 9 / 2 if far < 1 / 9 else far - 1 / 18
    assert distance > 0
    assert float(losses["loss_objectness"]) == pytest.approx(entropy / sampled, rel=1e-5)
    assert float(losses["loss_rpn_box_reg"]) == pytest.approx(distance / sampled, rel=1e-5)


def plain_code(anchor: Box, thing: Box) -> tuple[float, ...]:
    w, h = anchor[2] - anchor[0] + 1, anchor[3] - anchor[1] + 1
    tw, th = thing[2] - thing[0] + 1, thing[3] - thing[1] + 1
    x, y, tx, ty = anchor[0] + w / 2, anchor[1] + h / 2, thing[0] + tw / 2, thing[1] + th / 2
    return (tx - x) / w, (ty - y) / h, math.log(tw / w), math.log(th / h)


def test_an_object_whose_best_anchor_straddles_the_border_gets_no_other() -> None:
    """The straddle rule comes after the matching, so that the object's positive anchors are lost."""
    head = answers(1)
    images, maps = inputs((48, 64))
    anchors = torch.tensor(plain_anchors(0) + plain_anchors(1))
    corner = anchors[0]  # partly outside
    assert corner[0] < 0
    labels: list[Tensor] = []
    rpn = network(head).train()
    compute = rpn.compute_loss
    rpn.compute_loss = lambda *parts: (labels.extend(parts[2]), compute(*parts))[1]  # type: ignore[method-assign,func-returns-value]
    _, losses = rpn(images, maps, [{"boxes": corner[None]}])
    assert not (labels[0] == 1).any()
    assert labels[0][0] == -1
    assert float(losses["loss_rpn_box_reg"]) == 0


def test_the_matching_equals_the_reference(units: dict[str, Any]) -> None:
    rpn = network(answers(1))
    found = rpn.proposal_matcher(rpn.box_similarity(units["match.gt"], units["match.boxes"]))
    assert torch.equal(found, units["match.rpn"])


def test_straddling_equals_the_reference(units: dict[str, Any]) -> None:
    """All five levels of an image of 150 × 187 that is padded to 160 × 192: where labels are left."""
    sizes = [(40, 48), (20, 24), (10, 12), (5, 6), (3, 3)]
    head = Answers([torch.zeros(1, 3, h, w) for h, w in sizes], [torch.zeros(1, 12, h, w) for h, w in sizes])
    anchors = LegacyAnchorGenerator((32, 64, 128, 256, 512), (4, 8, 16, 32, 64), RATIOS)
    limits = {"training": 10, "testing": 10}
    rpn = LegacyRegionProposalNetwork(anchors, head, 0.7, 0.3, 10**7, 0.5, limits, limits, 0.7).train()
    labels: list[Tensor] = []
    compute = rpn.compute_loss
    rpn.compute_loss = lambda *parts: (labels.extend(parts[2]), compute(*parts))[1]  # type: ignore[method-assign,func-returns-value]
    images = ImageList(torch.zeros(1, 3, 160, 192), [(150, 187)])
    # An object of one pixel overlaps nothing by 0.3, so that every visible anchor is background or its only positive.
    rpn(images, {str(i): torch.zeros(1, 1, h, w) for i, (h, w) in enumerate(sizes)}, [{"boxes": torch.zeros(1, 4)}])
    assert torch.equal(labels[0] >= 0, units["anchors.visible"])


def test_the_sample_is_half_positive_at_most() -> None:
    head = answers(2)
    for scores in head.scores:
        scores.requires_grad_()
    images, maps = inputs((48, 64), (48, 64))
    targets = [{"boxes": torch.tensor([[8.0 * i, 8.0, 8.0 * i + 15, 23.0] for i in range(6)])}] * 2
    torch.manual_seed(0)
    _, losses = network(head, sampled=9).train()(images, maps, targets)
    losses["loss_objectness"].backward()
    gradients = torch.cat([part.grad.flatten() for part in head.scores if part.grad is not None])
    assert int((gradients != 0).sum()) == 18  # nine of each image
    assert 1 <= int((gradients < 0).sum()) <= 8  # of them int(9 / 2) at most want to grow


def test_no_objects_make_every_visible_anchor_background() -> None:
    head = answers(1)
    images, maps = inputs((48, 64))
    _, losses = network(head).train()(images, maps, [{"boxes": torch.zeros(0, 4)}])
    assert math.isfinite(float(losses["loss_objectness"]))
    assert float(losses["loss_rpn_box_reg"]) == 0


def test_training_without_targets_is_refused() -> None:
    with pytest.raises(ValueError, match="targets"):
        network(answers(1)).train()(*inputs((48, 64)))
