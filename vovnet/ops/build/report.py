"""Report the resources of compiled kernels: registers, spills, shared memory and occupancy on each architecture."""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from vovnet.ops.build.compiler import Build, KernelCost
from vovnet.ops.build.toolchain import BuildError

WARP = 32
REGISTERS = 65536  # per multiprocessor, on every capability below
REGISTERS_UNIT = 256  # a warp gets a multiple of these
PARTITIONS = 4  # per multiprocessor, each with a quarter of the registers; a warp stays in its partition


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one multiprocessor (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability")."""

    threads: int  # most resident threads
    blocks: int  # most resident blocks
    shared_bytes: int  # shared memory of all resident blocks together
    block_shared_bytes: int  # most shared memory of one block
    reserved_bytes: int = 1024  # shared memory that the system reserves per block
    shared_unit: int = 128  # shared memory is allocated in multiples of this many bytes


KIB = 1024
LIMITS = {
    "7.5": Multiprocessor(1024, 16, 64 * KIB, 64 * KIB, reserved_bytes=0, shared_unit=256),
    "8.0": Multiprocessor(2048, 32, 164 * KIB, 163 * KIB),
    "8.6": Multiprocessor(1536, 16, 100 * KIB, 99 * KIB),
    "8.9": Multiprocessor(1536, 24, 100 * KIB, 99 * KIB),
    "9.0": Multiprocessor(2048, 32, 228 * KIB, 227 * KIB),
    "10.0": Multiprocessor(2048, 32, 228 * KIB, 227 * KIB),
    "12.0": Multiprocessor(1536, 24, 100 * KIB, 99 * KIB),
}


@dataclass(frozen=True)
class KernelReport:
    """One kernel on one architecture; fields that :class:`KernelCost` has, too, mean the same."""

    name: str  # demangled, without namespace and arguments
    arch: str
    registers: int
    spill_bytes: int
    shared_bytes: int  # static and dynamic shared memory per block
    occupancy: float  # resident warps as a fraction (0..1) of the limit; 0 for a kernel that cannot be launched


def occupancy(arch: str, *, registers: int, shared_bytes: int, threads: int) -> float:
    """Return the resident warps of a kernel as a fraction of the limit of a multiprocessor of capability ``arch``."""
    limit = LIMITS[arch]
    warps = -(-threads // WARP)
    if shared_bytes > limit.block_shared_bytes or threads > 1024 or registers > 255:
        return 0.0
    per_warp = _round_up(max(registers, 1) * WARP, REGISTERS_UNIT)
    by_registers = (REGISTERS // PARTITIONS // per_warp) * PARTITIONS // warps
    shared = _round_up(shared_bytes + limit.reserved_bytes, limit.shared_unit)
    by_shared = limit.shared_bytes // shared if shared else limit.blocks
    blocks = min(limit.blocks, limit.threads // (warps * WARP), by_registers, by_shared)
    return blocks * warps / (limit.threads // WARP)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def kernel_reports(build: Build) -> list[KernelReport]:
    """Return an entry for each kernel and architecture. Loads the library, which has a table of the kernels' launches.

    Raises:
        BuildError: a kernel is missing from that table.
    """
    library = ctypes.CDLL(str(build.path))
    launches = {arch: read_launches(library, arch) for arch in build.targets.binary}
    return [_entry(cost, launches[cost.arch]) for cost in build.kernels]


def _entry(cost: KernelCost, launches: dict[str, tuple[int, int]]) -> KernelReport:
    name = readable(demangle(cost.symbol))
    if name not in launches:
        raise BuildError(
            f"kernel {name} has no row for {cost.arch} in vovnet_kernel_launches (csrc/cuda), which has: "
            f"{', '.join(sorted(launches)) or 'none'}"
        )
    threads, dynamic = launches[name]
    shared = cost.shared_bytes + dynamic
    share = occupancy(cost.arch, registers=cost.registers, shared_bytes=shared, threads=threads)
    return KernelReport(name, cost.arch, cost.registers, cost.spill_bytes, shared, round(share, 3))


class _Launch(ctypes.Structure):
    """``KernelLaunch`` of kernels.h."""

    _fields_ = (("name", ctypes.c_char_p), ("threads", ctypes.c_int), ("dynamic_shared_bytes", ctypes.c_int))


def read_launches(library: ctypes.CDLL, arch: str) -> dict[str, tuple[int, int]]:
    """Return name of a kernel → threads and dynamic shared memory of a block, on a GPU of capability ``arch``."""
    table = ctypes.POINTER(_Launch)()
    count = library.vovnet_kernel_launches(int(arch.replace(".", "")), ctypes.byref(table))
    return {row.name.decode(): (row.threads, row.dynamic_shared_bytes) for row in table[:count]}


def demangle(symbol: str) -> str:
    """Return the C++ name of a symbol, by the C++ library that Torch needs, too."""
    function = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    function.restype = ctypes.c_void_p
    status = ctypes.c_int()
    address = function(symbol.encode(), None, None, ctypes.byref(status))
    if not address:
        return symbol
    name = ctypes.string_at(address).decode()
    ctypes.CDLL(None).free(ctypes.c_void_p(address))
    return name


def readable(name: str) -> str:
    """Return a kernel's demangled name without return type, namespaces, casts and arguments."""
    name = re.sub(r"\(anonymous namespace\)::|\bvovnet::", "", name)
    name = re.sub(r"\((?:[\w:]+ ?)+\)(?=-?\d|true|false)", "", name)
    # The arguments begin at the first parenthesis outside the template's brackets.
    depth = 0
    for index, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            name = name[:index]
            break
    return name.removeprefix("void ")


def defects(entries: Iterable[KernelReport], warnings: list[str]) -> list[str]:
    """Return the defects of a build, one line each: warnings, spills, kernels that cannot be launched."""
    found = [f"warning: {line}" for line in warnings]
    for entry in entries:
        if entry.spill_bytes:
            found.append(f"{entry.name} on {entry.arch} spills {entry.spill_bytes} bytes ({entry.registers} registers)")
        if not entry.occupancy:
            found.append(
                f"{entry.name} on {entry.arch} cannot be launched: it needs {entry.shared_bytes} bytes of shared "
                f"memory, a block can have {LIMITS[entry.arch].block_shared_bytes}"
            )
    return found


def write_report(path: Path, entries: list[KernelReport], warnings: list[str]) -> None:
    """Write ``{"kernels": [...], "warnings": N}``."""
    content = {"kernels": [asdict(entry) for entry in entries], "warnings": len(warnings)}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def table(entries: list[KernelReport]) -> str:
    """Return the report as text, one line per kernel and architecture."""
    width = max((len(entry.name) for entry in entries), default=6)
    lines = [f"{'kernel':{width}}  {'arch':>5} {'registers':>9} {'spills':>6} {'shared':>7} {'occupancy':>9}"]
    for entry in entries:
        numbers = f"{entry.registers:9} {entry.spill_bytes:6} {entry.shared_bytes:7} {entry.occupancy:9.3f}"
        lines.append(f"{entry.name:{width}}  {entry.arch:>5} {numbers}")
    return "\n".join(lines)
