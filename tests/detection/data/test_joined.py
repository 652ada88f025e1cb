"""torch's subsets and concatenations are datasets like those in them, at any depth."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset, random_split

from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.data.datasets import checked
from vovnet.detection.data.sampler import aspect_groups
from vovnet.detection.evaluation.evaluator import evaluate
from vovnet.errors import InputError


class Numbered(Dataset[Any]):
    """Images whose pixels are their numbers, and whose ids are the numbers too."""

    categories = ({"id": 3, "name": "cat"}, {"id": 8, "name": "dog"})

    def __init__(self, numbers: range, truth: bool = False) -> None:
        self.numbers = numbers
        if truth:
            self.ground_truth = {
                "images": [{"id": number, "height": 20 + number, "width": 30} for number in numbers],
                "annotations": [
                    {"id": 1 + number, "image_id": number, "category_id": 3, "bbox": [1, 1, 5 + number, 9]}
                    for number in numbers
                ],
                "categories": list(self.categories),
            }

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Any:
        number = self.numbers[index]
        target = {"boxes": [[1, 1, 6 + number, 10]], "labels": [1], "image_id": number}
        return torch.full((3, 20 + number, 30), number, dtype=torch.uint8), target

    def image_size(self, index: int) -> tuple[int, int]:
        return 20 + self.numbers[index], 30

    def file_name(self, index: int) -> str:
        return f"{self.numbers[index]}.jpg"

    def image_labels(self, index: int) -> list[int]:
        return [1 + self.numbers[index] % 2]


class Knowing(Numbered):
    """It says the ids of its images without loading them."""

    def image_id(self, index: int) -> int:
        return self.numbers[index]


class Reader(nn.Module):
    """A detector that reads an image's number from its pixels, and knows the box for it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        numbers = [round(float(image[0, 0, 0]) * 255) for image in images]
        return [
            {"boxes": torch.tensor([[1.0, 1, 6 + n, 10]]), "labels": torch.tensor([1]), "scores": torch.ones(1)}
            for n in numbers
        ]


def numbers(dataset: Any) -> list[int]:
    return [int(dataset[index][0][0, 0, 0]) for index in range(len(dataset))]


def ids(dataset: Any) -> list[int]:
    return [dataset[index][1]["image_id"] for index in range(len(dataset))]


@pytest.mark.parametrize("kind", [Numbered, Knowing])
def test_subsets_at_any_depth(kind: Callable[[range], Any]) -> None:
    dataset = checked(Subset(Subset(kind(range(20)), range(0, 20, 3)), torch.tensor([5, 1, 2])))
    assert dataset.categories == list(Numbered.categories)
    assert numbers(dataset) == ids(dataset) == [15, 3, 6]
    assert dataset.image_size is not None
    assert [dataset.image_size(index) for index in range(3)] == [(35, 30), (23, 30), (26, 30)]
    assert dataset.described(1) == "dataset[1] (3.jpg)"
    assert dataset.image_labels is not None
    assert [dataset.image_labels(index) for index in range(3)] == [[2], [2], [1]]
    assert aspect_groups(dataset) == [1, 0, 0]
    assert numbers(pickle.loads(pickle.dumps(dataset))) == [15, 3, 6]


@pytest.mark.parametrize("kind", [Numbered, Knowing])
def test_concatenations_at_any_depth(kind: Callable[[range], Any]) -> None:
    inner = ConcatDataset([kind(range(3)), Subset(kind(range(10)), [1, 7])])
    dataset = checked(ConcatDataset([kind(range(2)), inner, Subset(inner, [4, 0])]))
    assert numbers(dataset) == [0, 1, 0, 1, 2, 1, 7, 7, 0]
    assert len(set(ids(dataset))) == 9
    assert ids(dataset)[:2] == [0, 1]
    assert dataset.described(6) == "dataset[6] (7.jpg)"
    assert dataset.image_labels is not None
    assert [dataset.image_labels(index) for index in (5, 6, 8)] == [[2], [2], [1]]
    assert dataset.image_size is not None
    assert [dataset.image_size(index)[0] for index in (6, 7, 8)] == [27, 27, 20]
    assert ids(pickle.loads(pickle.dumps(dataset))) == ids(dataset)


def test_ids_stay_where_they_differ() -> None:
    assert ids(checked(ConcatDataset([Knowing(range(10, 13)), Knowing(range(3, 5))]))) == [10, 11, 12, 3, 4]


@pytest.mark.parametrize("kind", [Numbered, Knowing])
@pytest.mark.parametrize("truth", [False, True])
def test_they_can_be_evaluated(kind: Callable[..., Any], truth: bool) -> None:
    """Each image is held to its own truth, whose box depends on its number, and to no other."""
    whole = kind(range(12), truth)
    first, second = random_split(whole, [5, 7], torch.Generator().manual_seed(0))
    for dataset in (first, ConcatDataset([first, second]), ConcatDataset([whole, whole]), Subset(second, [3, 1])):
        metrics = evaluate(Reader(), dataset)
        assert metrics["bbox"]["AP"] == pytest.approx(1), dataset
        assert metrics["per_class"]["bbox"][0]["objects"] == len(dataset)


def test_categories_that_differ() -> None:
    other = Numbered(range(2))
    other.categories = ({"id": 3, "name": "cow"},)  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"dataset: datasets\[1\] has categories .*cow"):
        checked(ConcatDataset([Numbered(range(2)), other]))
    with pytest.raises(InputError, match=r"dataset\.datasets\[1\]: expected .*categories"):
        checked(ConcatDataset([Numbered(range(2)), torch.utils.data.TensorDataset(torch.zeros(3))]))


def test_repeated_indices_are_one_image_in_an_evaluation() -> None:
    with pytest.raises(InputError, match=r"dataset\[0\] \(2\.jpg\) and dataset\[2\] \(2\.jpg\) have 2"):
        evaluate(Reader(), Subset(Numbered(range(4)), [2, 1, 2]))


def test_a_subset_with_samples_of_its_own() -> None:
    class Shifted(Subset[Any]):
        def __getitem__(self, index: Any) -> Any:
            image, target = super().__getitem__(index)
            return image + 100, target

        def __getitems__(self, indices: list[int]) -> list[Any]:
            return [self[index] for index in indices]

    assert numbers(checked(Shifted(Numbered(range(5)), [4, 2]))) == [104, 102]


def test_parts_of_coco_files(write: Callable[..., DataSource]) -> None:
    """The ground truth has the images of the part alone."""
    one = CocoDataset([write()], masks=True, training=False)
    part = checked(Subset(one, [2, 0]))
    assert part.ground_truth is not None
    assert sorted(image["id"] for image in part.ground_truth["images"]) == [1, 3]
    assert sorted(entry["image_id"] for entry in part.ground_truth["annotations"]) == [1, 3]
    assert ids(part) == [3, 1]
    assert "masks" in part[0][1]
    assert "masks" not in part.without_masks()[0][1]
    twice = checked(ConcatDataset([one, part.dataset.subset]))
    assert ids(twice) == [1, 2, 3, 4, 5]
    assert twice.ground_truth is not None
    assert "masks" not in twice.without_masks()[4][1]
    assert [image["id"] for image in twice.ground_truth["images"]] == [1, 2, 3, 5, 4]
