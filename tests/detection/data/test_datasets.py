"""A dataset of one's own is held to the protocol as a whole; images that share an id are an error, not one image."""

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from vovnet.detection.config.data import DataRecipe
from vovnet.detection.data.datasets import ImageIds, checked
from vovnet.detection.data.loader import evaluation_loader, training_loader
from vovnet.errors import InputError

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}]


class Own(Dataset[Any]):
    def __init__(self, **attributes: Any) -> None:
        self.categories: Any = CATEGORIES
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        target = {"boxes": [[1, 2, 8, 9]], "labels": [1 + index % 2], "image_id": index}
        return torch.full((3, 10, 12), index, dtype=torch.uint8), target


class Endless(IterableDataset[Any]):
    categories = CATEGORIES

    def __iter__(self) -> Iterator[Any]:
        yield Own()[0]


class WithoutLength:
    categories = CATEGORIES

    def __getitem__(self, index: int) -> Any:
        return Own()[index]


def test_a_checked_dataset() -> None:
    dataset = checked(Own(file_name="{}.jpg".format, image_size=lambda index: (10, 12)))
    assert checked(dataset) is dataset
    assert len(dataset) == 4
    assert dataset.categories == CATEGORIES
    assert dataset.image_size is not None
    assert dataset.image_size(1) == (10, 12)
    assert dataset.described(2) == "dataset[2] (2.jpg)"
    assert dataset.ground_truth is None
    assert checked(Own()).image_size is None
    assert len(pickle.loads(pickle.dumps(checked(Own())))[1][1]["boxes"]) == 1


@pytest.mark.parametrize("wrong", [Endless(), WithoutLength(), None, 5, object(), iter([1])])
def test_what_is_no_dataset(wrong: Any) -> None:
    with pytest.raises(InputError, match="data: expected a dataset"):
        checked(wrong, "data")


def test_sizes_are_checked() -> None:
    dataset = checked(Own(image_size=lambda index: "12x10"))
    with pytest.raises(InputError, match=r"dataset\.image_size\(0\)"):
        next(training_loader(dataset, DataRecipe(workers=0), batch_size=1, seed=0))


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_name_the_sample(workers: int) -> None:
    class Wrong(Own):
        def __getitem__(self, index: int) -> Any:
            image, target = super().__getitem__(index)
            return image, target | ({"boxes": [[9, 9, 1, 1]]} if index == 2 else {})

    with pytest.raises(InputError, match=r"^dataset\[2\]: boxes\[0\] = 9, 9, 1, 1"):
        list(evaluation_loader(Wrong(), workers=workers))


def test_ids_that_images_share() -> None:
    ids = ImageIds(checked(Own(file_name="{}.jpg".format)), None)
    for index in range(3):
        ids.add(index + 10, index)
    ids.join([{10: 0, 11: 1}, {20: 3}])
    with pytest.raises(InputError, match=r"dataset\[1\] \(1\.jpg\) and dataset\[3\] \(3\.jpg\) have 11"):
        ids.join([{11: 3}])
    truth = {"images": [{"id": 1}]}
    with pytest.raises(InputError, match=r"dataset\[0\].* 2 is not in dataset\.ground_truth"):
        ImageIds(checked(Own()), truth).add(2, 0)
