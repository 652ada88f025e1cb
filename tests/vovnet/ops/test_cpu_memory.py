"""The memory pool of the CPU kernels, tested by a program of its own: ``cpu/memory_test.cpp``."""

from __future__ import annotations

import cpu_programs
import pytest


def test_the_pool_of_large_blocks(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The program tests alignment, reuse, the limit of idle memory, exhaustion, threads and fork()."""
    cpu_programs.check(cpu_programs.build(tmp_path_factory, "shipped") / "memory_test")
