"""Devices, and the collective operations of training and evaluation. In a single process the latter do nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn

from vovnet.errors import InputError, reason
from vovnet.processes.rendezvous import torchrun_store

T = TypeVar("T")


def rank() -> int:
    """Return the rank of this process; 0 without torchrun."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes; 1 without torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def default_device() -> torch.device:
    """Return the GPU of this process (torchrun's LOCAL_RANK), or the CPU if there is no NVIDIA GPU.

    A Mac's GPU (``mps``) is never the default, because it computes other numbers and lacks some operators.
    """
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def choose_device(device: str | torch.device | None, default: torch.device) -> torch.device:
    """Return the given device, or ``default`` if it is None.

    Raises:
        InputError: the name is not that of a device, or this machine does not have the device.
    """
    try:
        chosen = default if device is None else torch.device(device)
        if chosen.type == "meta":
            raise RuntimeError("tensors there have no values")
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise InputError(
            f"device '{device or default}': expected cpu, cuda:N of a GPU that is here, or mps on a Mac "
            f"({reason(error)[:120]})"
        ) from error
    return chosen


def computes_with_bf16(device: torch.device) -> bool:
    """Return True if a device has instructions for bfloat16; without them bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # absent before torch 2.10
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Initialise torch.distributed for the length of a ``with`` block: NCCL on a GPU, gloo on the CPU.

    Without torchrun (that is, without its environment variables), or if a group already exists, this does nothing.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = torchrun_store(dist.default_pg_timeout)
    ranks = {} if store is None else {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
    dist.init_process_group(backend, store=store, **ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


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
