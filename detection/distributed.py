"""The collective operations of training and evaluation. In a single process they do nothing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn

from vovnet.errors import InputError, StoppedError, causes, reason
from vovnet.processes.rendezvous import joined_store

T = TypeVar("T")

START_TIMEOUT = 600.0
"""Seconds in which all processes must have joined. They may start at different times, and import slowly."""

_timeout = START_TIMEOUT
"""Seconds that processes wait for one another; :func:`process_group` sets it."""
_patient = False
"""True in a block of :func:`patience`."""


class ProcessLostError(StoppedError, RuntimeError):
    """Another process of this run ended, or did not answer in time."""


def rank() -> int:
    """Return the rank of this process; 0 without torchrun."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes; 1 without torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def process_group(device: torch.device, timeout: float) -> Iterator[None]:
    """Initialise torch.distributed for the length of a ``with`` block: NCCL on a GPU, gloo on the CPU.

    Without torchrun (that is, without its environment variables), or if a group already exists, this initialises
    nothing.

    Args:
        device: The device of this process.
        timeout: Seconds that a process waits for the others in a collective operation; 0 waits forever. Work that takes
            some processes longer than others belongs in :func:`patience`.

    Raises:
        ProcessLostError: A collective operation in the block failed because of another process.
    """
    global _timeout
    former, _timeout = _timeout, timeout
    try:
        with lost_processes():
            if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() or dist.is_initialized():
                yield
                return
            if device.type == "cuda":
                torch.cuda.set_device(device)
            backend = "nccl" if device.type == "cuda" else "gloo"
            start = _limit(max(timeout, START_TIMEOUT) if timeout else 0)
            # All processes are there afterwards, and so the group can have the shorter limit from its first second on.
            store, rank, size = joined_store(start)
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_limit(timeout))
            try:
                yield
            finally:
                dist.destroy_process_group()
    finally:
        _timeout = former


def _limit(timeout: float) -> timedelta:
    return timedelta(seconds=timeout) if timeout else timedelta(days=3650)


@contextmanager
def lost_processes() -> Iterator[None]:
    """Raise a :class:`ProcessLostError` for a collective operation that fails in a ``with`` block."""
    try:
        yield
    except (StoppedError, InputError):
        raise
    except Exception as error:
        failure = next((cause for cause in causes(error) if _is_of_a_collective(cause)), None)
        if failure is None:
            raise
        text = str(failure).lower()
        if "timed out" in text or "timeout" in text:
            message = (
                f"another process of this run has not answered for {_timeout:g} s (data.timeout); raise the limit if "
                "that process is only slow, otherwise see what it says"
            )
        elif "closed by peer" in text or "reset by peer" in text:
            message = (
                "another process of this run has ended; see what it says; if it says nothing, the system may have "
                "killed it because memory ran out"
            )
        else:
            message = f"the processes of this run cannot communicate ({reason(failure)[:200]})"
        raise ProcessLostError(message) from error


def _is_of_a_collective(error: BaseException) -> bool:
    # gloo raises plain RuntimeErrors, which name its source files.
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


@contextmanager
def opened_by_main(open_all: Callable[[ExitStack], object]) -> Iterator[None]:
    """Open something in the process of rank 0 for the length of a ``with`` block, which all processes must enter.

    Args:
        open_all: Called in that process alone, with the stack whose callbacks close what it opens.

    Raises:
        InputError: In every process, if ``open_all`` raises one.
        ProcessLostError: Another process died, or showed no sign of life.
    """
    problem = None
    with ExitStack() as stack:
        with patience():
            if rank() == 0:
                try:
                    open_all(stack)
                except InputError as error:
                    problem = str(error)
        problem = from_main(problem)
        if problem is not None:
            raise InputError(problem)
        yield


@contextmanager
def patience() -> Iterator[None]:
    """Let some processes take longer than others in a ``with`` block, at whose end all wait for the slowest.

    A thread of each process shows the others that the process still runs, so that this wait has no limit. But if a
    process is stopped or dies, the others notice it within the group's timeout.

    All processes must enter the block. It may contain other collective operations, and these have the group's timeout.
    A block within another does nothing.

    Raises:
        ProcessLostError: At the end of the block: another process died, or showed no sign of life.
    """
    global _patient
    if world_size() == 1 or _patient:
        yield
        return
    states = [_AT_WORK]
    errors: list[Exception] = []
    thread = threading.Thread(target=_show_life, args=(_life_group(), states, errors), daemon=True)
    thread.start()
    _patient = True
    try:
        yield
    except BaseException:
        states.append(_FAILED)
        thread.join(1)  # The others learn of it now, or when this process ends.
        raise
    finally:
        _patient = False
    states.append(_DONE)
    thread.join()
    with lost_processes():
        for error in errors:
            raise error


_AT_WORK, _DONE, _FAILED = 0, 1, -1_000_000


def _show_life(group: Any, states: list[int], errors: list[Exception]) -> None:
    """Add up the last states of all processes again and again, until all are done or one has failed."""
    pause, longest = 0.001, 0.25
    try:
        while True:
            state = states[-1]
            total = torch.tensor([state])
            dist.all_reduce(total, group=group)
            if int(total) < 0 and state != _FAILED:
                raise ProcessLostError("another process of this run has failed; see what it says")
            if int(total) < 0 or int(total) == dist.get_world_size(group):
                return
            time.sleep(pause)
            pause = min(longest, 2 * pause)
    except Exception as error:  # The main thread raises it.
        errors.append(error)


_life: tuple[Any, Any] | None = None


def _life_group() -> Any:
    """Return the gloo group for signs of life, which is made at its first use in each process group."""
    global _life
    if _life is None or _life[0] is not dist.group.WORLD:
        _life = (dist.group.WORLD, dist.new_group(backend="gloo", timeout=_limit(_timeout)))
    return _life[1]


def mean_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Return the mean over processes of a tensor, which must have the same shape in each."""
    if world_size() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / world_size()


def share_buffers(module: nn.Module) -> None:
    """Copy the buffers of rank 0, such as the statistics of batch norms, to every process."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def gather(value: T) -> list[T]:
    """Return the values of all processes in rank order, in every process."""
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return cast(list[T], values)


def from_main(value: T) -> T:
    """Return the value of rank 0 in every process."""
    if world_size() == 1:
        return value
    holder = [value]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]
