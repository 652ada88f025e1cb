"""The device that a process computes on."""

from __future__ import annotations

import os
from typing import Any

import torch

from vovnet.errors import InputError, reason


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
