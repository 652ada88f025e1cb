"""Processes that torchrun starts again find each other, and not those of the start before."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from vovnet.processes.rendezvous import _agree_on_start

TIMEOUT = timedelta(seconds=60)


def starts(store: dist.Store, world_size: int, order: list[int]) -> list[int]:
    """The number of the start that each rank gets, if they arrive in this order."""
    numbers: dict[int, int] = {}

    def join(rank: int) -> None:
        numbers[rank] = _agree_on_start(store, rank, world_size, TIMEOUT)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in order]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [numbers[rank] for rank in range(world_size)]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_every_start_has_a_number_of_its_own(order: list[int]) -> None:
    store = dist.HashStore()
    assert [starts(store, 3, order) for _ in range(3)] == [[1, 1, 1], [2, 2, 2], [3, 3, 3]]


def test_messages_of_dead_processes_do_not_count() -> None:
    store = dist.HashStore()
    store.set("hello/1", "of a process that died before it was answered")
    store.set("hello/2", "another")
    store.add("starts", 1)  # by a rank 0 that died, too
    store.set("joined/1/1", "")
    assert starts(store, 3, [0, 1, 2]) == [2, 2, 2]


def test_one_process_needs_nobody() -> None:
    assert _agree_on_start(dist.HashStore(), 0, 1, TIMEOUT) == 1


def test_waiting_has_an_end() -> None:
    store = dist.HashStore()
    store.set("hello/1", "of a dead process")
    with pytest.raises(dist.DistStoreError, match="rank 1"):
        _agree_on_start(store, 0, 2, timedelta(seconds=0))
