"""Compile a library of operators into a folder, and read the kernels' resources from the compilers' output."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vovnet.ops.build.sources import (
    INSTRUCTION_SETS,
    OPTIONAL,
    WITHOUT_OPTIONAL,
    Library,
    Targets,
    instruction_set,
    parse_capability,
)
from vovnet.ops.build.toolchain import BuildError, Toolchain

RECORD = "build.json"
PROBE = 'void probe() { asm volatile("vdpbf16ps %zmm0, %zmm0, %zmm0"); }'
"""An instruction of the optional set, to test compiler and assembler."""


@dataclass(frozen=True)
class KernelCost:
    """The resources of one kernel on one architecture, as ptxas reports them."""

    symbol: str  # the kernel's mangled name
    arch: str  # compute capability, such as "9.0"
    registers: int  # per thread
    spill_bytes: int  # that each thread stores to and loads from local memory, because registers are too few
    shared_bytes: int  # static shared memory per block


@dataclass(frozen=True)
class Build:
    """A compiled library and its record."""

    path: Path  # the shared library
    targets: Targets  # the GPUs that it supports
    kernels: list[KernelCost]  # the resources of each kernel on each architecture
    warnings: list[str]  # every warning of the compilers, one line each
    seconds: float  # duration of the compilation
    left_out: list[str]  # sources whose instructions the compiler did not know

    @classmethod
    def read(cls, folder: Path) -> Build | None:
        """Return the build in a folder, or None if there is none or its record is of another release."""
        try:
            record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            path = folder / record["library"]
            if not path.is_file():
                return None
            targets = Targets(tuple(record["binary"]), record["ptx"])
            kernels = [KernelCost(**entry) for entry in record["kernels"]]
            warnings, left_out = list(record["warnings"]), list(record["left_out"])
            return cls(path, targets, kernels, warnings, float(record["seconds"]), left_out)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self) -> None:
        """Write the record beside the library."""
        record = {
            "library": self.path.name,
            "binary": self.targets.binary,
            "ptx": self.targets.ptx,
            "kernels": [asdict(kernel) for kernel in self.kernels],
            "warnings": self.warnings,
            "seconds": round(self.seconds, 1),
            "left_out": self.left_out,
        }
        (self.path.parent / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def compile_library(library: Library, targets: Targets, folder: Path) -> Build:
    """Compile and link ``library`` into ``folder``, which exists, with at most as many processes as cores.

    Raises:
        BuildError: a compiler failed; the message has its first errors, ``folder/build.log`` its whole output.
    """
    tools = Toolchain.find(library)
    begin = time.monotonic()
    jobs = usable_cores()
    # With many GPUs nvcc compiles for several of them at once; otherwise several sources are compiled at once.
    threads = max(1, min(jobs, len(targets.binary)))
    left_out = _unknown_sources(library, tools, folder)
    commands = {}
    for source in library.sources:
        if source in left_out:
            continue
        target = folder / f"{source.name}.o"
        if source.suffix == ".cu" and tools.cuda is not None:
            compiler = [str(tools.cuda.nvcc), f"-ccbin={tools.cxx}", f"--threads={threads}", *targets.nvcc_flags]
        else:
            compiler = [str(tools.cxx), "-isystem", str(tools.torch / "include")]
        defines = [WITHOUT_OPTIONAL] if left_out else []
        commands[target] = [*compiler, *library.flags(source), *defines, "-c", str(source), "-o", str(target)]
    path = folder / f"vovnet_{library.name}.so"
    cuda_libraries = [] if tools.cuda is None else [str(tools.cuda.cudart), "-ltorch_cuda"]
    libraries = [f"-L{tools.torch / 'lib'}", *cuda_libraries, "-ltorch_cpu"]
    link = [str(tools.cxx), *library.link_flags, *map(str, commands), *libraries, "-o", str(path)]
    with ThreadPoolExecutor(max(1, jobs // threads)) as pool:
        outputs = list(pool.map(lambda command: _run(command, folder), commands.values()))
    outputs.append(_run(link, folder))
    for compiled in commands:
        compiled.unlink()
    output = "\n".join(outputs)
    names = [source.name for source in left_out]
    build = Build(path, targets, parse_costs(output), parse_warnings(output), time.monotonic() - begin, names)
    build.write()
    return build


def _unknown_sources(library: Library, tools: Toolchain, folder: Path) -> list[Path]:
    """Return the sources whose instructions the compiler or its assembler does not know."""
    optional = [source for source in library.sources if instruction_set(source) == OPTIONAL]
    if not optional:
        return []
    probe = folder / "probe.o"
    command = [str(tools.cxx), *INSTRUCTION_SETS[OPTIONAL], "-x", "c++", "-c", "-", "-o", str(probe)]
    try:
        done = subprocess.run(command, input=PROBE, capture_output=True, text=True, errors="replace", check=False)
    except OSError:
        return []  # the first compilation reports the error
    probe.unlink(missing_ok=True)
    return optional if done.returncode != 0 else []


def usable_cores() -> int:
    """Return the number of cores that this process may use, at most ``MAX_JOBS``, as for other Torch extensions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("MAX_JOBS", "")
    return min(cores, int(limit)) if limit.isdigit() and int(limit) > 0 else cores


def _run(command: list[str], folder: Path) -> str:
    """Run a command and return its stdout and stderr; a failure is a BuildError with its first errors."""
    env = {**os.environ, "LC_ALL": "C"}  # errors and warnings are recognized by their English names
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False, env=env
        )
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error.strerror or error}") from error
    if done.returncode == 0:
        return done.stdout
    with (folder / "build.log").open("a", encoding="utf-8") as log:
        log.write(f"$ {shlex.join(command)}\n{done.stdout}\n")
    raise BuildError(f"{Path(command[0]).name} failed: {first_errors(done.stdout) or f'exit code {done.returncode}'}")


def first_errors(output: str, count: int = 3) -> str:
    """Return the first lines with errors, or else the last lines, joined to one line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\b(error|fatal|undefined reference)\b", line, re.IGNORECASE)]
    return "; ".join(errors[:count] or lines[-count:])


def parse_warnings(output: str) -> list[str]:
    """Return the lines with warnings of g++, nvcc, ptxas or the linker."""
    return [line.strip() for line in output.splitlines() if re.search(r"\bwarning\b\s*[#:]", line, re.IGNORECASE)]


def parse_costs(output: str) -> list[KernelCost]:
    """Return the resources of each kernel from the output of ``ptxas -v``, sorted by architecture and name.

    A kernel begins with ``Compiling entry function 'NAME' for 'sm_90'``; its spills and registers follow.
    """
    costs = []
    for block in output.split("Compiling entry function ")[1:]:
        head = re.match(r"'(\S+)' for 'sm_(\d+)(\d)[af]?'", block)
        # Functions that the kernel calls and ptxas did not inline report their own spills.
        spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", block)
        registers = re.search(r"Used (\d+) registers", block)
        if head is None or registers is None or not spills:
            raise BuildError(f"the output of ptxas has an unknown form: {' '.join(block.split())[:200]}")
        shared = re.search(r"(\d+) bytes smem", block)
        shared_bytes = int(shared[1]) if shared else 0
        spill_bytes = sum(map(int, spills))
        costs.append(KernelCost(head[1], f"{head[2]}.{head[3]}", int(registers[1]), spill_bytes, shared_bytes))
    return sorted(costs, key=lambda cost: (parse_capability(cost.arch), cost.symbol))
