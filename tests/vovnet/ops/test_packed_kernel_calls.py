"""How the compiled convolutions can be called: threads, processes, compilers, and what they refuse."""

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
from packed_calls import METHODS, channels_last, convolve, fits, some_map, some_weight
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vovnet.ops import native
from vovnet.ops.plan import BFLOAT16, DIRECT, STRASSEN, WINOGRAD_2, WINOGRAD_4

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Skips where nothing can be compiled."""
    if not native.cpu_operators():
        pytest.skip("needs the compiled operators for the CPU")


@pytest.fixture
def threads() -> Any:
    """``torch.set_num_threads``, taken back at the end."""
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
    """By every method, in both precisions."""
    shape, kernel = WORK[name]
    x, weight = some_map(*shape), some_weight(*kernel)
    padding = (0, 0) if name == "linear" else None
    usable = [number for number in METHODS.values() if fits(number, weight)]
    floats = {method: convolve(x, weight, padding=padding, method=method) for method in usable}
    x, usable = x.bfloat16(), [method + BFLOAT16 for method in usable]
    return floats | {method: convolve(x, weight, padding=padding, method=method) for method in usable}


@pytest.mark.parametrize("name", WORK)
def test_results_repeat_whatever_the_threads(name: str, threads: Any) -> None:
    """To the last bit; Strassen's product, whose pairs of rows follow from the threads, only with as many of them."""
    threads(1)
    alone = results(name)
    for count in (1, 2, 5):
        threads(count)
        got, again = results(name), results(name)
        for method, out in got.items():
            assert torch.equal(out, again[method])
            if method & ~BFLOAT16 == STRASSEN:
                torch.testing.assert_close(out, alone[method], rtol=0, atol=0.1 if method & BFLOAT16 else 1e-5)
            else:
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
    """What a new process prints; ``convolve``, ``x``, ``weight`` and ``expected`` are there."""
    prelude = """
        import os, resource, signal, sys, threading
        import torch
        import torch.nn.functional as F
        from packed_calls import convolve, some_map, some_weight
        from vovnet.ops import native
        assert native.cpu_operators()
        x, weight = some_map(1, 64, 40, 50), some_weight(64, 64, 3, 3)
    """
    code = textwrap.dedent(prelude) + textwrap.dedent(code)
    path = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
    done = subprocess.run(
        [sys.executable, "-c", path + code], capture_output=True, text=True, check=False, timeout=timeout
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_as_many_threads_as_torch_is_told() -> None:
    """Counted by the system, in a process that has not computed anything else."""
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
            torch.set_num_threads(1)  # as everything else of PyTorch's needs in such a child
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
    """The parent used PyTorch's threads, but never the kernels."""
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
    """Maps that workers compute."""

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
    """Their memory is the pool's, and comes back when the last view ends."""
    weight = some_weight(64, 64, 3, 3)
    kept = [convolve(some_map(1, 64, 60, 70, seed=i), weight)[:, 1::2] for i in range(4)]
    again = [convolve(some_map(1, 64, 60, 70, seed=i), weight)[:, 1::2] for i in range(4)]
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))
    assert len({part.data_ptr() for part in kept + again}) == 8


# ---- What is refused


def refused(method: int = DIRECT, **changes: Any) -> str:
    """The text of the error of a call with some arguments changed."""
    weight = some_weight(24, 32, 3, 3)
    known = method in {number + bit for number in METHODS.values() for bit in (0, BFLOAT16)}
    arguments = {
        "x": some_map(2, 32, 9, 8),
        "weight": weight,
        "bias": torch.zeros(24),
        "residual": None,
        "packed": torch.ops.vovnet.pack_conv(weight, method) if known else torch.zeros(1),
        "stride": [1, 1],
        "padding": [1, 1],
        "relu": True,
        "method": method,
    }
    with pytest.raises(RuntimeError, match="vovnet::packed_conv: ") as caught:
        torch.ops.vovnet.packed_conv(*(arguments | changes).values())
    return str(caught.value).splitlines()[0]


def last(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return channels_last(torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 32, 9, 8)}, r"x: expected channels-last memory (tensor.contiguous("),
        ({"x": last(2, 32, 9, 18)[..., ::2]}, "x: expected channels-last memory"),
        ({"x": last(1, 32, 9, 8).expand(2**40, -1, -1, -1)}, "x: expected channels-last memory"),
        ({"x": last(2, 32, 9, 8, dtype=torch.float64)}, "x: expected float32, got float64"),
        ({"x": last(2, 32, 9, 8, dtype=torch.bfloat16)}, "x: expected float32, got bfloat16"),
        ({"method": BFLOAT16}, "x: expected bfloat16, got float32"),
        ({"x": last(2, 31, 9, 8)}, "x: expected (N, 32, H, W), as the weight has channels, got (2, 31, 9, 8)"),
        ({"x": torch.zeros(32, 9, 8)}, "x: expected (N, 32, H, W), as the weight has channels, got (32, 9, 8)"),
        ({"x": last(2, 32, 1, 8), "padding": [0, 0]}, "x: expected a map that holds the kernel (3, 3), got (2, 32, 1,"),
        (
            {"weight": torch.zeros(24, 32, 9)},
            "weight: expected (out channels, channels, height, width), got (24, 32, 9)",
        ),
        ({"weight": torch.zeros(0, 32, 3, 3)}, "weight: expected (out channels, channels, height, width), got (0, 32,"),
        ({"weight": torch.zeros(24, 32, 3, 3).double()}, "weight: expected float32, got float64"),
        ({"weight": torch.zeros(24, 64, 3, 3)}, "packed: expected what pack_conv makes of this weight for method 0, "),
        ({"bias": torch.zeros(25)}, "bias: expected a number an output channel, (24,), got (25,)"),
        ({"bias": torch.zeros(24).bfloat16()}, "bias: expected float32, got bfloat16"),
        ({"bias": torch.zeros(48)[::2]}, "bias: expected contiguous memory"),
        ({"packed": torch.zeros(7)}, "packed: expected what pack_conv makes of this weight for method 0, "),
        ({"packed": torch.zeros(7).double()}, "packed: expected float32, got float64"),
        ({"packed": torch.zeros(9216 * 2)[::2]}, "packed: expected contiguous memory"),
        ({"residual": last(2, 24, 9, 8, dtype=torch.float64)}, "residual: expected float32, got float64"),
        ({"residual": torch.zeros(2, 24, 9, 8)}, "residual: expected channels-last memory"),
        ({"residual": last(2, 25, 9, 8)}, "residual: expected (2, 24, H, W), got (2, 25, 9, 8)"),
        ({"residual": last(1, 24, 9, 8)}, "residual: expected (2, 24, H, W), got (1, 24, 9, 8)"),
        ({"residual": last(2, 24, 0, 8)}, "residual: expected (2, 24, H, W), got (2, 24, 0, 8)"),
        ({"residual": last(2, 24, 9, 8), "method": WINOGRAD_2}, "residual: expected none with Winograd's transform"),
        ({"stride": [2, 1], "method": WINOGRAD_4}, "stride: expected 1 for Winograd's transform, got (2, 1)"),
        ({"stride": [0, 1]}, "stride: expected two steps of at least 1, got (0, 1)"),
        ({"stride": [1]}, "stride: expected two steps of at least 1, got (1,)"),
        ({"stride": [1, 1, 1]}, "stride: expected two steps of at least 1, got (1, 1, 1)"),
        ({"padding": [-1, 0]}, "padding: expected two numbers of at least 0, got (-1, 0)"),
        ({"padding": [1, 1, 1]}, "padding: expected two numbers of at least 0, got (1, 1, 1)"),
        ({"padding": [2**62, 1]}, ""),
        ({"padding": [2**40, 2**40]}, "MiB of memory"),
        ({"method": 4}, "method: expected 0 to 3, and 16 more for products of bfloat16 numbers, got 4"),
        ({"method": -1}, "method: expected 0 to 3, and 16 more for products of bfloat16 numbers, got -1"),
        ({"method": 2**32}, "method: expected 0 to 3, and 16 more for products of bfloat16 numbers, got 4294967296"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    assert message in refused(**changes)


@pytest.mark.parametrize(
    ("weight", "method", "message"),
    [
        (torch.zeros(24, 32, 3, 3).transpose(0, 1), DIRECT, "weight: expected contiguous memory"),
        (torch.zeros(24, 32, 3, 3).bfloat16(), DIRECT, "weight: expected float32, got bfloat16"),
        (torch.zeros(24, 32), DIRECT, "weight: expected (out channels, channels, height, width), got (24, 32)"),
        (
            torch.zeros(24, 0, 3, 3),
            DIRECT,
            "weight: expected (out channels, channels, height, width), got (24, 0, 3, 3)",
        ),
        (torch.zeros(24, 32, 3, 3), 7, "method: expected 0 to 3, and 16 more for products of bfloat16 numbers, got 7"),
        (torch.zeros(24, 15, 1, 1), STRASSEN, "weight: expected 16 or more channels for Strassen's product"),
        (torch.zeros(24, 15, 3, 3), WINOGRAD_2, "weight: expected a 3x3 kernel and 16 or more channels for Winograd's"),
        (torch.zeros(24, 32, 3, 1), WINOGRAD_4, "weight: expected a 3x3 kernel and 16 or more channels for Winograd's"),
        (torch.zeros(24, 32, 7, 7), WINOGRAD_4, "weight: expected a 3x3 kernel and 16 or more channels for Winograd's"),
    ],
)
def test_weights_that_are_not_packed(weight: Tensor, method: int, message: str) -> None:
    with pytest.raises(RuntimeError, match="vovnet::pack_conv: ") as caught:
        torch.ops.vovnet.pack_conv(weight, method)
    assert message in str(caught.value)


BLOCK = [(16, 32, 3, 3), (24, 16, 3, 3), (32, 32 + 16 + 24, 1, 1)]


@pytest.mark.parametrize(
    ("shapes", "changes", "message"),
    [
        (
            BLOCK,
            {"biases": []},
            "weights: expected 2 to 16, and a bias, a packed weight and a method for each, got 3, 0,",
        ),
        (BLOCK[:1], {}, "weights: expected 2 to 16, and a bias, a packed weight and a method for each, got 1, 1, 1, 1"),
        ([BLOCK[0]] * 17, {}, "weights: expected 2 to 16, and a bias, a packed weight and a method for each, got 17,"),
        ([(16, 24, 3, 3), *BLOCK[1:]], {}, "weights[0]: expected (out channels, 32, 3, 3), got (16, 24, 3, 3)"),
        ([BLOCK[0], (24, 16, 1, 1), BLOCK[2]], {}, "weights[1]: expected (out channels, 16, 3, 3), got (24, 16, 1, 1)"),
        ([*BLOCK[:2], (32, 70, 1, 1)], {}, "weights[2]: expected (out channels, 72, 1, 1), got (32, 70, 1, 1)"),
        (
            [(8, 32, 3, 3), (8, 8, 3, 3), (32, 48, 1, 1)],
            {},
            "weights[1]: expected 16 or more channels, got (8, 8, 3, 3)",
        ),
        (BLOCK, {"methods": [0, 16, 0]}, "s[1]: expected all of one precision, got 16"),
        ([*BLOCK[:2], (40, 72, 1, 1)], {}, "identity: expected False, or as many channels as the result's 40"),
        (BLOCK, {"x": torch.zeros(2, 32, 9, 8)}, "x: expected channels-last memory"),
        (BLOCK, {"x": torch.zeros(32, 9, 8)}, "x: expected a feature map (N, C, H, W), got shape (32, 9, 8)"),
        (BLOCK, {"x": last(2, 32, 9, 8).bfloat16()}, "x: expected float32, got bfloat16"),
    ],
)
def test_bad_blocks(shapes: list[tuple[int, ...]], changes: dict[str, Any], message: str) -> None:
    weights = [torch.zeros(shape) for shape in shapes]
    methods = changes.get("methods", [0] * len(shapes))
    arguments = {
        "x": last(2, 32, 9, 8),
        "weights": weights,
        "biases": [torch.zeros(shape[0]) for shape in shapes],
        "packed": [torch.ops.vovnet.pack_conv(weight, method) for weight, method in zip(weights, methods, strict=True)],
        "methods": methods,
    }
    with pytest.raises(RuntimeError, match="vovnet::packed_osa_block: ") as caught:
        torch.ops.vovnet.packed_osa_block(*(arguments | changes).values(), True)
    assert message in str(caught.value)


def test_tensors_without_data_get_results_without_data() -> None:
    x, weight = some_map(2, 32, 9, 8).to("meta"), some_weight(24, 32, 3, 3).to("meta")
    out = torch.ops.vovnet.packed_conv(x, weight, None, None, weight, [1, 1], [1, 1], True, DIRECT)
    assert (out.device.type, out.shape) == ("meta", (2, 24, 9, 8))
    with pytest.raises(NotImplementedError):
        torch.ops.vovnet.pack_conv(weight, DIRECT)


# ---- Sizes


def test_more_pixels_than_there_is_memory_for() -> None:
    """An expanded picture takes none itself."""
    for count in (2**34, 2**45, 2**55):
        with pytest.raises(
            RuntimeError, match=r"vovnet::packed_conv: expected \d+ MiB of memory, the system has not so"
        ):
            convolve(torch.zeros(1, 3, 4, 4).expand(count, -1, -1, -1), some_weight(16, 3, 3, 3))


def test_memory_that_ends() -> None:
    """The error says so, and what fits is computed afterwards."""
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


@pytest.mark.parametrize("method", ["direct", "Strassen"])
def test_a_map_of_more_elements_than_32_bits_count(method: str, tmp_path: Path) -> None:
    """In a file with holes: of each corner a pixel is touched."""
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
    expected = convolve(corners, weight, method=METHODS[method])
    assert torch.equal(convolve(x, weight, stride=(side - 1, side - 1), method=METHODS[method]), expected)


def test_no_picture_at_all() -> None:
    weight = some_weight(24, 32, 3, 3)
    for bit in (0, BFLOAT16):
        x = last(0, 32, 9, 8, dtype=torch.bfloat16 if bit else torch.float32)
        for method in METHODS.values():
            out = convolve(x, weight, method=method + bit)
            assert (out.shape, out.dtype) == ((0, 24, 9, 8), x.dtype)
    weights = [torch.zeros(shape) for shape in BLOCK]
    ready = [torch.ops.vovnet.pack_conv(w, DIRECT) for w in weights]
    biases = [torch.zeros(shape[0]) for shape in BLOCK]
    assert torch.ops.vovnet.packed_osa_block(last(0, 32, 9, 8), weights, biases, ready, [0] * 3, True).shape[0] == 0
