"""The emulation itself: correct kernels pass, and every fault put into small or real kernels is detected."""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
from pathlib import Path

import emulated
import pytest
import torch
from emulated import EMULATION, FLOAT16, KERNELS, EmulationError, Emulator

pytestmark = pytest.mark.skipif(emulated.COMPILER is None, reason="the emulation is compiled with g++")

# The numbers of examples.cpp, and what the machine says; None: the result is wrong.
FAULTS: dict[str, tuple[int, str | None]] = {
    "no barrier": (1, "race"),
    "no warp barrier": (2, "race"),
    "overwritten while others read": (3, "race"),
    "read beyond the end": (4, "reads 4 bytes of global memory out of bounds"),
    "write beyond the end": (5, "writes 4 bytes of global memory out of bounds"),
    "beyond shared memory": (6, "shared memory out of bounds"),
    "misaligned": (7, "misaligned"),
    "writes to an input": (8, "writes to an input"),
    "last output not written": (9, None),
    "shared memory read before it was written": (10, None),
    "some threads skip a barrier": (11, "stuck"),
    "some lanes skip a warp's barrier": (12, "stuck|race"),
    "no wait": (13, "race"),
    "waits for too few": (14, "race"),
    "never waits": (15, "never waited for"),
}


@functools.cache
def examples() -> ctypes.CDLL:
    library = emulated.build([EMULATION / "machine.cpp", EMULATION / "examples.cpp"], "EMULATED_CAPABILITY=80")
    library.run_example.restype = ctypes.c_char_p
    return library


def run_example(fault: int, seed: int) -> tuple[str, bool]:
    """Return the machine's message, and whether the result is correct."""
    library = examples()
    values, out = torch.arange(64.0), torch.full((64,), torch.nan)
    library.emulation_reset(seed)
    library.emulation_allocate(emulated.pointer(values), ctypes.c_int64(256), 0)
    library.emulation_allocate(emulated.pointer(out), ctypes.c_int64(256), 1)
    message = library.run_example(fault, emulated.pointer(values), emulated.pointer(out)).decode()
    return message, torch.equal(out, values.flip(0) + values[torch.arange(64) ^ 1])


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("kernel", [0, -1], ids=["barriers", "copies"])
def test_passes_what_is_right(kernel: int, seed: int) -> None:
    assert run_example(kernel, seed) == ("", True)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("fault", "words"), FAULTS.values(), ids=FAULTS)
def test_catches_faults_of_a_small_kernel_in_every_order(fault: int, words: str | None, seed: int) -> None:
    message, right = run_example(fault, seed)
    if words is None:
        assert message == ""
        assert not right
    else:
        assert re.search(words, message)
    assert run_example(0, seed) == ("", True)  # and what follows is not disturbed


# Capability, file, what stands there, what is put in its place. Each occurs once.
MUTATIONS: dict[str, tuple[int, str, str, str]] = {
    "barrier removed": (80, "aggregate.cuh", "block_barrier();  // this step's tile is there", "//"),
    "barrier before the epilogue removed": (80, "aggregate.cuh", "block_barrier();  // the tiles' memory", "//"),
    "barrier before put removed": (75, "aggregate.cuh", "block_barrier();  // no warp still", "//"),
    "barrier after put removed": (75, "aggregate.cuh", "block_barrier();  // the tile is there", "//"),
    "warp's barrier removed": (80, "aggregate.cuh", "warp_barrier();  // all lanes", "//"),
    "barrier of the sum removed": (80, "sum_partials.cu", "  block_barrier();\n", "\n"),
    "wait removed": (80, "aggregate.cuh", "wait_copies<kStages - 2>();", ""),
    "waits for one group too few": (80, "aggregate.cuh", "wait_copies<kStages - 2>();", "wait_copies<kStages - 1>();"),
    "waits for one group too few, 8.6": (
        86, "aggregate.cuh", "wait_copies<kStages - 2>();", "wait_copies<kStages - 1>();"
    ),
    "one row too many read": (80, "operand.cuh", "first + line < limit;", "first + line <= limit;"),
    "one row too many written": (80, "aggregate.cuh", "row >= problem.rows ||", "row > problem.rows ||"),
    "last row not written": (80, "aggregate.cuh", "row >= problem.rows ||", "row + 1 >= problem.rows ||"),
    "columns not masked": (80, "operand.cuh", "valid = column < panels_.columns[k_iterator.panel];", "valid = true;"),
    "line misaligned": (80, "operand.cuh", "kLayout == KLayout::kColumns ? kVector : 8);", "1);"),
}  # fmt: skip


def run_all(machine: Emulator) -> bool:
    """Return True if forward and weight gradient of small integers are correct."""
    generator = torch.Generator().manual_seed(0)
    x = [torch.randint(-2, 3, (601, width), generator=generator).half() for width in (24, 104)]
    weight = torch.randint(-2, 3, (136, 128), generator=generator).half()
    g = torch.randint(-2, 3, (601, 136), generator=generator).half()
    out, _ = machine.forward(x, weight, None, None, relu=False, mask=False, dtype=FLOAT16, seed=1)
    gradient = machine.weight_gradient(g, x, dtype=FLOAT16, seed=1)
    cat = torch.cat(x, 1).double()
    return torch.equal(out, (cat @ weight.double().T).half()) and torch.equal(gradient, (g.double().T @ cat).half())


@pytest.mark.parametrize("capability", [75, 80, 86])
def test_passes_the_kernels_as_they_are(capability: int) -> None:
    assert run_all(Emulator(capability))


@pytest.mark.parametrize(("capability", "file", "original", "mutated"), MUTATIONS.values(), ids=MUTATIONS)
def test_catches_mutations_of_the_kernels(
    tmp_path: Path, capability: int, file: str, original: str, mutated: str
) -> None:
    folder = tmp_path / "cuda"
    shutil.copytree(KERNELS, folder)
    source = (folder / file).read_text()
    assert source.count(original) == 1
    (folder / file).write_text(source.replace(original, mutated))
    machine = Emulator(capability, folder)
    try:
        right = run_all(machine)
    except EmulationError:
        right = False
    assert not right
