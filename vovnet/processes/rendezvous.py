"""Where the processes of a run find each other, also after torchrun has started them again."""

from __future__ import annotations

import secrets
import time
from datetime import timedelta

import torch.distributed as dist

_PAUSE_SECONDS = 0.02


def joined_store(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """Return a store that is empty in every start of a run, the rank and the number of processes; all have joined it.

    After a restart torchrun gives the processes the store of the start before, in which the addresses of dead processes
    stand (https://github.com/pytorch/pytorch/issues/135712). A process that reads one before it is overwritten waits
    for that process until the time limit. torchrun's own count of restarts differs between machines.

    Args:
        timeout: how long to wait for the other processes.

    Raises:
        DistStoreError: the other processes did not appear in time.
    """
    from torch.distributed.rendezvous import rendezvous  # absent where PyTorch is built without torch.distributed

    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    start = _agree_on_start(store, rank, world_size, timeout)
    return dist.PrefixStore(f"start/{start}", store), rank, world_size


def _agree_on_start(store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> int:
    """Return a number that rank 0 has chosen for this start, and that no earlier start has.

    Only messages with a number that its sender has just drawn count, because others may be of dead processes.
    """
    if rank != 0:
        drawn = secrets.token_hex(16)
        store.set(f"hello/{rank}", drawn)
        start = int(store.get(f"answer/{drawn}"))
        store.set(f"joined/{start}/{rank}", "")
        return start
    start = store.add("starts", 1)
    missing = set(range(1, world_size))
    until = time.monotonic() + timeout.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"joined/{start}/{other}"]):
                missing.discard(other)
            elif store.check([f"hello/{other}"]):
                store.set(f"answer/{store.get(f'hello/{other}').decode()}", str(start))
        if time.monotonic() > until:
            raise dist.DistStoreError(f"timed out: rank {min(missing)} did not appear within {timeout}")
        time.sleep(_PAUSE_SECONDS)
    return start
