"""A sample is accepted with the same meaning by training and evaluation, or refused by both in a line that names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors

from vovnet.detection.config.data import DataRecipe
from vovnet.detection.data.loader import training_loader
from vovnet.detection.data.samples import check_sample
from vovnet.detection.evaluation.evaluator import evaluate
from vovnet.errors import InputError

HEIGHT, WIDTH = 12, 16
BOXES = [[1.0, 2.0, 9.0, 10.0], [4.0, 1.0, 15.0, 6.0]]
NAN, INFINITY = float("nan"), float("inf")


def image(**changes: Any) -> Tensor:
    return torch.arange(3 * HEIGHT * WIDTH, dtype=torch.uint8).reshape(3, HEIGHT, WIDTH)


def masks() -> Tensor:
    painted = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(painted, torch.tensor(BOXES).int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    return painted


def target(**changes: Any) -> dict[str, Any]:
    return {"boxes": torch.tensor(BOXES), "labels": torch.tensor([1, 2]), "image_id": 5} | changes


SAME: dict[str, list[Any]] = {
    "boxes": [
        BOXES,
        tuple(map(tuple, BOXES)),
        np.array(BOXES),
        np.array(BOXES, dtype=">f8"),
        torch.tensor(BOXES, dtype=torch.float64),
        torch.tensor(BOXES, dtype=torch.bfloat16),
        torch.tensor(BOXES).long(),
        torch.tensor(BOXES, requires_grad=True),
        [torch.tensor(box) for box in BOXES],
        tv_tensors.BoundingBoxes(BOXES, format="XYXY", canvas_size=(HEIGHT, WIDTH)),
        tv_tensors.BoundingBoxes([[1, 2, 8, 8], [4, 1, 11, 5]], format="XYWH", canvas_size=(HEIGHT, WIDTH)),
        tv_tensors.BoundingBoxes([[5.0, 6, 8, 8], [9.5, 3.5, 11, 5]], format="CXCYWH", canvas_size=(HEIGHT, WIDTH)),
    ],
    "labels": [[1, 2], (1, 2), np.array([1, 2], dtype=np.uint8), torch.tensor([1, 2], dtype=torch.int32)],
    "image_id": [5, torch.tensor(5), torch.tensor([5]), np.int32(5), np.array([5])],
    "masks": [masks(), masks().bool(), masks().float(), masks().long(), masks().numpy(), list(masks().numpy())],
    "iscrowd": [[0, 0], torch.tensor([0, 0]), torch.tensor([False, False]), np.zeros(2), None],
    "area": [[64.0, 55.0], torch.tensor([64, 55]), np.array([64.0, 55.0])],
}

WRONG: dict[str, list[Any]] = {
    "boxes": [
        None, "boxes", 3, {}, [[1, 2, 3]], [[1, 2, 3], [1, 2, 3, 4]], torch.zeros(2, 5), torch.zeros(4),
        [["a"] * 4] * 2, torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 4, dtype=torch.complex64), [None, BOXES[0]],
        [[NAN, 2, 9, 10], BOXES[1]], [[1, 2, INFINITY, 10], BOXES[1]], [[1, 2, 1e300, 10], BOXES[1]],
        [[9, 2, 1, 10], BOXES[1]], [[1, 2, 1, 10], BOXES[1]], [[1, 10, 9, 2], BOXES[1]], [[0, 0, 0, 0], BOXES[1]],
        [[16, 2, 30, 10], BOXES[1]], [[1, -9, 9, 0], BOXES[1]], torch.zeros(2, 4, device="meta"),
        tv_tensors.BoundingBoxes(BOXES, format="XYXY", canvas_size=(WIDTH, HEIGHT)),
    ],
    "labels": [
        None, [1], [1, 2, 3], [0, 1], [1, 3], [-1, 1], [1.0, 2.0], [True, True], ["1", "2"], [[1, 2]], 1,
        torch.tensor([[1], [2]]), torch.tensor([1, 2], device="meta"), [1, 2**63],
    ],
    "image_id": ["5", 5.0, True, torch.tensor([5, 6]), torch.tensor([]), [5], 2**63, torch.tensor(5.0), b"5"],
    "masks": [
        masks()[:1], masks()[:, :5], masks() * 255, masks().float() * 0.7, masks().float() * NAN, [], "masks", [None],
        masks()[:, None],
    ],
    "iscrowd": [[0], [0, 2], ["0", "0"], ["false", "false"], [[0], [0]], 0, [NAN, 0], [None, 0], "00"],
    "area": [[64.0], [64.0, NAN], [64.0, INFINITY], [64.0, -1], ["64", "55"], 64.0, [[64.0, 55.0]]],
}  # fmt: skip

CASES = [(key, value) for key, values in WRONG.items() for value in values]


@pytest.mark.parametrize(("key", "position"), [(key, n) for key, values in SAME.items() for n in range(len(values))])
def test_what_means_the_same(key: str, position: int) -> None:
    changes = {"iscrowd": [0, 0], "area": [64.0, 55.0], "masks": masks()}
    expected = check_sample((image(), target(**changes)), 0, 2)[1]
    found = check_sample((image(), target(**changes | {key: SAME[key][position]})), 0, 2)[1]
    if SAME[key][position] is None:
        assert found.pop(key, None) is None
        del expected[key]
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert type(value) is type(expected[name]), name
        assert value == 5 if name == "image_id" else torch.equal(value, expected[name]), name
        assert getattr(value, "dtype", None) == getattr(expected[name], "dtype", None), name
    assert isinstance(found["boxes"], tv_tensors.BoundingBoxes)
    assert found["boxes"].canvas_size == (HEIGHT, WIDTH)


@pytest.mark.parametrize(("key", "value"), CASES)
def test_what_is_refused(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{key}|^expected .*{key}") as caught:
        check_sample((image(), target(**{key: value})), 0, 2)
    assert len(str(caught.value)) < 500


def test_boxes_are_clipped() -> None:
    found = check_sample((image(), target(boxes=[[-3, -4, 5, 6], [10, 8, 40, 90]])), 0, 2)[1]
    assert found["boxes"].tolist() == [[0, 0, 5, 6], [10, 8, WIDTH, HEIGHT]]


def test_images_without_objects() -> None:
    for boxes in (torch.zeros(0, 4), torch.zeros(0), [], np.zeros((0, 4)), torch.zeros(0, 4, dtype=torch.int64)):
        for labels in (torch.zeros(0), [], torch.zeros(0, dtype=torch.int64)):
            for shapes in (torch.zeros(0), [], torch.zeros(0, HEIGHT, WIDTH, dtype=torch.uint8)):
                empty = {"boxes": boxes, "labels": labels, "masks": shapes, "iscrowd": [], "area": []}
                found = check_sample((image(), empty), 7, 2)[1]
                assert found["boxes"].shape == (0, 4)
                assert found["labels"].dtype == torch.int64
                assert found["masks"].shape == (0, HEIGHT, WIDTH)
                assert found["image_id"] == 7


def test_what_is_no_sample() -> None:
    lost = {"labels": torch.tensor([1])}
    for wrong in (None, (1, 2, 3), (image(), lost), (image(), None), (image(), [1]), ("text", target()), {}, 5, "ab"):
        with pytest.raises(InputError):
            check_sample(wrong, 0, 2)


def test_images_of_every_kind() -> None:
    for one in (Image.new("L", (WIDTH, HEIGHT)), np.zeros((HEIGHT, WIDTH)), torch.zeros(4, HEIGHT, WIDTH)):
        assert check_sample((one, target()), 0, 2, channels=3)[0].shape == (3, HEIGHT, WIDTH)
        assert check_sample((one, target()), 0, 2, channels=1)[0].shape == (1, HEIGHT, WIDTH)
    with pytest.raises(InputError, match=r"image: .*5"):
        check_sample((torch.zeros(5, HEIGHT, WIDTH), target()), 0, 2, channels=3)
    with pytest.raises(InputError, match="image: the image has no pixels"):
        check_sample((torch.zeros(3, 0, 5), target()), 0, 2)


def test_masks_that_a_detector_needs() -> None:
    with pytest.raises(InputError, match="masks: missing"):
        check_sample((image(), target()), 0, 2, needs_masks=True)
    empty = {"boxes": [], "labels": []}
    assert check_sample((image(), empty), 0, 2, needs_masks=True)[1]["masks"].shape == (0, HEIGHT, WIDTH)
    assert "masks" in check_sample((image(), target(masks=masks())), 0, 2, needs_masks=True)[1]


def test_other_keys_are_left_out() -> None:
    found = check_sample(
        (image(), target(caption="x", image=Image.new("L", (1, 1)), b=torch.zeros(1).bfloat16())), 0, 2
    )
    assert found[1].keys() == {"boxes", "labels", "image_id"}


class One:
    """A dataset of one sample."""

    categories = ({"id": 3, "name": "cat"}, {"id": 8, "name": "dog"})

    def __init__(self, sample: Any) -> None:
        self.sample = sample

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        return self.sample

    def file_name(self, index: int) -> str:
        return "photo.jpg"


class Perfect(nn.Module):
    """A detector that answers what it was told."""

    def __init__(self, boxes: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.answer = {"boxes": boxes, "labels": labels, "scores": torch.ones(len(boxes))}
        self.seen: list[Tensor] = []

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        self.seen += images
        return [self.answer]


def in_training(sample: Any) -> tuple[Tensor, Mapping[str, Any]] | str:
    """Return what training makes of a sample when nothing is scaled or flipped, or the message of the error."""
    data = DataRecipe(train_min_sizes=[HEIGHT], train_max_size=WIDTH, flip=0, workers=0)
    try:
        images, targets = next(training_loader(One(sample), data, batch_size=1, seed=0, pin_memory=False))
    except InputError as error:
        return str(error)
    return images[0], targets[0]


values = st.one_of(
    *(st.sampled_from([*SAME[key], *WRONG[key]]).map(lambda value, key=key: {key: value}) for key in SAME),
    st.sampled_from([{}, {"labels": ["a", "b"]}, {"boxes": [], "labels": []}]),
)
KINDS = [
    image(), image().float() / 255, image().double() / 255, image().to(torch.uint16) * 257, image() > 100,
    image().permute(1, 2, 0).numpy(), image()[0], Image.fromarray(image().permute(1, 2, 0).numpy()),
    image().float(), image().long(), image()[:, 0], None, "no.png", torch.zeros(3, HEIGHT, 0),
    torch.full((3, HEIGHT, WIDTH), NAN),
]  # fmt: skip


@given(st.sampled_from(KINDS), values, values)
@example(image(), {"boxes": [[NAN, NAN, NAN, NAN], BOXES[1]]}, {})
@example(image().float() / 255, {}, {})
def test_training_and_evaluation_agree(kind: Any, one: dict[str, Any], other: dict[str, Any]) -> None:
    sample = (kind, target(**one, **{key: value for key, value in other.items() if key not in one}))
    trained = in_training(sample)
    if isinstance(trained, str):
        assert trained.startswith("dataset[0] (photo.jpg): ")
        with pytest.raises(InputError) as caught:
            evaluate(Perfect(torch.zeros(0, 4), torch.zeros(0).long()), One(sample))
        assert str(caught.value) == trained
        return
    pixels, truth = trained
    detector = Perfect(truth["boxes"], truth["labels"])
    metrics = evaluate(detector, One(sample))
    # What training learns is the truth of the evaluation: who answers it has all of it right.
    assert metrics["bbox"]["AP"] == pytest.approx(1 if len(truth["labels"]) else -1)
    seen = pixels if pixels.is_floating_point() else pixels.float() / 255
    assert torch.equal(detector.seen[0], seen.expand(3, -1, -1))
