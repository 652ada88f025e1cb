"""The reference's order of batches, against its own numbers and torch's samplers."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.utils.data import DistributedSampler

from vovnet.detection.data.sampler import sample_seed
from vovnet.detection.legacy.sampler import LegacyBatchStream, grouped_batches
from vovnet.errors import InputError

GROUPS = [0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0]


def indices(count: int, **options: int) -> list[list[int]]:
    batches = islice(LegacyBatchStream(GROUPS, 2, **options), count)
    return [[index for index, _ in batch] for batch in batches]


def test_groups_as_the_reference_does(shared: Path) -> None:
    golden = json.loads((shared / "reference" / "golden" / "units.json").read_text())["grouped"]
    assert [int(aspect >= 1) for aspect in golden["aspect_h_over_w"]] == golden["group_ids"]
    batches = grouped_batches(golden["order"], golden["group_ids"], 2)
    assert batches == golden["batches"]
    assert (batches * 3)[:13] == golden["iteration_based_13"]


def reference_rank(world_size: int, rank: int, count: int, seed: int = 0) -> list[list[int]]:
    """One process's batches: torch's DistributedSampler, which is the reference's, told the pass's first iteration."""
    sampler = DistributedSampler(GROUPS, world_size, rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
    found: list[list[int]] = []
    while len(found) < count:
        sampler.set_epoch(len(found))
        # torch interleaves the ranks, the reference gives each a contiguous share
        whole = [0] * sampler.total_size
        for other in range(world_size):
            sampler.rank = other
            whole[other::world_size] = list(sampler)
        share = whole[rank * sampler.num_samples : (rank + 1) * sampler.num_samples]
        found += grouped_batches(share, GROUPS, 2)
    return found[:count]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_passes_are_seeded_by_the_iteration_that_they_start_at(world_size: int) -> None:
    for rank in range(world_size):
        assert indices(40, world_size=world_size, rank=rank) == reference_rank(world_size, rank, 40)
    assert indices(20, seed=5) == reference_rank(1, 0, 20, seed=5)
    first = torch.randperm(len(GROUPS), generator=torch.Generator().manual_seed(0)).tolist()
    assert indices(1)[0][0] == first[0]


def test_a_pass_has_every_image() -> None:
    batches = grouped_batches(range(len(GROUPS)), GROUPS, 2)
    seen = Counter(index for batch in indices(len(batches)) for index in batch)
    assert seen == Counter(range(len(GROUPS)))


@pytest.mark.parametrize("passes", [1, 2])
def test_goes_on_where_it_was(passes: int) -> None:
    whole = list(islice(LegacyBatchStream(GROUPS, 2, world_size=2, rank=1, passes=passes), 60))
    for start in (1, 7, 31):
        later = LegacyBatchStream(GROUPS, 2, world_size=2, rank=1, passes=passes, start=start)
        assert list(islice(later, 60 - start)) == whole[start:]


@pytest.mark.parametrize("passes", [1, 2])
def test_ends_where_nobody_takes_more(passes: int) -> None:
    whole = list(islice(LegacyBatchStream(GROUPS, 2, world_size=2, rank=1, passes=passes), 12))
    assert list(LegacyBatchStream(GROUPS, 2, world_size=2, rank=1, passes=passes, stop=12)) == whole
    assert list(LegacyBatchStream(GROUPS, 2, world_size=2, rank=1, passes=passes, start=5, stop=12)) == whole[5:]
    assert not list(LegacyBatchStream(GROUPS, 2, start=13, stop=12))


def test_one_process_plays_several() -> None:
    apart = [indices(25, world_size=4, rank=rank) for rank in range(4)]
    together = indices(100, passes=4)
    assert together == [batches[number] for number in range(25) for batches in apart]
    second = indices(50, world_size=2, rank=1, passes=2)
    assert second == [batches[number] for number in range(25) for batches in apart[2:]]


def test_seeds_of_images_are_new_in_each_pass() -> None:
    draws = [draw for batch in islice(LegacyBatchStream(GROUPS, 2, seed=3), 60) for draw in batch]
    assert len(set(draws)) == len(draws)
    assert draws[0][1] == sample_seed(3, 0, draws[0][0])


def test_more_processes_than_images() -> None:
    found = [next(iter(LegacyBatchStream([0, 0, 0], 2, world_size=8, rank=rank)))[0][0] for rank in range(8)]
    order = torch.randperm(3, generator=torch.Generator().manual_seed(0)).tolist()
    assert found == [order[rank % 3] for rank in range(8)]


@pytest.mark.parametrize(
    ("groups", "options", "words"),
    [
        ([], {}, "no images"),
        ([0], {"batch_size": 0}, "batch size"),
        ([0], {"rank": 2, "world_size": 2}, "rank"),
        ([0], {"start": -1}, "start"),
        ([0], {"passes": 0}, "passes"),
    ],
)
def test_wrong_arguments(groups: list[int], options: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        LegacyBatchStream(groups, **{"batch_size": 2, **options})
