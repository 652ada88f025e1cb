"""The wheels with compiled operators: contents, tags, what they refuse; auditwheel is asked."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from email.parser import BytesParser
from pathlib import Path

import pytest
import torch

from vovnet.errors import InputError
from vovnet.ops.build.cache import find_exact
from vovnet.ops.build.sources import CSRC, NO_GPU, Library, Targets
from vovnet.ops.build.toolchain import BuildError
from vovnet.ops.shipping import __main__ as command
from vovnet.ops.shipping import platform_tags, wheels
from vovnet.ops.shipping.archive import read_wheel, write_wheel
from vovnet.ops.shipping.platform_tags import audit
from vovnet.ops.shipping.portable import compile_portable
from vovnet.ops.shipping.wheels import PACKAGE, PLATFORM, write_cpu_wheel, write_cuda_wheel

pytestmark = [
    pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() != "x86_64", reason="needs Linux on an x86-64 processor"
    ),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ on PATH"),
]

INFO = "vovnet-7.1.dist-info"
METADATA = b"Metadata-Version: 2.4\nName: vovnet\nVersion: 7.1\nRequires-Python: >=3.11\n"


@pytest.fixture
def dist(tmp_path: Path) -> Path:
    """A folder with a pure wheel of our sources, with little else."""
    sources = [path for path in CSRC.rglob("*") if path.is_file()]
    files = {f"vovnet/{path.relative_to(PACKAGE).as_posix()}": path.read_bytes() for path in sources}
    files |= {
        "vovnet/__init__.py": b"",
        f"{INFO}/METADATA": METADATA,
        f"{INFO}/WHEEL": b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{INFO}/licenses/LICENSE": b"Apache\n",
    }
    folder = tmp_path / "dist"
    folder.mkdir()
    write_wheel(folder / "vovnet-7.1-py3-none-any.whl", files)
    return folder


@pytest.fixture
def small(standin: Library, monkeypatch: pytest.MonkeyPatch) -> Library:
    """The stand-in for the library for the CPU."""
    monkeypatch.setattr(wheels, "CPU", standin)
    return standin


def tags(files: dict[str, bytes], info: str) -> list[str]:
    parsed = BytesParser().parsebytes(files[f"{info}/WHEEL"])
    assert parsed["Root-Is-Purelib"] == "false"
    return parsed.get_all("Tag") or []


def test_the_wheel_is_the_pure_one_and_a_library(dist, small, tmp_path):
    pytest.importorskip("auditwheel")
    path, note = write_cpu_wheel(dist)
    assert path == dist / f"vovnet-7.1-py3-none-{PLATFORM}.whl"
    assert "manylinux_2_" in note
    pure, files = read_wheel(dist / "vovnet-7.1-py3-none-any.whl"), read_wheel(path)
    added = set(files) - set(pure)
    assert {name: files[name] for name in pure if not name.endswith("/WHEEL")} == {
        name: content for name, content in pure.items() if not name.endswith("/WHEEL")
    }
    assert tags(files, INFO) == [f"py3-none-{PLATFORM}"]
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "unpacked")
    root = tmp_path / "unpacked" / "vovnet" / "ops" / "prebuilt"
    build = find_exact(small, NO_GPU, root)
    assert build is not None
    assert {tmp_path / "unpacked" / name for name in added} == {build.path, build.path.with_name("build.json")}
    assert build.left_out == []


def test_the_wheel_for_gpus(dist, tiny, compilers, monkeypatch, tmp_path):
    pytest.importorskip("auditwheel")
    monkeypatch.setattr(wheels, "CUDA", tiny)
    path, _ = write_cuda_wheel(dist, Targets(("8.0",), "8.0"))
    major = (torch.version.cuda or "").partition(".")[0]
    package = f"vovnet_cuda{major}"
    assert path.name == f"{package}-7.1-py3-none-{PLATFORM}.whl"
    files = read_wheel(path)
    described = BytesParser().parsebytes(files[f"{package}-7.1.dist-info/METADATA"])
    assert described["Name"] == f"vovnet-cuda{major}"
    assert described.get_all("Requires-Dist") == ["vovnet==7.1"]
    assert described["Requires-Python"] == ">=3.11"
    assert f"{package}-7.1.dist-info/licenses/LICENSE" in files
    assert tags(files, f"{package}-7.1.dist-info") == [f"py3-none-{PLATFORM}"]
    # Nothing of CUDA or PyTorch travels along.
    assert [name.rpartition("/")[2] for name in files if name.endswith(".so")] == ["vovnet_tiny.so"]


def test_the_command(dist, small, monkeypatch, capsys):
    pytest.importorskip("auditwheel")
    monkeypatch.setattr(sys, "argv", ["build", "--wheel", str(dist)])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert not stop.value.code
    assert f"vovnet-7.1-py3-none-{PLATFORM}.whl (" in capsys.readouterr().out


def test_a_folder_without_a_wheel(tmp_path, dist):
    with pytest.raises(InputError, match="--wheel"):
        write_cpu_wheel(tmp_path / "nowhere")
    shutil.copy(dist / "vovnet-7.1-py3-none-any.whl", dist / "vovnet-7.2-py3-none-any.whl")
    with pytest.raises(InputError, match=r"vovnet-7.2-py3-none-any.whl"):
        write_cpu_wheel(dist)


def test_a_wheel_of_other_sources(dist, small):
    path = dist / "vovnet-7.1-py3-none-any.whl"
    files = read_wheel(path)
    files["vovnet/ops/csrc/torch_checks.h"] += b"\n"
    write_wheel(path, files)
    with pytest.raises(InputError, match=r"torch_checks\.h differs"):
        write_cpu_wheel(dist)


def test_a_library_with_warnings_is_refused(dist, small):
    (small.folder / "careless.cpp").write_text("void careless() { int unused; }\n")
    with pytest.raises(BuildError, match="warnings"):
        write_cpu_wheel(dist)
    assert len(list(dist.iterdir())) == 1


def test_a_compiler_that_does_not_know_bfloat16(dist, small, cxx):
    cxx('case "$*" in *-mavx512bf16*) echo "error: unrecognized option" >&2; exit 1;; esac\nexec $real "$@"')
    with pytest.raises(BuildError, match=r"isa_avx512_bf16\.cpp"):
        write_cpu_wheel(dist)


def test_another_processor(standin, tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(BuildError, match="aarch64"):
        compile_portable(standin, NO_GPU, tmp_path)


def test_auditwheel_is_missing(dist, small, monkeypatch):
    monkeypatch.setattr(platform_tags.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"auditwheel: pip install"):
        write_cpu_wheel(dist)
    assert len(list(dist.iterdir())) == 1, "a wheel that was not checked does not stay"


# Functions of newer systems: those that libtorch's headers and libstdc++ make our sources call.
NEW = """
#include <dlfcn.h>
#include <memory>
#include <sstream>
#include <string>
void* find(const char* name) { return dlsym(RTLD_DEFAULT, name); }
std::string text(int n) { std::stringstream out; out << n; return std::move(out).str(); }
int* many(unsigned long n) { return new int[n]; }
std::shared_ptr<int> shared(const std::shared_ptr<int>& p) { return p; }
"""


def wheel_of(library: Path, folder: Path) -> Path:
    path = folder / "made-1.0-py3-none-linux_x86_64.whl"
    files = {
        "made/library.so": library.read_bytes(),
        "made-1.0.dist-info/METADATA": b"Metadata-Version: 2.4\nName: made\nVersion: 1.0\n",
        "made-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-linux_x86_64\n",
    }
    write_wheel(path, files)
    return path


def test_a_portable_library_needs_nothing_new(standin, tmp_path):
    """The same source, compiled for this machine, needs more than the tag allows."""
    pytest.importorskip("auditwheel")
    (standin.folder / "new.cpp").write_text(NEW)
    build = compile_portable(standin, NO_GPU, tmp_path)
    assert "manylinux_2_" in audit(wheel_of(build.path, tmp_path), PLATFORM)
    plain = tmp_path / "plain.so"
    source = standin.folder / "new.cpp"
    subprocess.run(["g++", "-std=c++20", "-O2", "-shared", "-fPIC", str(source), "-o", str(plain)], check=True)
    if "GLIBC_2.34" not in subprocess.run(["objdump", "-T", plain], capture_output=True, text=True, check=True).stdout:
        pytest.skip("this system is itself too old to make a library that is too new")
    with pytest.raises(BuildError, match=r"GLIBC_2\.34"):
        audit(wheel_of(plain, tmp_path), PLATFORM)


def test_a_library_that_torch_does_not_bring(tmp_path):
    pytest.importorskip("auditwheel")
    (tmp_path / "a.cpp").write_text("int other() { return 1; }\n")
    (tmp_path / "b.cpp").write_text("int other(); int ours() { return other(); }\n")
    compiler = ["g++", "-shared", "-fPIC"]
    subprocess.run([*compiler, "a.cpp", "-o", "libother.so"], check=True, cwd=tmp_path)
    subprocess.run([*compiler, "b.cpp", "-L.", "-lother", "-o", "b.so"], check=True, cwd=tmp_path)
    with pytest.raises(BuildError, match=r"libother\.so, which PyTorch does not bring"):
        audit(wheel_of(tmp_path / "b.so", tmp_path), PLATFORM)


def test_the_key_is_that_of_this_machine(standin):
    """What an installation looks for must not depend on how the library was compiled."""
    assert replace(standin, portable=False).key(None) == standin.key(None)
    portable = replace(standin, portable=True)
    assert set(portable.sources) - set(standin.sources) == set((CSRC / "portable").glob("*.cpp"))
    assert any("version-script" in flag for flag in portable.link_flags)
    assert standin.link_flags == ("-shared", "-Wl,-z,defs")
