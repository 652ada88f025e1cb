"""The few collective operations that training and evaluation need; all of them do nothing in a single process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from vovnet.errors import InputError, reason


def rank() -> int:
    """This process's number among all processes; 0 without torchrun."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes; 1 without torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def default_device() -> torch.device:
    """The GPU of this process (torchrun's LOCAL_RANK) where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def choose_device(device: str | torch.device | None, default: torch.device) -> torch.device:
    """The device that a user named, or ``default`` where none was.

    Raises:
        InputError: the name is no device's, or this machine has not got it.
    """
    try:
        chosen = default if device is None else torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise InputError(
            f"device '{device or default}': expected cpu, or cuda:N of a GPU that is here ({reason(error)[:120]})"
        ) from error
    return chosen


def computes_with_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; without them it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # absent before torch 2.10
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join torchrun's group for the length of a block: NCCL on a GPU, gloo on the CPU.

    Does nothing where there is no torchrun (its environment variables are absent) or a group exists already.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def mean_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The mean over processes of a tensor that has the same shape in each."""
    if world_size() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / world_size()


def share_buffers(module: nn.Module) -> None:
    """Give every process the buffers (such as a batch norm's statistics) of the process of rank 0."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def gather(value: Any) -> list[Any]:
    """What every process passed, in rank order, in every process."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(value: Any) -> Any:
    """What the process of rank 0 passed, in every process."""
    if world_size() == 1:
        return value
    holder = [value]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]
