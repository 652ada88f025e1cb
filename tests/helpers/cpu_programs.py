"""Build and run the stand-alone programs that test the CPU kernels without Torch."""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vovnet.ops.build import compiler
from vovnet.ops.build.sources import CPU, INSTRUCTION_SETS, WITHOUT_OPTIONAL, instruction_set
from vovnet.ops.build.toolchain import BuildError, Toolchain

FOLDER = Path(__file__).parent.parent / "vovnet" / "ops" / "cpu"
PROGRAMS = ("conv_test", "memory_test", "pool_test", "roi_test")
WITHOUT_TORCH = ("memory.cpp", "pool.cpp", "roi_align.cpp")
SETS = tuple(INSTRUCTION_SETS) if platform.machine().lower() in ("x86_64", "amd64") else ("plain",)
LACKING = 77
"""Exit code of a program if the processor lacks the instruction set."""


def build(factory: pytest.TempPathFactory, name: str, flags: Sequence[str] = ()) -> Path:
    """Build all programs, once for all test processes; return their folder. Skips the test if there is no compiler.

    Args:
        factory: pytest's fixture.
        name: name of the folder.
        flags: compiler flags, in addition to those of the library.
    """
    try:
        tools = Toolchain.find(CPU)
    except BuildError as error:
        pytest.skip(f"needs a C++ compiler: {error}")
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"cpu-programs-{name}"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            _compile(folder, tools, [*flags, "-Werror"])
            (folder / "complete").touch()
    return folder


def _compile(folder: Path, tools: Toolchain, flags: list[str]) -> None:
    left_out = compiler._unknown_sources(CPU, tools, folder)
    kernels = [path for path in CPU.sources if instruction_set(path) is not None and path not in left_out]
    if left_out:
        flags = [*flags, WITHOUT_OPTIONAL]

    def compile_one(source: Path) -> None:
        included = ["-I", str(CPU.folder)]
        target = str(folder / f"{source.stem}.o")
        _run([str(tools.cxx), *CPU.flags(source), *included, *flags, "-c", str(source), "-o", target])

    linked = [*kernels, *(CPU.folder / name for name in WITHOUT_TORCH)]
    with ThreadPoolExecutor(compiler.usable_cores()) as pool:
        list(pool.map(compile_one, [*linked, *(FOLDER / f"{name}.cpp" for name in PROGRAMS)]))
    for name in PROGRAMS:
        objects = [str(folder / f"{source.stem}.o") for source in (FOLDER / f"{name}.cpp", *linked)]
        _run([str(tools.cxx), *flags, *objects, "-pthread", "-o", str(folder / name)])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def check(program: Path, *arguments: str, **environment: str) -> None:
    """Run a program. The test fails if it finds a mismatch or a sanitizer reports an error."""
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    if done.returncode == LACKING:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, f"{program.name} ended with {done.returncode}\n{done.stdout}{done.stderr}"
