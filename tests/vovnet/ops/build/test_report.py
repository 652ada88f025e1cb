"""The report: occupancy compared with CUDA's own calculator, names, spills, warnings."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from vovnet.ops.build.compiler import first_errors, parse_costs, parse_warnings
from vovnet.ops.build.report import LIMITS, KernelReport, defects, demangle, occupancy, readable, table
from vovnet.ops.build.toolchain import BuildError

CALCULATOR = """
#include <cstdio>
#include <cuda_occupancy.h>
int main() {
  int major, minor, per_sm, registers, threads; long shared, per_sm_shared, per_block, reserved;
  while (std::scanf("%d %d %d %ld %ld %ld %d %ld %d", &major, &minor, &per_sm, &per_sm_shared, &per_block, &reserved,
                    &registers, &shared, &threads) == 9) {
    cudaOccDeviceProp gpu;
    gpu.computeMajor = major; gpu.computeMinor = minor; gpu.maxThreadsPerBlock = 1024;
    gpu.maxThreadsPerMultiprocessor = per_sm; gpu.regsPerBlock = gpu.regsPerMultiprocessor = 65536; gpu.warpSize = 32;
    gpu.sharedMemPerBlock = 49152; gpu.sharedMemPerMultiprocessor = per_sm_shared; gpu.numSms = 1;
    gpu.sharedMemPerBlockOptin = per_block; gpu.reservedSharedMemPerBlock = reserved;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024; kernel.numRegs = registers; kernel.sharedSizeBytes = 0;
    kernel.partitionedGCConfig = PARTITIONED_GC_OFF; kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = per_block; kernel.numBlockBarriers = 1;
    cudaOccDeviceState state;
    state.cacheConfig = CACHE_PREFER_SHARED; state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult result;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &gpu, &kernel, &state, threads, shared)) std::puts("-1");
    else std::printf("%d\\n", result.activeBlocksPerMultiprocessor);
  }
}
"""


def calculator_folder() -> Path | None:
    """Return the folder of the headers with NVIDIA's calculator; nothing is compiled for a GPU."""
    folders = [*(Path(torch.__file__).parent.parent / "nvidia").glob("*/include"), Path("/usr/local/cuda/include")]
    return next((folder for folder in folders if (folder / "cuda_occupancy.h").is_file()), None)


def test_occupancy_is_what_cudas_calculator_says(tmp_path):
    headers, cxx = calculator_folder(), shutil.which("g++")
    if headers is None or cxx is None:
        pytest.skip("needs g++ and cuda_occupancy.h")
    (tmp_path / "calculator.cpp").write_text(CALCULATOR)
    program = tmp_path / "calculator"
    subprocess.run([cxx, "-isystem", headers, tmp_path / "calculator.cpp", "-o", program], check=True)
    cases, lines = [], []
    registers, shared, threads = (
        (16, 32, 40, 64, 96, 128, 168, 255),
        (0, 1000, 18944, 40960, 75776, 98304),
        (32, 96, 256),
    )
    for arch, count, size, width in itertools.product(LIMITS, registers, shared, threads):
        limit = LIMITS[arch]
        if size > limit.block_shared_bytes:
            continue
        cases.append((arch, count, size, width))
        facts = (limit.threads, limit.shared_bytes, limit.block_shared_bytes, limit.reserved_bytes, count, size, width)
        lines.append(" ".join(map(str, (*arch.split("."), *facts))))
    done = subprocess.run([program], input="\n".join(lines), capture_output=True, text=True, check=True)
    blocks = [int(line) for line in done.stdout.splitlines()]
    assert len(blocks) == len(cases)
    for (arch, count, size, width), expected in zip(cases, blocks, strict=True):
        warps = LIMITS[arch].threads // 32
        got = occupancy(arch, registers=count, shared_bytes=size, threads=width)
        assert got * warps == pytest.approx(expected * (width // 32)), (arch, count, size, width)


def test_occupancy_by_hand():
    # 128 registers: a warp takes 4096 of a partition's 16384, so 16 warps, 2 blocks of 8, of 64 warps.
    assert occupancy("8.0", registers=128, shared_bytes=0, threads=256) == 0.25
    # 60 KiB and the system's 1 KiB fit twice into 164 KiB.
    assert occupancy("8.0", registers=32, shared_bytes=60 * 1024, threads=256) == 16 / 64
    assert occupancy("7.5", registers=32, shared_bytes=64 * 1024, threads=512) == 0.5
    assert occupancy("7.5", registers=32, shared_bytes=64 * 1024 + 1, threads=512) == 0


PTXAS = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1kIfEvPT_' for 'sm_120'
ptxas info    : Function properties for _Z1kIfEvPT_
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 4096 bytes smem
ptxas info    : Compile time = 1.066 ms
ptxas info    : Compiling entry function '_Z1jv' for 'sm_90a'
ptxas info    : Function properties for _Z1jv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, 368 bytes cmem[0]
"""


def test_costs_are_read():
    small, large = parse_costs(PTXAS)
    assert (small.symbol, small.arch, small.registers, small.spill_bytes, small.shared_bytes) == (
        "_Z1jv",
        "9.0",
        12,
        0,
        0,
    )
    assert (large.arch, large.registers, large.spill_bytes, large.shared_bytes) == ("12.0", 255, 20, 4096)
    with pytest.raises(BuildError, match="unknown form"):
        parse_costs(PTXAS.replace("Used", "Uses"))


@pytest.mark.parametrize(
    "line",
    [
        'a.cu(3): warning #177-D: variable "x" was declared but never referenced',
        "a.cpp:3:5: warning: unused variable 'x' [-Wunused-variable]",
        "ptxas warning : Registers are spilled to local memory in function 'k'",
        "nvcc warning : Support for offline compilation for architectures prior to sm_75",
        "/usr/bin/ld: warning: libx.so needed",
    ],
)
def test_warnings_are_seen(line):
    assert parse_warnings(f"ptxas info : no warnings here\n{line}\n") == [line]


def test_errors_come_first():
    assert first_errors("In file included from a\na.cu(3): error: x\nmore\n1 error detected\n") == (
        "a.cu(3): error: x; 1 error detected"
    )
    assert first_errors("one\ntwo\nthree\nfour\n") == "two; three; four"
    assert first_errors("") == ""


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("_ZN6vovnet16aggregate_kernelINS_7Float16ENS_7ForwardEEEvNS_7ProblemE", "aggregate_kernel<Float16, Forward>"),
        ("_ZN6vovnet20relu_backward_kernelI6__halfLi8EEEvNS_7ProblemE", "relu_backward_kernel<__half, 8>"),
        ("_Z12scale_kernelIfLin3EEvPT_", "scale_kernel<float, -3>"),
        ("_Z1kILb1ELj4EEvPv", "k<true, 4u>"),
        ("plain", "plain"),
    ],
)
def test_names_are_readable(symbol, name):
    assert readable(demangle(symbol)) == name


def test_casts_are_left_out():
    # As CUDA's own cu++filt and older demanglers print them.
    assert readable("void vovnet::k<(vovnet::DType)1, (int)-3, (bool)1>(vovnet::P)") == "k<1, -3, 1>"


def test_defects():
    clean = KernelReport("k", "9.0", 40, 0, 0, 1.0)
    assert defects([clean], []) == []
    spilled, huge = KernelReport("k", "8.0", 255, 16, 0, 0.5), KernelReport("k", "7.5", 40, 0, 70000, 0.0)
    found = defects([clean, spilled, huge], ["a.cu(3): warning #1: x"])
    assert found == [
        "warning: a.cu(3): warning #1: x",
        "k on 8.0 spills 16 bytes (255 registers)",
        "k on 7.5 cannot be launched: it needs 70000 bytes of shared memory, a block can have 65536",
    ]
    assert len(table([clean, spilled]).splitlines()) == 3
