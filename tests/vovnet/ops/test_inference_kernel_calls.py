"""Calls of the compiled convolutions from threads, processes and compilers, with maps of any size."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_calls import METHODS, convolve, fits, some_map, some_weight
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vovnet.ops.algorithms import BFLOAT16, DIRECT, WINOGRAD_2, WINOGRAD_4, WINOGRAD_STRIDED
from vovnet.ops.build import loader
from vovnet.ops.inference import block_step, pool_step

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Skip the tests if nothing can be compiled."""
    if not loader.cpu_operators():
        pytest.skip("needs the compiled operators for the CPU")


@pytest.fixture
def threads() -> Any:
    """Provide ``torch.set_num_threads``, and restore the number at the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# ---- Threads

# x, weight: many strips; few tiles and many weights; one row; more than the caches hold
WORK: dict[str, Any] = {
    "large": ((2, 64, 40, 50), (64, 64, 3, 3)),
    "small": ((1, 256, 7, 7), (160, 256, 3, 3)),
    "pointwise": ((1, 768, 20, 24), (256, 768, 1, 1)),
    "linear": ((3, 64, 7, 7), (256, 64, 7, 7)),
    "streamed": ((1, 32, 130, 140), (64, 32, 3, 3)),
}


def results(name: str) -> dict[int, Tensor]:
    """This holds for every method in both precisions."""
    shape, kernel = WORK[name]
    x, weight = some_map(*shape), some_weight(*kernel)
    padding = (0, 0) if name == "linear" else None
    usable = [number for number in METHODS.values() if fits(number, weight)]
    floats = {method: convolve(x, weight, padding=padding, method=method) for method in usable}
    x, usable = x.bfloat16(), [method + BFLOAT16 for method in usable]
    return floats | {method: convolve(x, weight, padding=padding, method=method) for method in usable}


@pytest.mark.parametrize("name", WORK)
def test_results_repeat_whatever_the_threads(name: str, threads: Any) -> None:
    """Results are equal to the last bit."""
    threads(1)
    alone = results(name)
    for count in (1, 2, 5):
        threads(count)
        got, again = results(name), results(name)
        for method, out in got.items():
            assert torch.equal(out, again[method])
            assert torch.equal(out, alone[method])


def test_several_threads_at_once(threads: Any) -> None:
    threads(2)
    expected = {name: results(name) for name in WORK}

    def work(name: str) -> bool:
        torch.set_num_threads(2)
        return all(torch.equal(out, expected[name][method]) for method, out in results(name).items())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, [*WORK, *WORK, *WORK]))


def in_python(code: str, timeout: float = 120) -> str:
    """Return the output of a new process in which ``convolve``, ``x``, ``weight`` and ``expected`` are defined."""
    prelude = """
        import os, resource, signal, sys, threading
        import torch
        import torch.nn.functional as F
        from packed_calls import convolve, some_map, some_weight
        from vovnet.ops.build import loader
        assert loader.cpu_operators()
        x, weight = some_map(1, 64, 40, 50), some_weight(64, 64, 3, 3)
    """
    code = textwrap.dedent(prelude) + textwrap.dedent(code)
    path = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests' / 'helpers')!r}]\n"
    done = subprocess.run(
        [sys.executable, "-c", path + code], capture_output=True, text=True, check=False, timeout=timeout
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_as_many_threads_as_torch_is_told() -> None:
    """The system counts the threads of a process that computes nothing else."""
    counts = in_python("""
        for threads in (1, 3, 1, 5):
            torch.set_num_threads(threads)
            convolve(x, weight)
            print(len(os.listdir("/proc/self/task")))
    """)
    one, three, still, five = map(int, counts.split())
    assert (three - one, still - one, five - one) == (2, 2, 4)


# ---- fork()

FORK = """
    def child_computes():
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # ends a child that waits for ever
            out = convolve(x, weight)
            os._exit(0 if torch.allclose(out, expected, atol=1e-4) else 1)
        status = os.waitpid(child, 0)[1]
        assert status == 0, status
"""


def test_a_child_of_fork_computes() -> None:
    in_python(f"""
        torch.set_num_threads(2)
        expected = convolve(x, weight)
        {textwrap.indent(textwrap.dedent(FORK), " " * 8).strip()}
        for _ in range(3):
            child_computes()
        assert torch.equal(convolve(x, weight), expected)
    """)


def test_a_child_of_a_process_that_computed_otherwise() -> None:
    """The parent has used PyTorch's threads, but not the kernels."""
    in_python(f"""
        torch.set_num_threads(2)
        expected = F.conv2d(x, weight, padding=1)
        {textwrap.indent(textwrap.dedent(FORK), " " * 8).strip()}
        child_computes()
    """)


def test_children_while_another_thread_computes() -> None:
    in_python(f"""
        torch.set_num_threads(2)
        expected = convolve(x, weight)
        {textwrap.indent(textwrap.dedent(FORK), " " * 8).strip()}
        done = threading.Event()
        def compute():
            while not done.is_set():
                convolve(x, weight)
        busy = threading.Thread(target=compute)
        busy.start()
        for _ in range(5):
            child_computes()
        done.set()
        busy.join()
    """)


class Convolved(Dataset[Tensor]):
    """A dataset whose maps the workers compute."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return convolve(some_map(1, 64, 20, 20, seed=index), some_weight(64, 64, 3, 3), method=WINOGRAD_4)


def test_in_workers_of_a_loader(threads: Any) -> None:
    threads(2)
    data = Convolved()
    expected = [data[i] for i in range(len(data))]
    for got, wanted in zip(DataLoader(data, batch_size=None, num_workers=2, timeout=100), expected, strict=True):
        assert torch.equal(got, wanted)


# ---- Compilers; opcheck is in test_packed.py


@pytest.mark.parametrize("bit", [0, BFLOAT16])
def test_torch_compile_traces_it(bit: int) -> None:
    weight, bias = some_weight(24, 32, 3, 3), some_weight(24, 1).flatten()
    ready = torch.ops.vovnet.pack_conv(weight, WINOGRAD_2 + bit)
    arguments = (bias, None, ready, [1, 1], [1, 1], True, WINOGRAD_2 + bit)

    def model(x: Tensor) -> Tensor:
        return torch.ops.vovnet.packed_conv(x * 2, weight, *arguments) + 1

    compiled_model = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in ((2, 32, 9, 7), (1, 32, 6, 8)):
        x = some_map(*size).to(torch.bfloat16 if bit else torch.float32)
        assert torch.equal(compiled_model(x), model(x))


def test_results_outlive_what_made_them() -> None:
    """The pool owns the results' memory, and gets it back when the last view ends."""
    weight = some_weight(64, 64, 3, 3)
    kept = [convolve(some_map(1, 64, 60, 70, seed=i), weight)[:, 1::2] for i in range(4)]
    again = [convolve(some_map(1, 64, 60, 70, seed=i), weight)[:, 1::2] for i in range(4)]
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))
    assert len({part.data_ptr() for part in kept + again}) == 8


# ---- Sizes


def test_more_pixels_than_there_is_memory_for() -> None:
    """The expanded image itself takes no memory."""
    for count in (2**34, 2**45, 2**55):
        with pytest.raises(
            RuntimeError, match=r"vovnet::packed_conv: expected \d+ MiB of memory, more than the system has left"
        ):
            convolve(torch.zeros(1, 3, 4, 4).expand(count, -1, -1, -1), some_weight(16, 3, 3, 3))


def test_memory_that_ends() -> None:
    """The error says how much memory is missing, and a smaller call works afterwards."""
    in_python("""
        expected = convolve(x, weight)
        limit = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(open("/proc/self/statm").read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + 2**28, limit[1]))
        try:
            convolve(torch.zeros(1, 3, 64, 64).expand(2**12, -1, -1, -1), some_weight(64, 3, 3, 3))
        except RuntimeError as error:
            assert "vovnet::packed_conv: expected 4096 MiB of memory" in str(error), error
        else:
            raise AssertionError("no error")
        assert torch.equal(convolve(x, weight), expected)
    """)


def test_a_map_of_more_elements_than_32_bits_count(tmp_path: Path) -> None:
    """The map is a sparse file; only the pixels at its corners are touched."""
    side, channels = 12_000, 16
    count = side * side * channels
    assert count > 2**31
    path = tmp_path / "map"
    path.touch()
    try:
        os.truncate(path, count * 4)
        memory = torch.from_file(str(path), shared=True, size=count)
    except (OSError, RuntimeError) as error:
        pytest.skip(f"needs addresses for 9 GB: {error}")
    x = memory.view(1, side, side, channels).permute(0, 3, 1, 2)
    corners = some_map(1, channels, 2, 2)
    x[..., :: side - 1, :: side - 1] = corners
    weight = some_weight(24, channels, 1, 1)
    assert torch.equal(convolve(x, weight, stride=(side - 1, side - 1)), convolve(corners, weight))


def test_no_image_at_all() -> None:
    weight = some_weight(24, 32, 3, 3)
    for bit in (0, BFLOAT16):
        x = some_map(0, 32, 9, 8).to(torch.bfloat16 if bit else torch.float32)
        for method in METHODS.values():
            out = convolve(x, weight, method=method + bit)
            size = (5, 4) if method == WINOGRAD_STRIDED else (9, 8)
            assert (out.shape, out.dtype) == ((0, 24, *size), x.dtype)
    shapes = [(16, 32, 3, 3), (24, 16, 3, 3), (32, 32 + 16 + 24, 1, 1)]
    weights = [torch.zeros(shape) for shape in shapes]
    ready = [torch.ops.vovnet.pack_conv(w, DIRECT) for w in weights]
    biases = [torch.zeros(shape[0]) for shape in shapes]
    steps = [*pool_step([3, 3], [2, 2], [0, 0], True, True), *block_step(3, True, False), *block_step(3, True, True)]
    arguments = (weights * 2, biases * 2, ready * 2, [0] * 6, steps)
    maps = torch.ops.vovnet.packed_chain(some_map(0, 32, 9, 8), *arguments)
    assert [one.shape for one in maps] == [(0, 32, 4, 4), (0, 32, 4, 4)]
