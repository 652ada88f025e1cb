"""How many bytes the aggregation moves to and from DRAM: the addresses that its kernel touches, through a modelled L2.

The model (``emulation/traffic.cpp``) is of the smallest GPU supported, a T4: 4 MB of L2 and 40 multiprocessors, each of
which holds two of the kernel's blocks (its registers allow no third)."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import emulated
import pytest
from emulated import EMULATION, FLOAT16, KERNELS

pytestmark = pytest.mark.skipif(emulated.COMPILER is None, reason="the model is compiled with g++")

CACHE_BYTES = 4 * 2**20
RESIDENT = 40 * 2
HALF = 2  # bytes


@dataclass(frozen=True)
class Case:
    """An aggregation of VoVNet-39 on one image of 800×1344."""

    height: int
    width: int
    widths: tuple[int, ...]
    out_channels: int

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def minimum(self) -> int:
        """Bytes, with each input and weight read once and each output written once."""
        channels = sum(self.widths)
        return HALF * (self.pixels * channels + channels * self.out_channels + self.pixels * self.out_channels)


STAGES = {
    "stage 2": Case(200, 336, (128, *[128] * 5), 256),
    "stage 3": Case(100, 168, (256, *[160] * 5), 512),
    "stage 4, first": Case(50, 84, (512, *[192] * 5), 768),
    "stage 4": Case(50, 84, (768, *[192] * 5), 768),
    "stage 5, first": Case(25, 42, (768, *[224] * 5), 1024),
    "stage 5": Case(25, 42, (1024, *[224] * 5), 1024),
}


# What `make test` has time for.
SHORT = {"stage 2, 40 of 200 rows": Case(40, 336, (128, *[128] * 5), 256), "stage 5": STAGES["stage 5"]}


@functools.cache
def model() -> ctypes.CDLL:
    sources = [EMULATION / "traffic.cpp", EMULATION / "concatenate.cpp", EMULATION / "bindings.cpp"]
    sources += [KERNELS / name for name in emulated.KERNEL_SOURCES]
    return emulated.build(sources, "EMULATED_CAPABILITY=75", "EMULATED_TRACE")


def place(sizes: Sequence[int]) -> list[int]:
    """Addresses for allocations of these bytes. Nothing lies there: the model only counts."""
    places = [(i + 1) << 36 for i in range(len(sizes))]
    for address, size in zip(places, sizes, strict=True):
        model().emulation_allocate(ctypes.c_void_p(address), ctypes.c_int64(size), 1)
    return places


def moved(
    case: Case,
    *,
    resident: int = RESIDENT,
    cache_bytes: int = CACHE_BYTES,
    evict_first: bool = True,
    concatenated: bool = False,
) -> int:
    """Bytes that DRAM reads and writes.

    Args:
        case: The aggregation.
        resident: Blocks on the GPU at once; 1: one after the other.
        cache_bytes: Of the L2 cache.
        evict_first: Whether the cache heeds that outputs are stored as evict-first; else it is plain LRU.
        concatenated: The inputs are concatenated first, and the product has one input.
    """
    library = model()
    library.emulation_reset(ctypes.c_uint64(0))
    library.traffic_configure(ctypes.c_int64(cache_bytes), resident, evict_first)
    columns = sum(case.widths)
    x_bytes = [HALF * case.pixels * width for width in case.widths]
    whole, weight, out, *x = place(
        [sum(x_bytes), HALF * columns * case.out_channels, HALF * case.pixels * case.out_channels, *x_bytes]
    )
    widths = list(case.widths)
    if concatenated:
        library.emulated_concatenate(
            (ctypes.c_void_p * len(x))(*x), (ctypes.c_int * len(x))(*widths), len(x), ctypes.c_void_p(whole),
            ctypes.c_int64(case.pixels),
        )  # fmt: skip
        x, widths = [whole], [columns]
    status = library.emulated_forward(
        (ctypes.c_void_p * len(x))(*x), (ctypes.c_int * len(x))(*widths), len(x), ctypes.c_void_p(weight), None, None,
        ctypes.c_void_p(out), None, ctypes.c_int64(case.pixels), case.out_channels, 1, FLOAT16,
    )  # fmt: skip
    assert status == 0
    read, written = ctypes.c_int64(), ctypes.c_int64()
    library.traffic_finish(ctypes.byref(read), ctypes.byref(written))
    return read.value + written.value


def test_the_model_counts_what_arithmetic_says() -> None:
    case = Case(1, 512, (256, 256), 256)  # 4 rows of tiles, 2 columns of tiles
    x, weight, out = HALF * 512 * 512, HALF * 512 * 256, HALF * 512 * 256
    assert moved(case, resident=1) == x + weight + out  # all of it fits
    # A tile reads 128 KB of the inputs and 128 KB of the weight: nothing is left for the next.
    assert moved(case, resident=1, cache_bytes=64 * 1024) == 2 * x + 4 * weight + out
    assert moved(case, concatenated=True) == 2 * x + weight + out  # written, and still cached when it is read
    # What runs together shares what it reads, and the next rows find the weight.
    assert moved(Case(1, 2048, (512,), 256), resident=16, cache_bytes=600 * 1024) == HALF * (2048 * 768 + 512 * 256)
    # Nothing stays: read, written and read again for each column of tiles.
    assert moved(case, resident=1, cache_bytes=64 * 1024, concatenated=True) == 4 * x + 4 * weight + out


def check(cases: dict[str, Case], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print("\nDRAM bytes of the minimum:        fused  plain LRU  one block at a time  concatenate + GEMM")
        for name, case in cases.items():
            fused = moved(case) / case.minimum
            plain = moved(case, evict_first=False) / case.minimum
            sequential = moved(case, resident=1) / case.minimum
            concatenated = moved(case, concatenated=True) / case.minimum
            print(f"{name:32} {fused:6.3f} {plain:10.3f} {sequential:20.3f} {concatenated:19.3f}")
            assert 1 <= fused <= 1.15
            assert plain <= 1.3
            assert concatenated > 1.6


def test_traffic_of_short_cases(capsys: pytest.CaptureFixture[str]) -> None:
    check(SHORT, capsys)


@pytest.mark.slow
def test_traffic_of_vovnet39(capsys: pytest.CaptureFixture[str]) -> None:
    check(STAGES, capsys)
    assert moved(STAGES["stage 2"], concatenated=True) / STAGES["stage 2"].minimum > 2.4
