"""The one list of sources and flags, for builds on first use and ahead of time."""

from __future__ import annotations

import hashlib
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from vovnet.errors import InputError

CSRC = Path(__file__).resolve().parents[1] / "csrc"

ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
"""The compute capabilities that are built ahead of time, and for which a report has the occupancy."""

OLDEST = (7, 5)
"""The oldest capability that has the tensor-core instructions of the kernels."""

STABLE_TORCH = (2, 10)
"""The first PyTorch whose stable C++ interface passes lists of tensors; a build works with later releases, too."""

OWN_MEMORY_TORCH = (2, 11)
"""The first PyTorch whose stable C++ interface makes tensors over our own memory, as the CPU operators do."""

CXX_FLAGS = ("-std=c++20", "-O2", "-fPIC", "-Wall", "-Wextra")
CUDA_CXX_FLAGS = ("-DUSE_CUDA",)  # declares the CUDA streams of PyTorch's stable interface
# ptxas -v prints registers, spills and shared memory of each kernel, for the report.
NVCC_FLAGS = ("-std=c++20", "-O3", "-Xcompiler=-fPIC,-Wall,-Wextra", "-Xptxas=-v")
LINK_FLAGS = ("-shared", "-Wl,-z,defs")  # an undefined function is an error of the build, not of the first call

NAMESPACE = "vovnet"
"""The namespace of the operators in PyTorch's library."""

PORTABLE = CSRC / "portable"
"""What is added to a library for other machines, so that it needs nothing newer than glibc 2.28 (manylinux_2_28)."""
PORTABLE_CXX_FLAGS = ("-include", str(PORTABLE / "glibc_2_28.h"))
PORTABLE_LINK_FLAGS = ("-s", f"-Wl,--version-script={PORTABLE / 'exports.map'}")

_AVX2 = ("-mavx2", "-mfma")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
INSTRUCTION_SETS = {"plain": (), "avx2": _AVX2, "avx512": _AVX512, "avx512_bf16": (*_AVX512, "-mavx512bf16")}
"""NAME of ``isa_NAME.cpp`` → the flags of its instruction set, in ascending order; all but the first are x86-64."""

KERNEL_FLAGS = ("-O3",)  # for each isa_NAME.cpp
PLAIN_ONLY = "-DVOVNET_PLAIN_ONLY"  # tells the other sources that isa_plain.cpp is the only instruction set
OPTIONAL = "avx512_bf16"
# Tells the other sources that the compiler did not know this instruction set.
WITHOUT_OPTIONAL = "-DVOVNET_NO_AVX512_BF16"


def instruction_set(source: Path) -> str | None:
    """Return ``"avx2"`` for ``isa_avx2.cpp``, or None for a source without an instruction set of its own."""
    match = re.fullmatch(r"isa_(\w+)\.cpp", source.name)
    return match[1] if match else None


@dataclass(frozen=True)
class Library:
    """A shared library of operators: its sources and flags.

    A library with CUDA sources needs nvcc, CUDA's libraries and a PyTorch with CUDA; others need a C++ compiler only.
    A change of a file in its folder, or of a header in :data:`CSRC`, makes a new build.
    """

    name: str  # of its folder and file in the cache, and in messages
    folder: Path  # of its sources
    torch: tuple[int, int] = STABLE_TORCH  # the first release of PyTorch that it is built for
    portable: bool = False  # for other machines, with older systems; the flags do not enter the key
    namespace: str = NAMESPACE  # of its operators

    @property
    def sources(self) -> list[Path]:
        """The source files that are compiled on this machine."""
        found = sorted(path for path in self.folder.iterdir() if path.suffix in (".cu", ".cpp"))
        own = [path for path in found if _is_x86() or instruction_set(path) in (None, "plain")]
        return [*own, *sorted(PORTABLE.glob("*.cpp"))] if self.portable else own

    @property
    def uses_cuda(self) -> bool:
        """True if any source is a CUDA source."""
        return any(path.suffix == ".cu" for path in self.sources)

    def flags(self, source: Path) -> tuple[str, ...]:
        """Return the compiler flags of a source."""
        if source.suffix == ".cu":
            return NVCC_FLAGS
        release = f"0x{self.torch[0]:02x}{self.torch[1]:02x}000000000000"
        flags: tuple[str, ...] = (*CXX_FLAGS, f"-DTORCH_TARGET_VERSION={release}")
        if self.portable:
            flags = (*flags, *PORTABLE_CXX_FLAGS)
        if self.namespace != NAMESPACE:
            flags = (*flags, f"-DVOVNET_NAMESPACE={self.namespace}")
        if self.uses_cuda:
            return (*flags, *CUDA_CXX_FLAGS)
        if not _is_x86():
            flags = (*flags, PLAIN_ONLY)
        name = instruction_set(source)
        return flags if name is None else (*flags, *KERNEL_FLAGS, *INSTRUCTION_SETS[name])

    @property
    def link_flags(self) -> tuple[str, ...]:
        """The flags of the linker."""
        return (*LINK_FLAGS, *PORTABLE_LINK_FLAGS) if self.portable else LINK_FLAGS

    def widest_instruction_set(self, processor_flags: set[str]) -> str:
        """Return the highest instruction set of the library that a processor has, by its flags as Linux lists them."""
        ours = {instruction_set(source) for source in self.sources}
        known = {flag.replace("_", "") for flag in processor_flags}
        fitting = (name for name in INSTRUCTION_SETS if known >= {flag[2:] for flag in INSTRUCTION_SETS[name]})
        return ["plain", *(name for name in fitting if name in ours)][-1]

    def key(self, cuda_major: int | None) -> str:
        """Return a hash of sources, flags, machine and CUDA's major release; equal keys mean equal libraries."""
        digest = hashlib.sha256()
        flags = [flag for source in self.sources for flag in (source.name, *self.flags(source))]
        for flag in (*flags, *LINK_FLAGS, platform.machine(), f"cuda{cuda_major}"):
            digest.update(flag.encode() + b"\0")
        for path in (*sorted(CSRC.glob("*.h")), *sorted(self.folder.iterdir())):
            if path.suffix in (".cu", ".cuh", ".cpp", ".h"):
                digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        return digest.hexdigest()[:16]


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


CPU = Library("cpu", CSRC / "cpu", OWN_MEMORY_TORCH)
CUDA = Library("cuda", CSRC / "cuda")


@dataclass(frozen=True)
class Targets:
    """The GPUs that a library is built for."""

    binary: tuple[str, ...]  # capabilities with machine code, such as ("8.0", "9.0"), ascending; empty for the CPU
    ptx: str | None = None  # the capability whose PTX is added, which the driver compiles for later GPUs

    def __str__(self) -> str:
        return ("-".join(self.binary) or "cpu") + (f"+PTX{self.ptx}" if self.ptx else "")

    @property
    def words(self) -> str:
        """The targets in words, such as ``"8.0, 9.0 and PTX"``."""
        names = ", ".join(self.binary) or f"every {platform.machine()} processor"
        return names + (" and PTX" if self.ptx else "")

    @property
    def nvcc_flags(self) -> list[str]:
        """The architectures as flags of nvcc."""
        codes = [(arch, "sm") for arch in self.binary] + ([(self.ptx, "compute")] if self.ptx else [])
        digits = ((arch.replace(".", ""), kind) for arch, kind in codes)
        return [f"-gencode=arch=compute_{arch},code={kind}_{arch}" for arch, kind in digits]

    def serve(self, capability: tuple[int, int]) -> bool:
        """True if a GPU of this capability can run the build: same major and no later minor version, or older PTX."""
        if any(
            major == capability[0] and minor <= capability[1] for major, minor in map(parse_capability, self.binary)
        ):
            return True
        return self.ptx is not None and parse_capability(self.ptx) <= capability


NO_GPU = Targets(())
"""The targets of a library for the CPU. It has all instruction sets and picks one when it is first used."""


def parse_capability(text: str) -> tuple[int, int]:
    """Return ``(8, 6)`` for ``"8.6"``."""
    major, _, minor = text.partition(".")
    return int(major), int(minor)


def parse_targets(text: str | None) -> Targets:
    """Read ``--arch``: capabilities separated by commas; ``9.0+PTX`` adds the PTX of a capability.

    None stands for all of :data:`ARCHITECTURES`, and the PTX of the last.

    Raises:
        InputError: an entry is not one of :data:`ARCHITECTURES`.
    """
    if text is None:
        return Targets(ARCHITECTURES, ARCHITECTURES[-1])
    binary, ptx = set(), set()
    for entry in (part.strip() for part in text.split(",")):
        match = re.fullmatch(r"(\d+\.\d)(\+PTX)?", entry)
        if not match or match[1] not in ARCHITECTURES:
            raise InputError(f"--arch {text}: expected some of {', '.join(ARCHITECTURES)} (or 9.0+PTX), got '{entry}'")
        binary.add(match[1])
        if match[2]:
            ptx.add(match[1])
    return _targets(binary, ptx)


def targets_for(capabilities: set[tuple[int, int]]) -> Targets:
    """Return the targets for these GPUs, each of 7.5 or later; capabilities that are not listed use older PTX."""
    listed = {parse_capability(name): name for name in ARCHITECTURES}
    nearest = {capability: max(known for known in listed if known <= capability) for capability in capabilities}
    binary = {listed[known] for known in nearest.values()}
    return _targets(binary, {listed[known] for capability, known in nearest.items() if known != capability})


def _targets(binary: set[str], ptx: set[str]) -> Targets:
    """Return targets with the PTX of the latest capability in ``ptx``."""
    return Targets(tuple(sorted(binary, key=parse_capability)), max(ptx, key=parse_capability, default=None))
