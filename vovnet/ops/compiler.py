"""Compiles a library of operators into a folder, and reads from the compilers' output what the kernels cost."""

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

from vovnet.ops.sources import CXX_FLAGS, LINK_FLAGS, NVCC_FLAGS, Library, Targets, parse_capability
from vovnet.ops.toolchain import BuildError, Toolchain

RECORD = "build.json"


@dataclass(frozen=True)
class KernelCost:
    """What ptxas says of one kernel on one architecture.

    Attributes:
        symbol: The kernel's mangled name.
        arch: Compute capability, such as ``"9.0"``.
        registers: Of each thread.
        spill_bytes: Stored to and loaded from local memory by each thread, because registers were too few.
        shared_bytes: Static shared memory of each block.
    """

    symbol: str
    arch: str
    registers: int
    spill_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class Build:
    """A library that stands in a folder.

    Attributes:
        path: The shared library.
        targets: The GPUs that it serves.
        kernels: What each kernel costs on each architecture.
        warnings: Every warning of the compilers, a line each.
        seconds: How long compiling took.
    """

    path: Path
    targets: Targets
    kernels: list[KernelCost]
    warnings: list[str]
    seconds: float

    @classmethod
    def read(cls, folder: Path) -> Build | None:
        """The build that stands in a folder; None where none does, or another release's."""
        try:
            record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            path = folder / record["library"]
            if not path.is_file():
                return None
            targets = Targets(tuple(record["binary"]), record["ptx"])
            kernels = [KernelCost(**entry) for entry in record["kernels"]]
            return cls(path, targets, kernels, list(record["warnings"]), float(record["seconds"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self) -> None:
        """Leave the record beside the library."""
        record = {
            "library": self.path.name,
            "binary": self.targets.binary,
            "ptx": self.targets.ptx,
            "kernels": [asdict(kernel) for kernel in self.kernels],
            "warnings": self.warnings,
            "seconds": round(self.seconds, 1),
        }
        (self.path.parent / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def compile_library(library: Library, targets: Targets, folder: Path) -> Build:
    """Compile and link ``library`` into ``folder``, which exists, with at most as many processes as cores.

    Raises:
        BuildError: with the compiler's first lines of error; ``folder/build.log`` then holds all that it said.
    """
    tools = Toolchain.find()
    begin = time.monotonic()
    jobs = usable_cores()
    # One source for many GPUs is best split by GPU, many sources for one GPU by source.
    threads = min(jobs, len(targets.binary))
    commands = {}
    for source in library.sources:
        target = folder / f"{source.name}.o"
        if source.suffix == ".cu":
            machine = [*targets.nvcc_flags, f"-ccbin={tools.cxx}", f"--threads={threads}"]
            commands[target] = [str(tools.nvcc), *NVCC_FLAGS, *machine, "-c", str(source), "-o", str(target)]
        else:
            headers = ["-isystem", str(tools.torch / "include")]
            commands[target] = [str(tools.cxx), *CXX_FLAGS, *headers, "-c", str(source), "-o", str(target)]
    path = folder / f"vovnet_{library.name}.so"
    torch_libraries = [f"-L{tools.torch / 'lib'}", "-ltorch_cuda", "-ltorch_cpu"]
    link = [str(tools.cxx), *LINK_FLAGS, *map(str, commands), str(tools.cudart), *torch_libraries, "-o", str(path)]
    with ThreadPoolExecutor(max(1, jobs // threads)) as pool:
        outputs = list(pool.map(lambda command: _run(command, folder), commands.values()))
    outputs.append(_run(link, folder))
    for compiled in commands:
        compiled.unlink()
    output = "\n".join(outputs)
    build = Build(path, targets, parse_costs(output), parse_warnings(output), time.monotonic() - begin)
    build.write()
    return build


def usable_cores() -> int:
    """The cores that this process may use; ``MAX_JOBS`` lowers it, as for every extension of Torch."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("MAX_JOBS", "")
    return min(cores, int(limit)) if limit.isdigit() and int(limit) > 0 else cores


def _run(command: list[str], folder: Path) -> str:
    """What the command says, stdout and stderr together; a failure is a BuildError with its first errors."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error.strerror or error}") from error
    if done.returncode == 0:
        return done.stdout
    with (folder / "build.log").open("a", encoding="utf-8") as log:
        log.write(f"$ {shlex.join(command)}\n{done.stdout}\n")
    raise BuildError(f"{Path(command[0]).name} failed: {first_errors(done.stdout) or f'exit code {done.returncode}'}")


def first_errors(output: str, count: int = 3) -> str:
    """The first lines that tell an error, or the last lines where none says so, joined to one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\b(error|fatal|undefined reference)\b", line, re.IGNORECASE)]
    return "; ".join(errors[:count] or lines[-count:])


def parse_warnings(output: str) -> list[str]:
    """The lines in which g++, nvcc, ptxas or the linker warn."""
    return [line.strip() for line in output.splitlines() if re.search(r"\bwarning\b\s*[#:]", line, re.IGNORECASE)]


def parse_costs(output: str) -> list[KernelCost]:
    """What ``ptxas -v`` says of each kernel, sorted by architecture and name.

    A kernel begins with ``Compiling entry function 'NAME' for 'sm_90'``; its spills and registers follow.
    """
    costs = []
    for block in output.split("Compiling entry function ")[1:]:
        head = re.match(r"'(\S+)' for 'sm_(\d+)(\d)[af]?'", block)
        # Functions that the kernel calls, where ptxas did not inline them, come with spills of their own.
        spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", block)
        registers = re.search(r"Used (\d+) registers", block)
        if head is None or registers is None or not spills:
            raise BuildError(f"ptxas reports in a form that is not known: {' '.join(block.split())[:200]}")
        shared = re.search(r"(\d+) bytes smem", block)
        costs.append(
            KernelCost(
                symbol=head[1],
                arch=f"{head[2]}.{head[3]}",
                registers=int(registers[1]),
                spill_bytes=sum(map(int, spills)),
                shared_bytes=int(shared[1]) if shared else 0,
            )
        )
    return sorted(costs, key=lambda cost: (parse_capability(cost.arch), cost.symbol))
