"""The device of a section's process, and the sizes of its cases: full on a GPU, small on the CPU."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from benchmarks.batches import wait
from benchmarks.common import timed
from benchmarks.gpu.records import read

if TYPE_CHECKING:
    from benchmarks.operators import Gpu

T = TypeVar("T")


@dataclass(frozen=True)
class Ceilings:
    """The measured limits of the device.

    Attributes:
        values: ``copy`` → bytes per second, read and written; fp16, bf16, tf32, fp32 → operations per second of a
            matrix product. What was not measured is absent.
    """

    values: dict[str, float]

    def floor(self, kind: str, *, moved: int = 0, operations: int = 0) -> float | None:
        """Return the least seconds for these bytes and operations, or None if a ceiling is not known."""
        times = []
        for name, amount in (("copy", moved), (kind, operations)):
            if amount and name not in self.values:
                return None
            if amount:
                times.append(amount / self.values[name])
        return max(times, default=None)


class Setting:
    """Where and at what size a section measures.

    Args:
        cpu: a small case on the CPU instead of the GPU.
        folder: has the records of the sections before.
    """

    def __init__(self, cpu: bool, folder: Path) -> None:
        self.cpu = cpu
        self._folder = folder

    @cached_property
    def gpu(self) -> Gpu:
        """The device and its clock. On the CPU the clock is that of the wall."""
        from benchmarks.operators import Gpu, find_gpu  # imports the networks, which not every section needs

        return Gpu(torch.device("cpu"), 0, timed) if self.cpu else find_gpu()

    @property
    def device(self) -> torch.device:
        """The device that computes."""
        return torch.device("cpu") if self.cpu else torch.device("cuda", torch.cuda.current_device())

    def size(self, full: T, small: T) -> T:
        """Return ``full`` on a GPU and ``small`` on the CPU."""
        return small if self.cpu else full

    @cached_property
    def kinds(self) -> list[str]:
        """The numbers that the device computes with, the most important first."""
        if self.cpu:
            return ["fp32"]
        from benchmarks.operators import usable_kinds

        wanted = ["fp16", "bf16", "tf32", "fp32"]
        return usable_kinds(wanted, torch.cuda.get_device_capability(), tf32_allowed=True)

    def products(self, precision: str) -> str:
        """Return the numbers that PyTorch's products have by default: TF32 for ``fp32`` where the GPU can.

        Matrix products alone, as in a detector's heads, stay in float32; they are few.
        """
        return "tf32" if precision == "fp32" and "tf32" in self.kinds else precision

    @cached_property
    def ceilings(self) -> Ceilings:
        """The limits that the section ``ceilings`` has measured."""
        records = read(self._folder / "ceilings.jsonl").values()
        return Ceilings({name: value for record in records for name, value in record.values.items()})

    def usable(self) -> bool:
        """False if the device refuses all work of this process, as a GPU does after a kernel's error."""
        try:
            torch.zeros(8, device=self.device).add_(1)
            wait(self.device)
        except RuntimeError:
            return False
        return True

    def free_memory(self) -> None:
        """Free what earlier steps have left, so that it does not count in the next one."""
        gc.collect()
        if not self.cpu:
            torch.cuda.empty_cache()


def micro(seconds: float) -> str:
    """Return microseconds as text."""
    return f"{1e6 * seconds:.1f}"


def milli(seconds: float | None) -> str:
    """Return milliseconds as text."""
    return "–" if seconds is None else f"{1e3 * seconds:.2f}"


def over(seconds: float, floor: float | None) -> str:
    """Return how many times as long as the floor it took, as text."""
    return "–" if not floor else f"{seconds / floor:.2f}"
