"""The one list of sources and flags: what is built on first use and ahead of time comes from here alone."""

from __future__ import annotations

import hashlib
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from vovnet.errors import InputError

CSRC = Path(__file__).resolve().parent / "csrc"

ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
"""The compute capabilities that are built ahead of time, and for which a report can tell the occupancy."""

OLDEST = (7, 5)
"""The oldest capability with the tensor-core instructions that the kernels are written in."""

STABLE_TORCH = (2, 10)
"""The first release whose stable C++ interface passes lists of tensors; what is built serves it and later ones."""

CXX_FLAGS = (
    "-std=c++20",
    "-O2",
    "-fPIC",
    "-Wall",
    "-Wextra",
    "-DUSE_CUDA",  # declares the part of PyTorch's stable interface that knows streams
    f"-DTORCH_TARGET_VERSION=0x{STABLE_TORCH[0]:02x}{STABLE_TORCH[1]:02x}000000000000",
)
NVCC_FLAGS = (
    "-std=c++20",
    "-O3",
    "-Xcompiler=-fPIC,-Wall,-Wextra",
    "-Xptxas=-v",  # registers, spills and shared memory of each kernel, for the report
)
LINK_FLAGS = ("-shared", "-Wl,-z,defs")  # a function that nobody defines ends the build, not the first call


@dataclass(frozen=True)
class Library:
    """One shared library of operators: what is compiled into it, and with what.

    Attributes:
        name: Names its folder and file, and stands in messages.
        folder: Where its sources are; a change of any file in it makes a new build.
    """

    name: str
    folder: Path

    @property
    def sources(self) -> list[Path]:
        """The files that are compiled, each on its own."""
        return sorted(path for path in self.folder.iterdir() if path.suffix in (".cu", ".cpp"))

    def key(self, cuda_major: int) -> str:
        """Names what the sources, flags, processor and CUDA's major release make: equal keys, equal libraries."""
        digest = hashlib.sha256()
        for flag in (*CXX_FLAGS, *NVCC_FLAGS, *LINK_FLAGS, platform.machine(), f"cuda{cuda_major}"):
            digest.update(flag.encode() + b"\0")
        for path in sorted(self.folder.iterdir()):
            if path.suffix in (".cu", ".cuh", ".cpp", ".h"):
                digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        return digest.hexdigest()[:16]


CUDA = Library("cuda", CSRC / "cuda")
LIBRARIES = (CUDA,)
"""Every library there is; operators in C++ for the CPU would be one more, with its own folder."""


@dataclass(frozen=True)
class Targets:
    """The GPUs that a library is built for.

    Attributes:
        binary: Compute capabilities with machine code of their own, such as ``("8.0", "9.0")``, ascending.
        ptx: The capability whose PTX is added, which the driver compiles for later GPUs; None for none.
    """

    binary: tuple[str, ...]
    ptx: str | None = None

    def __str__(self) -> str:
        return "-".join(self.binary) + (f"+PTX{self.ptx}" if self.ptx else "")

    @property
    def nvcc_flags(self) -> list[str]:
        """The architectures, as nvcc takes them."""
        flags = [f"-gencode=arch=compute_{_digits(a)},code=sm_{_digits(a)}" for a in self.binary]
        if self.ptx:
            flags.append(f"-gencode=arch=compute_{_digits(self.ptx)},code=compute_{_digits(self.ptx)}")
        return flags

    def serve(self, capability: tuple[int, int]) -> bool:
        """Whether a GPU of this capability can run what is built: the same major and no later minor, or older PTX."""
        for major, minor in map(parse_capability, self.binary):
            if major == capability[0] and minor <= capability[1]:
                return True
        return self.ptx is not None and parse_capability(self.ptx) <= capability


def _digits(capability: str) -> str:
    return capability.replace(".", "")


def parse_capability(text: str) -> tuple[int, int]:
    """``"8.6"`` → ``(8, 6)``."""
    major, _, minor = text.partition(".")
    return int(major), int(minor)


def parse_targets(text: str | None) -> Targets:
    """Read ``--arch``: capabilities between commas, ``9.0+PTX`` for one whose PTX is wanted, too.

    None stands for every one of :data:`ARCHITECTURES`, and PTX of the last.

    Raises:
        InputError: for what is no capability, or one that no kernel is written for.
    """
    if text is None:
        return Targets(ARCHITECTURES, ARCHITECTURES[-1])
    binary, ptx = set(), None
    for entry in (part.strip() for part in text.split(",")):
        match = re.fullmatch(r"(\d+\.\d)(\+PTX)?", entry)
        if not match or match[1] not in ARCHITECTURES:
            raise InputError(f"--arch {text}: expected some of {', '.join(ARCHITECTURES)} (or 9.0+PTX), got '{entry}'")
        binary.add(match[1])
        if match[2]:
            ptx = max(ptx or match[1], match[1], key=parse_capability)
    return Targets(tuple(sorted(binary, key=parse_capability)), ptx)


def targets_for(capabilities: set[tuple[int, int]]) -> Targets:
    """The targets that serve these GPUs, each of 7.5 or later: their own, or older PTX for one that we do not list."""
    listed = {parse_capability(name): name for name in ARCHITECTURES}
    binary, ptx = set(), None
    for capability in capabilities:
        nearest = max(known for known in listed if known <= capability)
        binary.add(listed[nearest])
        if nearest != capability:
            ptx = max(ptx or listed[nearest], listed[nearest], key=parse_capability)
    return Targets(tuple(sorted(binary, key=parse_capability)), ptx)
