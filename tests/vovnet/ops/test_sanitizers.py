"""The CPU kernels in stand-alone programs (``cpu/*_test.cpp``), with the library's flags and under gcc's sanitizers."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import cpu_programs
import pytest
from cpu_programs import SETS

SANITIZERS = {
    "memory": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "threads": ("-fsanitize=thread",),
}
OPTIONS = {
    # Not use after return: the frames that g++ 12 gives functions then are not aligned for vectors of 64 bytes.
    "ASAN_OPTIONS": "allocator_may_return_null=1:detect_stack_use_after_return=0",
    "TSAN_OPTIONS": "allocator_may_return_null=1:halt_on_error=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
KERNEL_TESTS = ("conv_test", "pool_test", "roi_test")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the programs, compiled with the library's own flags."""
    return cpu_programs.build(tmp_path_factory, "shipped")


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("program", KERNEL_TESTS)
def test_kernels_as_they_are_shipped(programs: Path, program: str, instruction_set: str) -> None:
    cpu_programs.check(programs / program, instruction_set, "quick")


@pytest.fixture(scope="module", params=SANITIZERS)
def sanitized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the programs, compiled with a sanitizer; skip the test if the compiler has none."""
    flags = SANITIZERS[request.param]
    source = tmp_path_factory.mktemp("probe") / "probe.cpp"
    source.write_text("int main() {}\n")
    command = [shutil.which("g++") or "c++", *flags, str(source), "-o", str(source.with_suffix(""))]
    try:
        subprocess.run(command, check=True, capture_output=True)
        subprocess.run([source.with_suffix("")], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs a compiler with sanitizers: {error}")
    return cpu_programs.build(tmp_path_factory, request.param, ("-O1", "-g", *flags))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("program", KERNEL_TESTS)
def test_kernels_under_sanitizers(sanitized: Path, program: str, instruction_set: str) -> None:
    """Threads interact in few places, which the quick cases reach."""
    arguments = [instruction_set, *(["quick"] if "threads" in sanitized.name else [])]
    cpu_programs.check(sanitized / program, *arguments, **OPTIONS)


@pytest.mark.slow
def test_memory_under_sanitizers(sanitized: Path) -> None:
    cpu_programs.check(sanitized / "memory_test", **OPTIONS)


@pytest.mark.parametrize("instruction_set", SETS)
def test_instruction_sets_share_no_function(programs: Path, instruction_set: str) -> None:
    """A function in several objects is linked once for all of them; AVX-512's would crash older processors."""
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    path = programs / f"isa_{instruction_set}.o"
    if not path.exists():
        pytest.skip(f"the compiler does not know {instruction_set}")
    listing = subprocess.run(["nm", str(path)], capture_output=True, text=True, check=True).stdout
    symbols = re.findall(r"([A-Za-z]) (\S+)$", listing, re.MULTILINE)
    assert len(symbols) > 20
    # Lower-case letters are of local symbols, but for u, v and w.
    shared = [name for kind, name in symbols if kind != "U" and (kind.isupper() or kind in "uvw")]
    own = re.compile(rf"_Z\w*?(?<!\d){len(instruction_set)}{instruction_set}|vovnet_cpu_\w+$")
    assert [name for name in shared if not own.match(name)] == []
    needed = {name for kind, name in symbols if kind == "U"}
    assert needed <= {"memcpy", "memmove", "memset", "memcmp", "__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"}
