"""The library for the CPU: it is built once, with each source's own flags, and only by calls that ask for it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from native_answers import answers_of_a_worker, forbid, one_warning, required

from vovnet.errors import InputError
from vovnet.memory import memory_efficient
from vovnet.ops.build import cache, compiler, loader, sources, toolchain
from vovnet.ops.build.cache import build_once, find_builds
from vovnet.ops.build.loader import available, cpu_operators
from vovnet.ops.build.sources import CPU, CUDA, INSTRUCTION_SETS, NO_GPU
from vovnet.ops.build.toolchain import BuildError

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ on PATH")
on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="needs an x86-64 processor")

REAL = 'exec $real "$@"'


def compiled_in(path: Path) -> list[str]:
    """Return the instruction sets of a stand-in library."""
    function = ctypes.CDLL(str(path)).compiled_in
    function.restype = ctypes.POINTER(ctypes.c_char_p)
    names = []
    for name in function():
        if name is None:
            return names
        names.append(name.decode())
    raise AssertionError


def sources_of(runs: list[str]) -> list[str]:
    """Return the sources of these runs of a compiler, in order."""
    return sorted(match[1] for run in runs if (match := re.search(r"-c \S*?([^/ ]+\.cpp) ", run)))


def test_first_call_builds_and_loads_once(standin, cxx, capfd):
    runs = cxx(REAL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(lambda _: cpu_operators(), range(4)))
    (build,) = find_builds(standin)
    assert loader._loaded_cpu == build
    assert sources_of(runs()) == sorted(path.name for path in standin.sources)
    (said,) = capfd.readouterr().err.splitlines()
    for word in ("compiling", f"every {platform.machine()} processor", str(build.path.parent.parent)):
        assert word in said


@on_x86
def test_each_source_has_its_own_flags(standin, cxx):
    runs = cxx(REAL)
    build = build_once(standin, NO_GPU)
    assert compiled_in(build.path) == ["plain", "avx2", "avx512", "avx512_bf16"][: 4 - len(build.left_out)]
    machine = {}
    for run in runs():
        assert "cuda" not in run.lower()
        assert "fast-math" not in run
        if source := sources_of([run]):
            machine[source[0]] = {flag for flag in run.split() if re.match(r"-m|-O3", flag)}
    wide = {"-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma"}
    assert machine["table.cpp"] == set()
    assert machine["isa_plain.cpp"] == {"-O3"}
    assert machine["isa_avx2.cpp"] == {"-O3", "-mavx2", "-mfma"}
    assert machine["isa_avx512.cpp"] == {"-O3", *wide}
    if not build.left_out:
        assert machine["isa_avx512_bf16.cpp"] == {"-O3", *wide, "-mavx512bf16"}
    (link,) = [run.split() for run in runs() if "-shared" in run]
    assert [flag for flag in link if flag.startswith("-l")] == ["-ltorch_cpu"]


@on_x86
def test_a_compiler_that_does_not_know_bfloat16(standin, cxx, monkeypatch, capsys):
    cxx(f'case "$*" in *-mavx512bf16*) echo "error: unrecognized option" >&2; exit 1;; esac\n{REAL}')
    assert cpu_operators()
    build = loader._loaded_cpu
    assert build.left_out == ["isa_avx512_bf16.cpp"]
    assert compiled_in(build.path) == ["plain", "avx2", "avx512"]
    assert "without isa_avx512_bf16.cpp" in dict(loader.state())["CPU operators"]


def test_another_processor_compiles_the_plain_source_alone(standin, monkeypatch):
    here = standin.key(None)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert standin.key(None) != here
    build = build_once(standin, NO_GPU)
    assert build.left_out == []
    assert compiled_in(build.path) == ["plain"]
    assert build.targets.words == "every aarch64 processor"


def test_a_torch_without_cuda_and_a_machine_without_nvcc(standin, no_nvcc, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    for name in ("as", "ld"):
        (Path(os.environ["PATH"]) / name).symlink_to(shutil.which(name, path=os.defpath) or name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cpu_operators()


def test_what_is_built_needs_no_compiler(standin, monkeypatch, tmp_path, capfd):
    build_once(standin, NO_GPU)
    capfd.readouterr()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cpu_operators()
    assert capfd.readouterr().err == ""


def test_a_change_of_sources_or_flags_is_another_library(standin, monkeypatch):
    build_once(standin, NO_GPU)
    with monkeypatch.context() as change:
        change.setitem(sources.INSTRUCTION_SETS, "plain", ("-DCHANGED",))
        assert find_builds(standin) == []
    assert len(find_builds(standin)) == 1
    (standin.folder / "new.h").write_text("\n")
    assert find_builds(standin) == []


@pytest.mark.parametrize("value", ["auto", "off", "require", ""])
def test_others_start_no_compiler_on_the_cpu(standin, monkeypatch, value):
    monkeypatch.setenv("VOVNET_OPS", value)
    for module, name in ((loader, "_ensure_cpu"), (loader, "build_once"), (torch.ops, "load_library")):
        monkeypatch.setattr(module, name, forbid)
    assert not available(torch.device("cpu"))
    model = memory_efficient(timm.create_model("ese_vovnet19b_slim", features_only=True))
    model(torch.randn(2, 3, 32, 32))[-1].sum().backward()


def test_off_is_silent(standin, monkeypatch):
    monkeypatch.setenv("VOVNET_OPS", "off")
    monkeypatch.setattr(loader, "_ensure_cpu", forbid)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not cpu_operators()


@pytest.mark.parametrize(
    ("variable", "values"), [("VOVNET_OPS", "auto, off, require"), ("VOVNET_ISA", "plain, avx2, avx512")]
)
def test_an_unknown_value_is_named(standin, monkeypatch, variable, values):
    monkeypatch.setenv(variable, "on")
    with pytest.raises(InputError, match=f"{variable}='on': expected one of {values}"):
        cpu_operators()


def test_no_compiler(standin, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    one_warning(cpu_operators, "no C++ compiler", "apt install g++")
    required(monkeypatch, cpu_operators, "no C++ compiler")


def test_a_compiler_that_fails(standin, cxx, monkeypatch):
    runs = cxx('echo "isa_plain.cpp:7:1: error: no such thing"; echo "and more"; exit 1')
    text = one_warning(cpu_operators, "cxx failed", "isa_plain.cpp:7:1: error: no such thing")
    asked = len(runs())
    assert not cpu_operators()
    assert len(runs()) == asked, "a build that failed is not tried again by the same process"
    log = Path(next(word for word in text.replace(")", " ").split() if word.endswith(".log")))
    assert "and more" in log.read_text()
    required(monkeypatch, cpu_operators, "no such thing")
    assert not [entry for entry in os.listdir(log.parent) if entry.startswith(".building")]


def test_a_compiler_that_cannot_run(standin, cxx, monkeypatch):
    cxx("exit 0")
    Path(os.environ["CXX"]).write_text("#!/nowhere/sh\n")
    one_warning(cpu_operators, "cannot be run", os.environ["CXX"])
    required(monkeypatch, cpu_operators, "cannot be run")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.setattr(torch, "__version__", "2.6.0"), ("2.10 or later", "2.6.0", "pip install -U torch")),
        (lambda m: m.setattr(toolchain.sys, "platform", "darwin"), ("Linux only", "darwin")),
    ],
)
def test_a_torch_or_system_that_does_not_suffice(standin, monkeypatch, change, words):
    change(monkeypatch)
    one_warning(cpu_operators, *words)
    required(monkeypatch, cpu_operators, *words)


def test_a_cache_that_cannot_be_written(standin, tmp_path, monkeypatch):
    # Permissions do not stop root, who may run the tests; a file where a folder should be stops everybody.
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file"))
    one_warning(cpu_operators, "cache folder cannot be written", str(tmp_path / "file"), "TORCH_EXTENSIONS_DIR")
    required(monkeypatch, cpu_operators, "cache folder cannot be written")


def test_a_library_that_cannot_be_loaded(standin, monkeypatch):
    build = build_once(standin, NO_GPU)
    build.path.write_bytes(b"not a library")
    one_warning(cpu_operators, "cannot be loaded", f"remove {build.path.parent}")
    required(monkeypatch, cpu_operators, "cannot be loaded")


def test_sources_that_change_while_they_are_compiled(standin, monkeypatch):
    def compile_and_edit(library, *rest):
        build = compiler.compile_library(library, *rest)
        (library.folder / "new.h").touch()
        return build

    with monkeypatch.context() as edits:
        edits.setattr(cache, "compile_library", compile_and_edit)
        with pytest.raises(BuildError, match="changed while they were compiled: build again"):
            build_once(standin, NO_GPU)
    (standin.folder / "new.h").unlink()
    assert find_builds(standin) == []


def test_half_a_build_is_built_anew(standin):
    folder = build_once(standin, NO_GPU).path.parent
    (folder / "build.json").write_text("{")
    assert find_builds(standin) == []
    assert cpu_operators()


def test_neither_library_spoils_the_other(standin, tiny, gpus, no_nvcc, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    with pytest.warns(UserWarning, match="no CUDA compiler"):
        assert not available(torch.device("cuda:0"))
    assert "cpu" not in loader._failures
    monkeypatch.setattr(loader, "_failures", {"cpu": "broken"})
    monkeypatch.setattr(loader, "_load", lambda index: None)
    assert available(torch.device("cuda:0"))


def test_a_worker_builds_nothing(standin):
    first, second = answers_of_a_worker(cpu_operators)
    assert first[0] is False
    assert "DataLoader worker" in first[1]
    assert "(python -m vovnet.ops.build)" in first[1]
    assert second == (False, "")
    assert find_builds(standin) == []


def test_a_worker_loads_what_is_built(standin):
    build_once(standin, NO_GPU)
    assert answers_of_a_worker(cpu_operators) == [(True, ""), (True, "")]


def test_the_other_ranks_wait_for_rank_0(standin, no_waiting, monkeypatch):
    builders = []

    def compile_and_note(*args):
        builders.append(os.environ["LOCAL_RANK"])
        return compiler.compile_library(*args)

    def rank_0_builds():
        monkeypatch.setenv("LOCAL_RANK", "0")
        build_once(standin, NO_GPU)
        monkeypatch.setenv("LOCAL_RANK", "3")

    monkeypatch.setattr(cache, "compile_library", compile_and_note)
    no_waiting(rank_0_builds)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert cpu_operators()
    assert builders == ["0"]


AVX2 = {"sse4_2", "avx", "avx2", "fma"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (set(), "plain"),
        (AVX2 - {"fma"}, "plain"),
        (AVX2, "avx2"),
        (AVX512 - {"avx512dq"}, "avx2"),
        (AVX512, "avx512"),
        (AVX512 | {"avx512_bf16"}, "avx512_bf16"),
        (AVX2 | {"avx512_bf16"}, "avx2"),
    ],
)
@on_x86
def test_which_instruction_set_a_processor_has(standin, flags, expected):
    assert standin.widest_instruction_set(flags) == expected


@on_x86
def test_an_instruction_set_that_the_library_lacks(standin):
    (standin.folder / "isa_avx512_bf16.cpp").unlink()
    (standin.folder / "isa_avx2.cpp").unlink()
    assert standin.widest_instruction_set(AVX512 | {"avx512_bf16"}) == "avx512"
    assert standin.widest_instruction_set(AVX2) == "plain"


@pytest.mark.parametrize(
    ("flags", "asked", "expected"),
    [
        (AVX512, None, "avx512"),
        (AVX512, "", "avx512"),
        (AVX512 | {"avx512_bf16"}, None, "avx512 with bfloat16 products"),
        (AVX512, "avx2", "avx2 by VOVNET_ISA; the processor has avx512"),
        (AVX2, "avx512", "avx2"),
        (AVX2, "plain", "plain by VOVNET_ISA; the processor has avx2"),
        (AVX2, "sse", "VOVNET_ISA='sse': expected one of plain, avx2, avx512"),
        (None, None, "not known here: no /proc/cpuinfo"),
    ],
)
@on_x86
def test_state_names_the_instruction_set(standin, monkeypatch, tmp_path, flags, asked, expected):
    info = tmp_path / "cpuinfo"
    if flags is not None:
        info.write_text(f"processor\t: 0\nflags\t\t: {' '.join(sorted(flags))}\nvmx flags\t: none\n")
    monkeypatch.setattr(loader, "CPUINFO", info)
    if asked is not None:
        monkeypatch.setenv("VOVNET_ISA", asked)
    assert dict(loader.state())["CPU instruction set"] == expected


def test_state_says_what_is_built(standin, monkeypatch):
    for module, name in ((loader, "build_once"), (torch.ops, "load_library")):
        monkeypatch.setattr(module, name, forbid)
    assert dict(loader.state())["CPU operators"].startswith("not built yet (none came with this installation")
    build_once(standin, NO_GPU)
    assert dict(loader.state())["CPU operators"].startswith(f"built for every {platform.machine()} processor")
    monkeypatch.setattr(torch, "__version__", "2.6.0")
    assert "plain PyTorch: PyTorch 2.10 or later" in dict(loader.state())["CPU operators"]


def test_the_libraries(monkeypatch):
    assert (CPU.uses_cuda, CUDA.uses_cuda) == (False, True)
    assert "-DTORCH_TARGET_VERSION=0x020b000000000000" in CPU.flags(CPU.folder / "torch_ops.cpp")
    assert "-DTORCH_TARGET_VERSION=0x020a000000000000" in CUDA.flags(CUDA.folder / "torch_ops.cpp")
    kernels = {path.name for path in CPU.folder.glob("isa_*.cpp")}
    assert kernels <= {f"isa_{name}.cpp" for name in INSTRUCTION_SETS}
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(BuildError, match="without CUDA"):
        toolchain.cuda_major(CUDA)
    assert toolchain.cuda_major(CPU) is None


ASK = """
import sys
import torch
from vovnet.ops.build import loader
assert loader.cpu_operators()
print(torch.ops.vovnet._cpu_instruction_set())
"""


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the real library, compiled once by the first of the test processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "extensions"
    done = subprocess.run(
        [sys.executable, "-m", "vovnet.ops.build"],
        env={**os.environ, "TORCH_EXTENSIONS_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 warnings" in done.stdout
    return folder


@pytest.mark.parametrize("asked", ["", "plain", "avx2", "avx512"])
def test_the_real_library_uses_the_set_that_state_names(real_cache, monkeypatch, asked):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(real_cache))
    monkeypatch.setenv("VOVNET_ISA", asked)
    monkeypatch.setenv("VOVNET_OPS", "require")
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == dict(loader.state())["CPU instruction set"].split()[0]


def _asks(queue: Any) -> None:
    queue.put(cpu_operators())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_does_not_wait_for_a_build_in_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that builds holds the lock, but does not exist in the child."""
    assert cpu_operators()
    monkeypatch.setattr(loader, "_loaded_cpu", None)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_asks, args=(queue,))
    with loader._lock:
        child.start()
    child.join(60)
    alive = child.is_alive()
    child.kill()
    assert not alive
    assert queue.get() is True
