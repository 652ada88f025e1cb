"""Batches are the same whatever the workers; errors come out of workers as one line."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from least_dataset import MinimalDataset, quick_recipe

from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.data.collation import Batch
from vovnet.detection.data.loader import evaluation_loader, training_loader
from vovnet.errors import InputError

Write = Callable[..., DataSource]


@pytest.fixture
def dataset(write: Write) -> CocoDataset:
    return CocoDataset([write(image_count=5)], masks=True, training=True)


def assert_equal(one: list[Batch], two: list[Batch]) -> None:
    assert len(one) == len(two)
    for (images, targets), (other_images, other_targets) in zip(one, two, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(images, other_images, strict=True))
        for target, other in zip(targets, other_targets, strict=True):
            assert target.keys() == other.keys()
            assert target["image_id"] == other["image_id"]
            for key in target.keys() - {"image_id"}:
                assert torch.equal(target[key], other[key])
                assert target[key].dtype == other[key].dtype


def test_workers_change_nothing(dataset: CocoDataset) -> None:
    here = list(islice(training_loader(dataset, quick_recipe(), batch_size=2, seed=1), 7))
    there = list(islice(training_loader(dataset, quick_recipe(workers=2), batch_size=2, seed=1), 7))
    assert_equal(here, there)
    resumed = list(islice(training_loader(dataset, quick_recipe(workers=1), batch_size=2, seed=1, start=4), 3))
    assert_equal(here[4:], resumed)
    other = list(islice(training_loader(dataset, quick_recipe(), batch_size=2, seed=2), 7))
    assert [t["image_id"] for _, ts in here for t in ts] != [t["image_id"] for _, ts in other for t in ts]


def test_what_a_batch_is(dataset: CocoDataset) -> None:
    state = torch.get_rng_state()
    images, targets = next(training_loader(dataset, quick_recipe(workers=1), batch_size=3, seed=0))
    assert torch.equal(state, torch.get_rng_state())  # the training's own random numbers are left alone
    assert len(images) == len(targets) == 3
    for image, target in zip(images, targets, strict=True):
        assert type(image) is torch.Tensor
        assert image.dtype == torch.uint8
        assert target.keys() == {"boxes", "labels", "image_id", "area", "iscrowd", "masks"}
        for key in ("boxes", "labels", "masks"):
            assert type(target[key]) is torch.Tensor
        assert target["masks"].shape == (1, *image.shape[1:])


def test_processes_share_the_batches(dataset: CocoDataset) -> None:
    def ids(**options: int) -> Iterator[list[int]]:
        for _, targets in training_loader(dataset, quick_recipe(), batch_size=1, seed=0, **options):
            yield [target["image_id"] for target in targets]

    whole = list(islice(ids(), 8))
    assert [*islice(ids(rank=0, world_size=2), 4)] == whole[::2]
    assert [*islice(ids(rank=1, world_size=2), 4)] == whole[1::2]


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_are_one_line(write: Write, workers: int) -> None:
    source = write()
    for path in Path(source.images).iterdir():
        path.write_bytes(b"nothing")
    evaluation = CocoDataset([source], masks=False, training=False)
    with pytest.raises(InputError, match=r"1\.png") as caught:
        list(evaluation_loader(evaluation, workers=workers))
    assert "\n" not in str(caught.value)


class Broken(MinimalDataset):
    def __getitem__(self, index: int) -> Any:
        raise KeyError("a defect, not wrong input")


@pytest.mark.parametrize("workers", [0, 1])
def test_any_dataset(workers: int) -> None:
    images, targets = next(training_loader(MinimalDataset(), quick_recipe(workers=workers), batch_size=3, seed=0))
    assert len(images) == 3
    assert sorted(target["image_id"] for target in targets) == [10, 11, 12]
    with pytest.raises(KeyError, match="a defect"):
        next(training_loader(Broken(), quick_recipe(workers=workers), batch_size=1, seed=0))


def test_an_empty_dataset() -> None:
    class Empty(MinimalDataset):
        def __len__(self) -> int:
            return 0

    with pytest.raises(InputError, match="no images"):
        training_loader(Empty(), quick_recipe(), batch_size=1, seed=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation(dataset: CocoDataset, workers: int) -> None:
    loader = evaluation_loader(dataset, batch_size=2, workers=workers)
    assert len(loader) == 3
    for _ in range(2):
        assert [[target["image_id"] for target in targets] for _, targets in loader] == [[1, 2], [3, 4], [5]]
    shares = [evaluation_loader(dataset, rank=rank, world_size=7) for rank in range(7)]
    assert [len(share) for share in shares] == [1, 1, 1, 1, 1, 0, 0]
    assert [targets[0]["image_id"] for share in shares for _, targets in share] == [1, 2, 3, 4, 5]
