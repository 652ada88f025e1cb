"""Loading the operators for a GPU; if they cannot be built or loaded, there is one warning or one error."""

from __future__ import annotations

import multiprocessing
import os
import warnings

import pytest
import torch
from native_answers import answers_of_a_worker, forbid, one_warning, required

from vovnet.errors import InputError
from vovnet.ops.build import cache, loader
from vovnet.ops.build.cache import build_once, find_builds, library_folder
from vovnet.ops.build.compiler import compile_library
from vovnet.ops.build.loader import available
from vovnet.ops.build.sources import Targets, targets_for
from vovnet.ops.build.toolchain import BuildError

GPU = torch.device("cuda:0")
TARGETS = Targets(("8.0",))


def on_the_gpu() -> bool:
    return available(GPU)


@pytest.mark.parametrize("value", ["auto", "off", "require", ""])
def test_tensors_on_the_cpu_start_nothing(tiny, monkeypatch, value):
    monkeypatch.setenv("VOVNET_OPS", value)
    monkeypatch.setattr(loader, "_ensure", forbid)
    assert not available(torch.device("cpu"))
    assert not available(torch.device("meta"))


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_an_unknown_value_is_named(tiny, monkeypatch, device):
    monkeypatch.setenv("VOVNET_OPS", "on")
    with pytest.raises(InputError, match=r"VOVNET_OPS='on': expected one of auto, off, require"):
        available(torch.device(device))


def test_off_is_silent(tiny, gpus, monkeypatch):
    monkeypatch.setenv("VOVNET_OPS", "off")
    monkeypatch.setattr(loader, "_ensure", forbid)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not available(GPU)


def test_first_use_builds_for_the_gpus_that_are_here_and_loads(tiny, gpus, compilers, capfd):
    gpus((8, 0), (12, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert available(GPU)
        assert available(torch.device("cuda:1"))
        assert available(torch.device("cuda"))
    (build,) = find_builds(tiny)
    # 12.1 has no code of its own in our list: it runs 12.0's.
    assert build.targets.binary == ("8.0", "12.0")
    assert loader._loaded == build
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert "compiling" in said[0]
    assert "8.0, 12.0" in said[0]
    assert str(build.path.parent.parent) in said[0]


def test_what_is_built_needs_no_compiler(tiny, gpus, compilers, request, capfd):
    build_once(tiny, TARGETS)
    capfd.readouterr()
    request.getfixturevalue("no_nvcc")
    gpus((8, 6))
    assert available(GPU)
    assert capfd.readouterr().err == ""


def test_a_change_of_the_sources_is_another_library(tiny, gpus, compilers):
    build_once(tiny, TARGETS)
    (tiny.folder / "tiny.cu").write_text((tiny.folder / "tiny.cu").read_text() + "\n// changed\n")
    assert find_builds(tiny) == []


def test_no_compiler(tiny, gpus, no_nvcc, monkeypatch):
    one_warning(on_the_gpu, "nvcc", "PATH", "CUDA toolkit")
    required(monkeypatch, on_the_gpu, "nvcc", "PATH")


def test_no_cxx_compiler(tiny, gpus, compiler, monkeypatch):
    nvcc = compiler("exit 0").path
    monkeypatch.setenv("PATH", f"{nvcc.parent}")
    monkeypatch.delenv("CXX", raising=False)
    one_warning(on_the_gpu, "no C++ compiler", "g++")


def test_a_compiler_that_fails(tiny, gpus, compiler, compilers, monkeypatch):
    fake = compiler('echo "tiny.cu(7): error: identifier undefined"; echo "1 error detected"; exit 2')
    text = one_warning(on_the_gpu, "nvcc failed", "tiny.cu(7): error: identifier undefined")
    assert len(fake.runs()) == 1, "a build that failed is not tried again by the same process"
    log = next(word for word in text.replace(")", " ").split() if word.endswith(".log"))
    with open(log) as file:
        assert "1 error detected" in file.read()
    required(monkeypatch, on_the_gpu, "identifier undefined")
    assert len(fake.runs()) == 2
    assert not [entry for entry in os.listdir(os.path.dirname(log)) if entry.startswith(".building")]


def test_what_a_killed_build_left_is_removed_by_the_next(tiny, gpus, compiler):
    compiler("exit 2")
    killed = library_folder(tiny) / ".building-abcdefgh"
    killed.mkdir(parents=True)
    (killed / "half.o").touch()
    one_warning(on_the_gpu, "nvcc failed")
    assert not killed.exists()


def test_a_compiler_that_cannot_run(tiny, gpus, compiler, monkeypatch):
    fake = compiler("exit 0")
    fake.path.write_text("#!/nowhere/sh\n")
    one_warning(on_the_gpu, "cannot be run", str(fake.path), "CUDA toolkit")


def test_a_compiler_of_another_cuda_release(tiny, gpus, compiler, monkeypatch):
    fake = compiler("exit 0", release="9.2")
    one_warning(on_the_gpu, "CUDA 9.2", f"PyTorch is built for CUDA {torch.version.cuda}", "CUDA_HOME")
    assert fake.runs() == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.setattr(torch.version, "cuda", None), ("built without CUDA",)),
        (lambda m: m.setattr(torch, "__version__", "2.6.0"), ("2.10 or later", "2.6.0", "pip install -U torch")),
    ],
)
def test_a_torch_that_does_not_suffice(tiny, gpus, monkeypatch, change, words):
    change(monkeypatch)
    one_warning(on_the_gpu, *words)
    required(monkeypatch, on_the_gpu, *words)


def test_a_cache_that_cannot_be_written(tiny, gpus, compilers, tmp_path, monkeypatch):
    # Permissions do not stop root, who may run the tests; a file where a folder should be stops everybody.
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file"))
    one_warning(on_the_gpu, "cache folder cannot be written", str(tmp_path / "file"), "TORCH_EXTENSIONS_DIR")
    required(monkeypatch, on_the_gpu, "cache folder cannot be written")


def test_a_cache_on_a_read_only_disk(tiny, gpus, compilers, monkeypatch):
    def mkdir(self, *args, **kwargs):
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(cache.Path, "mkdir", mkdir)
    one_warning(on_the_gpu, "Read-only file system", "TORCH_EXTENSIONS_DIR")


def test_a_library_that_cannot_be_loaded(tiny, gpus, compilers, monkeypatch):
    build = build_once(tiny, TARGETS)
    build.path.write_bytes(b"not a library")
    one_warning(on_the_gpu, "cannot be loaded", f"remove {build.path.parent}")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"library": "vovnet_tiny.so"}'])
def test_half_a_build_is_built_anew(tiny, gpus, compilers, damage):
    folder = build_once(tiny, TARGETS).path.parent
    (folder / "build.json").write_text(damage)
    assert find_builds(tiny) == []
    assert build_once(tiny, TARGETS).kernels


def test_a_gpu_that_is_too_old(tiny, gpus, monkeypatch):
    gpus((7, 0))
    monkeypatch.setattr(loader, "build_once", forbid)
    one_warning(on_the_gpu, "cuda:0", "capability 7.0", "7.5 or later")
    required(monkeypatch, on_the_gpu, "capability 7.0")


def test_an_old_gpu_does_not_spoil_the_other(tiny, gpus, compilers):
    gpus((6, 1), (8, 0))
    one_warning(on_the_gpu, "cuda:0", "6.1")
    assert available(torch.device("cuda:1"))
    assert loader._loaded.targets.binary == ("8.0",)
    assert not available(GPU)


def test_first_use_can_be_any_thread(tiny, gpus, compilers, compiler_runs):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: available(GPU), range(4)))
    assert len(compiler_runs()) == 1


def test_a_worker_builds_nothing(tiny, gpus, compilers, monkeypatch):
    first, second = answers_of_a_worker(on_the_gpu)
    assert first[0] is False
    assert "DataLoader worker" in first[1]
    assert "python -m vovnet.ops.build --cuda" in first[1]
    assert second == (False, "")
    assert find_builds(tiny) == []


def test_a_worker_loads_what_is_built(tiny, gpus, compilers):
    build_once(tiny, TARGETS)
    assert answers_of_a_worker(on_the_gpu) == [(True, ""), (True, "")]


def build_in_a_process(library, barrier, results) -> None:
    barrier.wait()
    results.put(build_once(library, TARGETS).path.is_file())


def test_two_processes_at_once(tiny, compilers, compiler_runs):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=build_in_a_process, args=(tiny, barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert [results.get(), results.get()] == [True, True]
    assert len(compiler_runs()) == 1
    assert len(find_builds(tiny)) == 1


def test_a_builder_that_died_leaves_the_lock_free(tiny, compilers):
    def die(*args):
        os._exit(9)

    context = multiprocessing.get_context("fork")

    def build_and_die():
        cache.compile_library = die
        build_once(tiny, TARGETS)

    process = context.Process(target=build_and_die)
    process.start()
    process.join()
    assert process.exitcode == 9
    assert find_builds(tiny) == []
    assert build_once(tiny, TARGETS).path.is_file()


def as_rank(monkeypatch, rank: int | None) -> None:
    if rank is None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    else:
        monkeypatch.setenv("LOCAL_RANK", str(rank))


def test_the_other_ranks_wait_for_rank_0(tiny, gpus, compilers, no_waiting, monkeypatch):
    builders = []

    def compile_and_note(*args):
        builders.append(os.environ["LOCAL_RANK"])
        return compile_library(*args)

    def rank_0_builds():
        as_rank(monkeypatch, 0)
        build_once(tiny, TARGETS)
        as_rank(monkeypatch, 3)

    monkeypatch.setattr(cache, "compile_library", compile_and_note)
    no_waiting(rank_0_builds)
    as_rank(monkeypatch, 3)
    assert available(GPU)
    assert builders == ["0"]


def test_the_other_ranks_fail_when_rank_0_fails(tiny, gpus, compilers, compiler, no_waiting, monkeypatch):
    fake = compiler('echo "tiny.cu: error: broken"; exit 1')

    def rank_0_fails():
        as_rank(monkeypatch, 0)
        with pytest.raises(BuildError, match="broken"):
            build_once(tiny, TARGETS)
        as_rank(monkeypatch, 1)

    no_waiting(rank_0_fails)
    as_rank(monkeypatch, 1)
    one_warning(on_the_gpu, "local rank 0 could not build", "tiny.cu: error: broken")
    assert len(fake.runs()) == 1


def test_an_earlier_launch_that_failed_is_no_answer(tiny, gpus, compilers, no_waiting, monkeypatch):
    def fail(*args):
        raise BuildError("an earlier failure")

    monkeypatch.setattr(cache, "compile_library", fail)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "earlier")
    with pytest.raises(BuildError, match="an earlier failure"):
        build_once(tiny, TARGETS)
    monkeypatch.setattr(cache, "compile_library", compile_library)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "now")
    as_rank(monkeypatch, 1)

    def rank_0_builds():
        as_rank(monkeypatch, 0)
        build_once(tiny, TARGETS)
        as_rank(monkeypatch, 1)

    no_waiting(rank_0_builds)
    assert available(GPU)


def test_a_rank_0_that_never_begins_is_replaced(tiny, gpus, compilers, no_waiting, monkeypatch):
    monkeypatch.setattr(cache, "PATIENCE_SECONDS", -1.0)
    no_waiting(forbid)
    as_rank(monkeypatch, 1)
    assert available(GPU)


def test_ranks_without_a_compiler_do_not_wait(tiny, gpus, no_nvcc, no_waiting, monkeypatch):
    no_waiting(forbid)
    as_rank(monkeypatch, 1)
    one_warning(on_the_gpu, "nvcc")


def test_targets_for_gpus():
    assert targets_for({(7, 5)}) == Targets(("7.5",))
    assert targets_for({(9, 0), (8, 0)}) == Targets(("8.0", "9.0"))
    # Between two that we list, and later than all: the nearest older one, and its PTX.
    assert targets_for({(8, 7)}) == Targets(("8.6",), "8.6")
    assert targets_for({(13, 0), (8, 0)}) == Targets(("8.0", "12.0"), "12.0")


@pytest.mark.parametrize(
    ("targets", "capability", "served"),
    [
        (Targets(("8.0",)), (8, 6), True),
        (Targets(("8.6",)), (8, 0), False),
        (Targets(("8.6",)), (9, 0), False),
        (Targets(("8.0",), "8.0"), (9, 0), True),
        (Targets(("12.0",), "12.0"), (10, 0), False),
        (Targets(("7.5", "10.0")), (10, 3), True),
    ],
)
def test_which_gpus_a_library_serves(targets, capability, served):
    assert targets.serve(capability) is served


def test_state_says_what_is_built(tiny, compilers, monkeypatch):
    assert dict(loader.state())["CUDA operators"].startswith("not built yet (")
    assert dict(loader.state())["VOVNET_OPS"] == "auto (the default)"
    build_once(tiny, Targets(("8.0",), "8.0"))
    monkeypatch.setenv("VOVNET_OPS", "never")
    rows = dict(loader.state())
    assert rows["CUDA operators"].startswith("built for 8.0 and PTX (")
    assert "unknown" in rows["VOVNET_OPS"]
    assert rows["cache folder"] == str(cache.cache_root())
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "without CUDA" in dict(loader.state())["CUDA operators"]


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert cache.cache_root() == tmp_path / "vovnet"
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_root() == tmp_path / "xdg" / "torch_extensions" / "vovnet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.cache_root() == tmp_path / "home" / ".cache" / "torch_extensions" / "vovnet"
