"""The stream of batches: complete passes, one group a batch, the same for every split over processes and resumption."""

from collections import Counter
from itertools import islice
from math import floor, sqrt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vovnet.detection.data.sampler import BatchStream, aspect_groups, repeat_factors, sample_seed
from vovnet.errors import InputError

GROUPS = [0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0]


def take(count: int, **options: int) -> list[list[tuple[int, int]]]:
    return list(islice(BatchStream(GROUPS, 2, **{"seed": 3, **options}), count))


def test_no_image_is_dropped_or_repeated_in_a_pass() -> None:
    passes = 40
    seen = Counter(draw for batch in take(len(GROUPS) * passes // 2) for draw in batch)
    assert max(seen.values()) == 1  # never the same image twice in a pass
    draws = {(index, sample_seed(3, epoch, index)) for epoch in range(passes) for index in range(len(GROUPS))}
    assert len(draws - set(seen)) <= 2 * 2  # of what is due, each group holds back less than a batch
    # A single group and batches that divide it: passes end where they should.
    stream = islice(BatchStream([0] * 12, 4, seed=0), 9)
    indices = [index for batch in stream for index, _ in batch]
    assert [sorted(indices[start : start + 12]) for start in (0, 12, 24)] == [list(range(12))] * 3
    assert indices[:12] != indices[12:24]


def test_batches_are_of_one_group() -> None:
    for batch in take(200):
        assert len(batch) == 2
        assert len({GROUPS[index] for index, _ in batch}) == 1


def test_a_function_of_the_seed() -> None:
    assert take(20) == take(20)
    assert take(20) != take(20, seed=4)


@pytest.mark.parametrize("start", [0, 1, 7, 40])
def test_resumes_exactly(start: int) -> None:
    assert take(start + 10)[start:] == take(10, start=start)
    assert take(start + 10, rank=1, world_size=3)[start:] == take(10, rank=1, world_size=3, start=start)


@pytest.mark.parametrize("split", [{}, {"rank": 1, "world_size": 3}], ids=str)
def test_ends_where_nobody_takes_more(split: dict[str, int]) -> None:
    whole = take(9, **split)
    assert take(50, stop=9, **split) == whole
    assert take(50, start=4, stop=9, **split) == whole[4:]
    assert take(50, start=9, stop=9, **split) == take(50, start=12, stop=9, **split) == []


def test_processes_share_the_stream() -> None:
    whole = take(12)
    parts = [take(4, rank=rank, world_size=3) for rank in range(3)]
    assert [parts[number % 3][number // 3] for number in range(12)] == whole


def test_more_images_in_a_batch_than_there_are() -> None:
    (batch,) = islice(BatchStream([0, 0, 0], 7, seed=0), 1)
    assert Counter(index for index, _ in batch).keys() == {0, 1, 2}
    assert len(set(batch)) == 7  # each with a seed of its own


def test_seeds() -> None:
    seeds = {sample_seed(*numbers) for numbers in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, 11), (0, 11, 1)]}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"groups": []}, "no images"),
        ({"batch_size": 0}, "batch size"),
        ({"rank": 2, "world_size": 2}, "rank"),
        ({"start": -1}, "start"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        BatchStream(**{"groups": GROUPS, "batch_size": 2, "seed": 0, **arguments})


def test_aspect_groups() -> None:
    class Sized:
        sizes = ((10, 20), (20, 10), (10, 10))

        def __len__(self) -> int:
            return 3

        def image_size(self, index: int) -> tuple[int, int]:
            return self.sizes[index]

    assert aspect_groups(Sized()) == [0, 1, 1]
    assert aspect_groups([None] * 4) == [0, 0, 0, 0]


class Labelled:
    """A dataset that knows the labels of its images and nothing else."""

    categories = ({"id": 1, "name": "a"},)

    def __init__(self, labels: list[list[int]]) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def image_labels(self, index: int) -> list[int]:
        return self.labels[index]

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError


def test_repeat_factors_by_hand() -> None:
    """Of 100 images, label 1 is on all that have objects, 2 on 4, 3 on 1; the threshold is a tenth."""
    labels = [[1, 1, 2], [1, 2], [2, 1], [1, 2, 3], *[[1]] * 95, []]
    factors = repeat_factors(Labelled(labels), 0.1)
    assert factors[:3] == pytest.approx([sqrt(0.1 / 0.04)] * 3)
    assert factors[3] == pytest.approx(sqrt(0.1 / 0.01))
    assert factors[4:] == [1.0] * 96


@given(st.lists(st.lists(st.integers(1, 4), max_size=5), min_size=1, max_size=12), st.floats(0.01, 1))
def test_repeat_factors_are_those_of_the_paper(labels: list[list[int]], threshold: float) -> None:
    """Step 1 to 3 of LVIS's formula, one category and one image at a time."""
    expected = []
    for of_image in labels:
        largest = 1.0
        for category in of_image:
            fraction = sum(category in other for other in labels) / len(labels)
            largest = max(largest, max(1.0, (threshold / fraction) ** 0.5))
        expected.append(largest)
    assert repeat_factors(Labelled(labels), threshold) == pytest.approx(expected)


def test_images_come_as_often_as_their_factors_say() -> None:
    factors = [1.0, 3.0, 1.25, 2.5]
    epochs = 400
    stream = BatchStream([0] * 4, 1, seed=1, repeats=factors)
    draws = [batch[0] for batch in islice(stream, floor(sum(factors) * epochs))]
    counts = Counter(index for index, _ in draws)
    assert [counts[index] / epochs for index in range(4)] == pytest.approx(factors, rel=0.03)
    assert len(set(draws)) == len(draws)  # each repetition has a seed, and so transforms, of its own


def test_repeated_images_resume_exactly() -> None:
    options = {"seed": 3, "repeats": [1.0, 2.7, 1.5, 1.0, 3.2]}
    whole = list(islice(BatchStream([0, 1, 0, 0, 1], 2, **options), 40))
    assert list(islice(BatchStream([0, 1, 0, 0, 1], 2, start=25, **options), 15)) == whole[25:]
    part = islice(BatchStream([0, 1, 0, 0, 1], 2, rank=1, world_size=2, start=5, **options), 10)
    assert list(part) == whole[11:31:2]


def test_factors_of_one_change_the_order_alone() -> None:
    stream = islice(BatchStream([0] * 6, 3, seed=0, repeats=[1.0] * 6), 4)
    indices = [index for batch in stream for index, _ in batch]
    assert sorted(indices[:6]) == sorted(indices[6:]) == list(range(6))


def test_repeats_need_labels() -> None:
    with pytest.raises(InputError, match=r"data\.repeat_threshold.*image_labels"):
        repeat_factors([], 0.5)  # type: ignore[arg-type]
