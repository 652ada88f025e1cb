"""What the compiled convolutions compute, against ``F.conv2d`` in float64, on every instruction set of the processor.

How they can be called is in ``test_packed_kernel_calls.py``, what they refuse in ``test_packed_kernel_refusals.py``.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from packed_calls import METHODS, channels_last, convolve, fits, some_map, some_weight, usual_stride
from torch import Tensor

from vovnet.ops.algorithms import BFLOAT16, DIRECT, FLOAT_PRODUCTS, WINOGRAD_2, WINOGRAD_4, WINOGRAD_STRIDED
from vovnet.ops.build import loader
from vovnet.ops.inference import block_step, conv_step, pool_step

TOLERANCE = {"direct": 5e-6, "F(2x2)": 1e-5, "F(4x4)": 5e-5, "F(3x3) of stride 2": 1e-5}
"""The largest error in float32, for results with a variance of 1."""
TILE = {"F(2x2)": 2, "F(4x4)": 4, "F(3x3) of stride 2": 3}
"""Side of a tile in pixels of the result."""
WINOGRAD = [pytest.param(name, id=name) for name in TILE]


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Skip the tests if nothing can be compiled."""
    if not loader.cpu_operators():
        pytest.skip("needs the compiled operators for the CPU")


@pytest.mark.parametrize("name", ["plain", "avx2"])
def test_all_of_this_with_a_lower_instruction_set(name: str) -> None:
    """Each instruction set needs a process of its own, because VOVNET_ISA is read once."""
    used = torch.ops.vovnet._cpu_instruction_set()
    if loader.ISAS.index(name) >= loader.ISAS.index(used):
        pytest.skip(f"this process uses {used}")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    root = Path(__file__).parents[3]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "VOVNET_ISA": name}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


# ---- Shapes

# x, weight, stride, padding
SHAPES: dict[str, Any] = {
    "3x3": ((2, 32, 13, 10), (40, 32, 3, 3), (1, 1), (1, 1)),
    "3x3, many channels": ((1, 320, 9, 7), (65, 320, 3, 3), (1, 1), (1, 1)),
    "3x3, odd channels": ((1, 37, 8, 9), (19, 37, 3, 3), (1, 1), (1, 1)),
    "3x3, no padding": ((1, 16, 9, 8), (8, 16, 3, 3), (1, 1), (0, 0)),
    "3x3, wide padding": ((1, 16, 5, 4), (8, 16, 3, 3), (1, 1), (4, 3)),
    "3x3, one pixel": ((3, 24, 1, 1), (33, 24, 3, 3), (1, 1), (1, 1)),
    "3x3, one line": ((1, 24, 1, 17), (33, 24, 3, 3), (1, 1), (1, 1)),
    "3x3, two steps": ((2, 48, 11, 12), (70, 48, 3, 3), (2, 2), (1, 1)),
    "3x3, two steps, even sizes": ((2, 64, 16, 26), (70, 64, 3, 3), (2, 2), (1, 1)),
    "3x3, two steps, odd channels": ((1, 37, 15, 8), (19, 37, 3, 3), (2, 2), (1, 1)),
    "3x3, two steps, no padding": ((1, 16, 9, 8), (8, 16, 3, 3), (2, 2), (0, 0)),
    "3x3, two steps, wide padding": ((1, 16, 5, 4), (8, 16, 3, 3), (2, 2), (4, 3)),
    "3x3, two steps, one pixel": ((3, 24, 1, 1), (33, 24, 3, 3), (2, 2), (1, 1)),
    "stem": ((2, 3, 19, 22), (64, 3, 3, 3), (2, 2), (1, 1)),
    "image of 15": ((1, 15, 9, 9), (5, 15, 5, 5), (1, 1), (2, 2)),
    "grey image": ((1, 1, 9, 9), (5, 1, 7, 7), (2, 2), (3, 3)),
    "1x1": ((2, 80, 7, 6), (50, 80, 1, 1), (1, 1), (0, 0)),
    "1x1, one output": ((1, 16, 5, 5), (1, 16, 1, 1), (1, 1), (0, 0)),
    "1x1, many channels": ((1, 1100, 12, 11), (300, 1100, 1, 1), (1, 1), (0, 0)),
    "linear": ((3, 64, 7, 7), (100, 64, 7, 7), (1, 1), (0, 0)),
    "uneven": ((1, 16, 9, 8), (16, 16, 3, 2), (2, 1), (0, 1)),
    "no image": ((0, 16, 7, 6), (24, 16, 3, 3), (1, 1), (1, 1)),
}
CALLS = [
    pytest.param(shape, method, id=f"{shape}-{method}")
    for shape, (_, weight, stride, _) in SHAPES.items()
    for method, number in METHODS.items()
    if fits(number, torch.empty(weight, device="meta"), stride)
]


@pytest.mark.parametrize(("shape", "method"), CALLS)
def test_shapes(shape: str, method: str) -> None:
    x, weight, stride, padding = SHAPES[shape]
    x, weight = some_map(*x), some_weight(*weight)
    bias = some_weight(len(weight), 1, seed=2).flatten()
    exact = F.conv2d(x.double(), weight.double(), None, stride, padding)
    for relu, shift in ((False, None), (True, bias)):
        expected = exact if shift is None else exact + shift[:, None, None]
        expected = expected.relu() if relu else expected
        out = convolve(x, weight, shift, None, stride, padding, relu, METHODS[method])
        assert out.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=TOLERANCE[method])
        if method in TILE:
            continue
        for size in (out.shape[2:], [(side + 1) // 2 for side in out.shape[2:]], (1, 1)):
            if len(x):
                residual = some_map(*out.shape[:2], *size, seed=3)
                repeated = F.interpolate(residual, out.shape[2:], mode="nearest")
                got = convolve(x, weight, shift, residual, stride, padding, relu, METHODS[method])
                torch.testing.assert_close(got, out + repeated, rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [3, 15])
def test_images_of_any_layout(channels: int) -> None:
    weight = some_weight(16, channels, 3, 3)
    x = some_map(2, channels, 11, 9)
    expected = convolve(x, weight, stride=(2, 2))
    wide = torch.full((4, channels + 1, 22, 30), math.nan)[::2, 1:, ::2, 4:22:2]
    for other in (x.contiguous(), x.transpose(2, 3).contiguous().transpose(2, 3), wide.copy_(x)):
        assert torch.equal(convolve(other, weight, stride=(2, 2)), expected)
    same = x[:1].expand(3, -1, -1, -1)
    assert torch.equal(convolve(same, weight, stride=(2, 2)), expected[:1].expand(3, -1, -1, -1))


@pytest.mark.parametrize("method", METHODS)
def test_maps_at_any_address(method: str) -> None:
    """Memory may begin between two vectors, and between two cache lines."""
    weight = some_weight(32, 32, 3, 3)
    x = some_map(1, 32, 8, 8)
    for dtype, bit in ((torch.float32, 0), (torch.bfloat16, BFLOAT16)):
        memory = torch.empty(x.numel() + 1, dtype=dtype)[1:]
        moved = memory.view(1, 8, 8, 32).permute(0, 3, 1, 2).copy_(x)
        expected = convolve(channels_last(moved.clone()), weight, method=METHODS[method] + bit)
        assert torch.equal(convolve(moved, weight, method=METHODS[method] + bit), expected)


# ---- How exact

# VoVNet-39's and a detector's layers on small maps: x, weight, stride
LAYERS: dict[str, Any] = {
    "stem 1": ((1, 3, 40, 44), (64, 3, 3, 3), 2),
    "stem 2": ((1, 64, 20, 24), (64, 64, 3, 3), 1),
    "stem 3": ((1, 64, 20, 24), (128, 64, 3, 3), 2),
    "stage 2": ((1, 128, 20, 24), (128, 128, 3, 3), 1),
    "stage 2, aggregation": ((1, 768, 20, 24), (256, 768, 1, 1), 1),
    "stage 3, first": ((1, 256, 14, 16), (160, 256, 3, 3), 1),
    "stage 3": ((1, 160, 14, 16), (160, 160, 3, 3), 1),
    "stage 3, aggregation": ((1, 1056, 14, 16), (512, 1056, 1, 1), 1),
    "stage 4, first": ((1, 512, 12, 14), (192, 512, 3, 3), 1),
    "stage 4": ((1, 192, 12, 14), (192, 192, 3, 3), 1),
    "stage 5": ((1, 224, 7, 9), (224, 224, 3, 3), 1),
    "stage 5, aggregation": ((1, 1888, 7, 9), (512, 1888, 1, 1), 1),
    "pyramid": ((1, 256, 12, 14), (256, 256, 3, 3), 1),
    "box head": ((12, 256, 7, 7), (256, 256, 7, 7), 1),
}
LAYER_CALLS = [
    pytest.param(layer, method, id=f"{layer}-{method}")
    for layer, (_, weight, stride) in LAYERS.items()
    for method, number in METHODS.items()
    if fits(number, torch.empty(weight, device="meta"), (stride, stride))
]


def layer_of(name: str) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Return a map like a ReLU's output, or an image."""
    shape, kernel, stride = LAYERS[name]
    x = some_map(*shape) if shape[1] == 3 else some_map(*shape).relu()
    padding = 1 if kernel[2] == 3 else 0
    return x, some_weight(*kernel), {"stride": (stride, stride), "padding": (padding, padding)}


def error(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).square().mean().sqrt())


@pytest.mark.parametrize(("layer", "method"), LAYER_CALLS)
def test_errors_beside_onednns(layer: str, method: str) -> None:
    """The rms error is at most four times that of oneDNN's kernels for channels-last maps."""
    x, weight, geometry = layer_of(layer)
    exact = F.conv2d(x.double(), weight.double(), **geometry)
    theirs = max(error(F.conv2d(layout, weight, **geometry), exact) for layout in (x, x.contiguous()))
    ours = error(convolve(x, weight, **geometry, method=METHODS[method]), exact)
    assert ours <= 4 * theirs


# Of bfloat16 products F(4x4) is for nobody who wants eager's accuracy, as the plan knows.
BFLOAT16_BOUNDS = {"direct": 1.1, "F(2x2)": 1.5, "F(4x4)": 4, "F(3x3) of stride 2": 1.5}


@pytest.mark.parametrize(("layer", "method"), LAYER_CALLS)
def test_errors_of_bfloat16_beside_onednns(layer: str, method: str) -> None:
    """Both errors are against the exact result of maps and weights that are not rounded to bfloat16."""
    x, weight, geometry = layer_of(layer)
    exact = F.conv2d(x.double(), weight.double(), **geometry)
    half = x.bfloat16()
    theirs = error(F.conv2d(half, weight.bfloat16(), **geometry), exact)
    out = convolve(half if x.shape[1] > 3 else x, weight, **geometry, method=METHODS[method] + BFLOAT16)
    assert out.dtype == torch.bfloat16
    assert error(out, exact) <= BFLOAT16_BOUNDS[method] * theirs
    assert abs(float((out.double() - exact).mean())) <= 0.01 * float(exact.std())  # rounded to the nearest


@pytest.mark.parametrize(("layer", "method"), LAYER_CALLS)
def test_float_products_of_bfloat16_maps_are_rounded_once(layer: str, method: str) -> None:
    """The result equals that of the float32 map, rounded once to bfloat16."""
    x, weight, geometry = layer_of(layer)
    half = x.bfloat16() if x.shape[1] > 3 else x
    expected = convolve(channels_last(half.float()), weight, **geometry, method=METHODS[method])
    out = convolve(half, weight, **geometry, method=METHODS[method] + BFLOAT16 + FLOAT_PRODUCTS)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=2**-8, atol=1e-6)
    assert torch.equal(out, expected.bfloat16())


@pytest.mark.parametrize("layer", [name for name in LAYERS if name != "stem 1"])
def test_bfloat16_residuals_are_added_before_the_rounding(layer: str) -> None:
    x, weight, geometry = layer_of(layer)
    x, weight = x.bfloat16(), weight.bfloat16().float()
    exact = F.conv2d(x.double(), weight.double(), **geometry)
    residual = channels_last(some_map(*exact.shape, seed=4).bfloat16())
    out = convolve(x, weight, None, residual, **geometry, method=DIRECT + BFLOAT16)
    torch.testing.assert_close(out.double(), exact + residual, rtol=2**-8, atol=1e-5)


# ---- Infinity, NaN and denormals

SPECIAL = [math.inf, -math.inf, math.nan]


def kinds(x: Tensor) -> Tensor:
    """Return 0 for finite numbers, and a code for each of the three others."""
    return x.isnan() * 3 + (x == math.inf) * 1 + (x == -math.inf) * 2


@pytest.mark.parametrize("bit", [0, BFLOAT16])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
def test_direct_propagates_what_is_not_finite(kernel: int, relu: bool, bit: int) -> None:
    """The result is that of PyTorch's convolution in float64, whose ReLU keeps NaN."""
    weight, x = some_weight(24, 20, kernel, kernel).bfloat16().float(), some_map(2, 20, 12, 13).bfloat16().float()
    for i, special in enumerate(SPECIAL):
        x[i % 2, 3 + i, 2 * i + 1, 4 * i] = special
    x[1, 0, 11, 12], x[1, 1, 11, 12] = math.inf, -math.inf
    expected = F.conv2d(x.double(), weight.double(), padding=kernel // 2)
    expected = expected.relu() if relu else expected
    assert len(kinds(expected).unique()) == (3 if relu else 4)
    out = convolve(x.bfloat16() if bit else x, weight, relu=relu, method=DIRECT + bit)
    assert torch.equal(kinds(out), kinds(expected))
    finite = expected.isfinite()
    torch.testing.assert_close(out[finite].double(), expected[finite], rtol=2**-8 if bit else 0, atol=1e-5)


def test_direct_of_an_image() -> None:
    weight, x = some_weight(24, 3, 3, 3), some_map(1, 3, 12, 13)
    x[0, 1, 4, 5], x[0, 2, 9, 9] = math.inf, math.nan
    expected = F.conv2d(x.double(), weight.double(), stride=2, padding=1)
    assert torch.equal(kinds(convolve(x, weight, stride=(2, 2))), kinds(expected))


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("method", WINOGRAD)
def test_winograd_spreads_what_is_not_finite_within_its_tiles(method: str, special: float) -> None:
    """Whatever is not finite in eager's result is not finite here; beyond a tile's distance no bit changes."""
    weight, x = some_weight(24, 20, 3, 3), some_map(1, 20, 14, 17)
    for y, column in ((0, 0), (7, 8), (13, 16)):
        without = convolve(x, weight, method=METHODS[method])
        touched = x.clone(memory_format=torch.preserve_format)
        touched[0, 5, y, column] = special
        out = convolve(touched, weight, method=METHODS[method])
        step = usual_stride(METHODS[method])[0]
        expected = F.conv2d(touched.double(), weight.double(), stride=step, padding=1)
        assert not out.isfinite()[~expected.isfinite()].any()
        rows, columns = ((torch.arange(size)[::step] - at).abs() / step for size, at in ((14, y), (17, column)))
        far = (rows[:, None] > TILE[method]) | (columns > TILE[method])
        assert torch.equal(out[..., far], without[..., far])
        ours, theirs = convolve(touched, weight, relu=True, method=METHODS[method]), expected.relu()
        assert not ours.isfinite()[~theirs.isfinite()].any()


@pytest.mark.parametrize("method", METHODS)
def test_images_of_a_batch_do_not_mix(method: str) -> None:
    weight, x = some_weight(24, 32, 3, 3), some_map(3, 32, 5, 6)
    single = [convolve(x[i : i + 1], weight, method=METHODS[method]) for i in range(3)]
    torch.testing.assert_close(torch.cat(single), convolve(x, weight, method=METHODS[method]), rtol=0, atol=1e-5)
    x[1] = math.nan
    out = convolve(x, weight, method=METHODS[method])
    assert out[1].isnan().all()
    assert out[::2].isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_denormal_numbers(method: str) -> None:
    """Results equal eager's; bfloat16 products that treat denormals as 0 differ by less than the smallest normal."""
    weight = some_weight(16, 32, 3, 3)
    x = some_map(1, 32, 6, 6) * 1e-40
    assert 0 < x.abs().max() < torch.finfo(torch.float32).tiny
    expected = F.conv2d(x.double(), weight.double(), stride=usual_stride(METHODS[method]), padding=1)
    out = convolve(x, weight, method=METHODS[method])
    assert out.abs().max() > 0
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-43)  # 140 of their steps
    half = convolve(x.bfloat16(), weight, method=METHODS[method] + BFLOAT16)
    assert (half.double() - expected).abs().max() <= torch.finfo(torch.float32).tiny


def test_all_but_f4_of_whole_numbers_are_exact() -> None:
    """Nothing is rounded, so results are exactly equal."""
    generator = torch.Generator().manual_seed(0)
    x = channels_last(torch.randint(-3, 4, (2, 70, 11, 9), generator=generator).float())
    weight = 4.0 * torch.randint(-2, 3, (40, 70, 3, 3), generator=generator)
    for method in (DIRECT, WINOGRAD_2, WINOGRAD_STRIDED):
        expected = F.conv2d(x.double(), weight.double(), stride=usual_stride(method), padding=1)
        assert torch.equal(convolve(x, weight, method=method).double(), expected)
        assert torch.equal(convolve(x.bfloat16(), weight, method=method + BFLOAT16), expected.bfloat16())
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    assert (convolve(x, weight, method=WINOGRAD_4).double() - expected).abs().max() < 0.01


# ---- A One-Shot-Aggregation block


@pytest.mark.parametrize("identity", [False, True])
@pytest.mark.parametrize("bit", [0, BFLOAT16])
def test_a_block_is_its_convolutions_one_after_the_other(bit: int, identity: bool) -> None:
    """Results are equal to the last bit; only the maps in between lie elsewhere."""
    shapes = [(40, 48, 3, 3), (40, 40, 3, 3), (21, 40, 3, 3), (48, 48 + 40 + 40 + 21, 1, 1)]
    weights = [some_weight(*shape, seed=i) for i, shape in enumerate(shapes)]
    biases = [some_weight(shape[0], 1, seed=i).flatten() for i, shape in enumerate(shapes)]
    x = some_map(2, 48, 11, 13).to(torch.bfloat16 if bit else torch.float32)
    methods = [METHODS["F(2x2)"] + bit, METHODS["F(4x4)"] + bit, DIRECT + bit, DIRECT + bit]
    maps = [x]
    for weight, bias, method in zip(weights[:-1], biases, methods, strict=False):
        maps.append(convolve(maps[-1], weight, bias, relu=True, method=method))
    together = channels_last(torch.cat(maps, dim=1))
    expected = convolve(together, weights[-1], biases[-1], x if identity else None, relu=True, method=methods[-1])
    ready = [torch.ops.vovnet.pack_conv(w, m) for w, m in zip(weights, methods, strict=True)]
    (out,) = torch.ops.vovnet.packed_chain(x, weights, biases, ready, methods, block_step(4, identity, True))
    assert torch.equal(out, expected)


# ---- A chain of layers


@pytest.mark.parametrize("kept", [[True] * 6, [False] * 5 + [True], [False, True, False, False, True, False]])
@pytest.mark.parametrize("bit", [0, BFLOAT16])
def test_a_chain_is_its_layers_one_after_the_other(bit: int, kept: list[bool]) -> None:
    """Results are equal to the last bit for a small network, whichever maps are returned."""
    float_bit = bit | FLOAT_PRODUCTS if bit else 0
    convs = [(24, 3, 3, 3), (32, 24, 3, 3), (48, 32, 3, 3)]
    blocks = [[(16, 48, 3, 3), (16, 16, 3, 3), (40, 80, 1, 1)], [(16, 40, 3, 3), (16, 16, 3, 3), (40, 72, 1, 1)]]
    shapes = [*convs, *blocks[0], *blocks[1]]
    weights = [some_weight(*shape, seed=i) for i, shape in enumerate(shapes)]
    biases = [some_weight(shape[0], 1, seed=i).flatten() for i, shape in enumerate(shapes)]
    strided = DIRECT if bit else WINOGRAD_STRIDED
    methods = [DIRECT + float_bit, WINOGRAD_4 + bit, strided + bit, WINOGRAD_2 + bit, WINOGRAD_4 + bit, DIRECT + bit]
    methods += methods[3:]
    ready = [torch.ops.vovnet.pack_conv(w, m) for w, m in zip(weights, methods, strict=True)]
    arguments = list(zip(weights, biases, ready, methods, strict=True))
    x = some_map(2, 3, 45, 38)

    maps = [x]
    for (weight, bias, pack, method), step in zip(arguments[:3], (2, 1, 2), strict=True):
        out = torch.ops.vovnet.packed_conv(maps[-1], weight, bias, None, pack, [step] * 2, [1, 1], True, method)
        maps.append(out)
    pool = ([3, 3], [2, 2], [0, 0], True)
    for at, identity in ((3, False), (6, True)):
        if at == 3:
            maps.append(torch.ops.vovnet.pool_max(maps[-1], *pool))
        block = [list(column) for column in zip(*arguments[at : at + 3], strict=True)]
        maps += torch.ops.vovnet.packed_chain(maps[-1], *block, block_step(3, identity, True))
    steps = [
        conv_step([2, 2], [1, 1], True, kept[0]),
        conv_step([1, 1], [1, 1], True, kept[1]),
        conv_step([2, 2], [1, 1], True, kept[2]),
        pool_step(*pool, kept[3]),
        block_step(3, False, kept[4]),
        block_step(3, True, kept[5]),
    ]
    got = torch.ops.vovnet.packed_chain(
        x, weights, biases, ready, methods, [number for step in steps for number in step]
    )
    expected = [one for one, keep in zip(maps[1:], kept, strict=True) if keep]
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()
