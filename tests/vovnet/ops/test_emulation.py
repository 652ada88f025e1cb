"""The kernels' own source, run on an emulated GPU, against float64.

Small integers make almost every check exact: their sums are exact in float32, in whatever order they are added, so that
the result is the exact sum, rounded once."""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Sequence
from unittest import mock

import emulated
import pytest
import torch
from emulated import BFLOAT16, FLOAT16, FLOAT32, STORAGE, TENSOR_FLOAT32, EmulationError, Emulator

pytestmark = pytest.mark.skipif(emulated.COMPILER is None, reason="the emulation is compiled with g++")

# Capability 7.5 copies synchronously; 8.0 has four stages of asynchronous copies, 8.6 two.
CAPABILITIES = (75, 80, 86)
KINDS = [(c, d) for c in CAPABILITIES for d in range(4) if not (c == 75 and d == BFLOAT16)]
KIND_NAMES = ("float16", "bfloat16", "float32", "tf32")
every_kind = pytest.mark.parametrize(
    ("capability", "dtype"), KINDS, ids=[f"{c / 10}-{KIND_NAMES[d]}" for c, d in KINDS]
)

# (pixels, widths of the inputs, out channels)
SHAPES: list[tuple[int, list[int], int]] = [
    (1, [8], 8),
    (127, [24, 80], 136),
    (129, [112, 160, 224], 256),
    (200, [8] * 16, 24),
    (257, [64, 16, 16, 16, 16, 16], 112),
    (40, [128], 384),
]


@functools.cache
def machine(capability: int) -> Emulator:
    return Emulator(capability)


def integers(rows: int, columns: int, dtype: int, seed: int, limit: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-limit, limit + 1, (rows, columns), generator=generator).to(STORAGE[dtype])


def rounded(exact: torch.Tensor, dtype: int) -> torch.Tensor:
    """Round float64 values that float32 represents exactly, as the kernels store them."""
    assert torch.equal(exact, exact.float().double())
    return exact.float().to(STORAGE[dtype])


def unpacked(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return torch.stack([mask >> bit & 1 for bit in range(8)], -1).flatten().bool().view_as(like)


def packed(keep: torch.Tensor) -> torch.Tensor:
    flat = torch.zeros(-(-keep.numel() // 8) * 8, dtype=torch.uint8)
    flat[: keep.numel()] = keep.flatten()
    return (flat.view(-1, 8) << torch.arange(8)).sum(-1).to(torch.uint8)


def inputs_of(pixels: int, widths: Sequence[int], dtype: int, limit: int = 2) -> list[torch.Tensor]:
    return [integers(pixels, width, dtype, seed, limit) for seed, width in enumerate(widths)]


@every_kind
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("extras", [True, False], ids=["all", "bare"])
def test_forward(capability: int, dtype: int, shape: tuple[int, list[int], int], extras: bool) -> None:
    pixels, widths, out_channels = shape
    x = inputs_of(pixels, widths, dtype)
    weight = integers(out_channels, sum(widths), dtype, 100)
    bias = integers(1, out_channels, dtype, 101, 9)[0] if extras else None
    residual = integers(pixels, out_channels, dtype, 102, 9) if extras else None
    out, mask = machine(capability).forward(
        x, weight, bias, residual, relu=extras, mask=extras, dtype=dtype, seed=pixels
    )
    exact = torch.cat(x, 1).double() @ weight.double().T
    if extras:
        assert bias is not None
        assert residual is not None
        assert mask is not None
        exact += bias.double()
        assert torch.equal(unpacked(mask, out), exact > 0)
        exact = exact.relu() + residual.double()
    assert torch.equal(out, rounded(exact, dtype))


@every_kind
def test_real_numbers_within_the_rounding_of_their_format(capability: int, dtype: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(150, width, generator=generator).to(STORAGE[dtype]) for width in (64, 40)]
    weight = torch.randn(136, 104, generator=generator).to(STORAGE[dtype])
    out, _ = machine(capability).forward(x, weight, None, None, relu=False, mask=False, dtype=dtype, seed=1)
    exact = torch.cat(x, 1).double() @ weight.double().T
    magnitude = torch.cat(x, 1).double().abs() @ weight.double().abs().T
    tf32 = dtype == TENSOR_FLOAT32 and capability >= 80
    # Storing rounds to 11, 8 or 24 bits; TF32 rounds both factors to 11; each of ~100 additions to 24.
    bound = exact.abs() * {FLOAT16: 2**-11, BFLOAT16: 2**-8}.get(dtype, 2**-24)
    bound += magnitude * (2**-10 if tf32 else 104 * 2**-24)
    assert ((out.double() - exact).abs() <= bound + 1e-9).all()
    if tf32:
        assert (out.double() - exact).abs().max() > 1e-4  # it is not float32 in disguise


@pytest.mark.parametrize("dtype", range(4), ids=KIND_NAMES)
def test_relu_and_mask_keep_nan_as_pytorch_does(dtype: int) -> None:
    x = torch.zeros(9, 16).to(STORAGE[dtype])
    x[3, 5] = torch.nan
    weight = torch.ones(8, 16).to(STORAGE[dtype])
    bias = torch.tensor([1.0, -1, 0, -0.0, 2, -2, 0, 3]).to(STORAGE[dtype])
    out, mask = machine(80).forward([x], weight, bias, None, relu=True, mask=True, dtype=dtype, seed=0)
    assert mask is not None
    sums = (x.double() @ weight.double().T + bias.double()).requires_grad_()
    expected = sums.relu()
    (kept,) = torch.autograd.grad(expected.sum(), sums)
    torch.testing.assert_close(out.double(), expected, equal_nan=True, rtol=0, atol=0)
    assert torch.equal(unpacked(mask, out), kept.bool())


def test_mask_is_of_the_rounded_sum() -> None:
    """An output that float16 rounds to zero has no gradient, by the mask and by the output."""
    x = torch.full((1, 8), 2.0**-14).half()
    weight = torch.zeros(8, 8).half()
    weight[0, 0] = 2.0**-14
    out, mask = machine(80).forward([x], weight, None, None, relu=True, mask=True, dtype=FLOAT16, seed=0)
    assert mask is not None
    assert out[0, 0] == 0
    assert mask[0] == 0


@every_kind
def test_one_input_used_twice(capability: int, dtype: int) -> None:
    x = integers(70, 24, dtype, 0)
    weight = integers(16, 48, dtype, 1)
    out, _ = machine(capability).forward([x, x], weight, None, None, relu=False, mask=False, dtype=dtype, seed=3)
    assert torch.equal(out, rounded(torch.cat([x, x], 1).double() @ weight.double().T, dtype))


@every_kind
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_input_gradients(capability: int, dtype: int, shape: tuple[int, list[int], int]) -> None:
    pixels, widths, out_channels = shape
    g = integers(pixels, out_channels, dtype, 0)
    weight = integers(out_channels, sum(widths), dtype, 1)
    exact = (g.double() @ weight.double()).split(widths, 1)
    every = [True] * len(widths)
    some = [i % 2 == 1 for i in range(len(widths))]
    for wanted in (every, some):
        gradients = machine(capability).input_gradients(g, weight, widths, wanted, dtype=dtype, seed=pixels)
        for gradient, want, expected in zip(gradients, wanted, exact, strict=True):
            assert (gradient is not None) == want
            if gradient is not None:
                assert torch.equal(gradient, rounded(expected, dtype))


@every_kind
@pytest.mark.parametrize("shape", [*SHAPES, (1200, [40, 24], 16)], ids=str)
def test_weight_gradient(capability: int, dtype: int, shape: tuple[int, list[int], int]) -> None:
    pixels, widths, out_channels = shape
    g = integers(pixels, out_channels, dtype, 100)
    x = inputs_of(pixels, widths, dtype)
    gradient = machine(capability).weight_gradient(g, x, dtype=dtype, seed=pixels)
    assert torch.equal(gradient, rounded(g.double().T @ torch.cat(x, 1).double(), dtype))


@pytest.mark.parametrize("dtype", [FLOAT32, TENSOR_FLOAT32], ids=["float32", "tf32"])
def test_float32_takes_multiples_of_4(dtype: int) -> None:
    """With these widths, eight neighbouring columns belong to two inputs or end behind the last."""
    widths, pixels = [4, 12, 20], 50
    x, weight = inputs_of(pixels, widths, dtype), integers(16, 36, dtype, 100)
    g = integers(pixels, 16, dtype, 101)
    cat = torch.cat(x, 1).double()
    out, _ = machine(80).forward(x, weight, None, None, relu=False, mask=False, dtype=dtype, seed=0)
    assert torch.equal(out.double(), cat @ weight.double().T)
    gradients = machine(80).input_gradients(g, weight, widths, [True] * 3, dtype=dtype, seed=0)
    for gradient, expected in zip(gradients, (g.double() @ weight.double()).split(widths, 1), strict=True):
        assert gradient is not None
        assert torch.equal(gradient.double(), expected)
    assert torch.equal(machine(80).weight_gradient(g, x, dtype=dtype, seed=0).double(), g.double().T @ cat)


@pytest.mark.parametrize("dtype", range(3), ids=KIND_NAMES[:3])
@pytest.mark.parametrize("shape", [(1, 1), (77, 5), (300, 8), (1000, 80), (33, 264), (5, 1000), (130, 1023)], ids=str)
@pytest.mark.parametrize("keep", ["mask", "out", "all"])
def test_relu_backward(dtype: int, shape: tuple[int, int], keep: str) -> None:
    pixels, width = shape
    grad = integers(pixels, width, dtype, 0, 9)
    out = integers(pixels, width, dtype, 1, 1)
    kept = torch.ones_like(out, dtype=torch.bool) if keep == "all" else out > 0
    expected = torch.where(kept, grad.double(), 0.0)
    arguments = {"out": out if keep == "out" else None, "mask": packed(kept) if keep == "mask" else None}
    for want_g, want_shift, in_place in (
        (True, True, False),
        (True, False, False),
        (False, True, False),
        (True, True, True),
    ):
        g, shift = machine(80).relu_backward(
            grad, **arguments, want_g=want_g, want_shift=want_shift, in_place=in_place, dtype=dtype, seed=pixels
        )
        if want_g:
            assert g is not None
            assert torch.equal(g, rounded(expected, dtype))
        if want_shift:
            assert shift is not None
            assert torch.equal(shift, rounded(expected.sum(0), FLOAT32))


def test_relu_backward_keeps_nan_as_pytorch_does() -> None:
    out = torch.tensor([[torch.nan, 1, -1, 0, -0.0, torch.inf, -torch.inf, 2]])
    grad = torch.tensor([[1.0, 2, 3, 4, 5, 6, torch.nan, torch.nan]])
    g, _ = machine(80).relu_backward(grad, out, None, want_g=True, want_shift=False, dtype=FLOAT32, seed=0)
    expected = torch.ops.aten.threshold_backward(grad, out, 0)
    torch.testing.assert_close(g, expected, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", range(4), ids=KIND_NAMES)
def test_equal_inputs_give_equal_bits_in_whatever_order_threads_and_blocks_run(dtype: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(1100, width, generator=generator).to(STORAGE[dtype]) for width in (40, 104)]
    g = torch.randn(1100, 136, generator=generator).to(STORAGE[dtype])
    weight = torch.randn(136, 144, generator=generator).to(STORAGE[dtype])
    results = []
    for seed in (1, 2):
        out, mask = machine(80).forward(x, weight, None, g, relu=True, mask=True, dtype=dtype, seed=seed)
        gradients = machine(80).input_gradients(g, weight, [40, 104], [True, True], dtype=dtype, seed=seed)
        weight_gradient = machine(80).weight_gradient(g, x, dtype=dtype, seed=seed)
        relu, shift = machine(80).relu_backward(
            g, None, mask, want_g=True, want_shift=True, dtype=min(dtype, FLOAT32), seed=seed
        )
        results.append([out, mask, *gradients, weight_gradient, relu, shift])
    for first, second in zip(*results, strict=True):
        assert first is not None
        assert torch.equal(first.view(torch.uint8), second.view(torch.uint8))


def test_nothing_to_do() -> None:
    x, weight = torch.empty(0, 16).half(), integers(8, 16, FLOAT16, 0)
    out, _ = machine(80).forward([x], weight, None, None, relu=True, mask=False, dtype=FLOAT16, seed=0)
    assert out.shape == (0, 8)
    assert machine(80).input_gradients(out, weight, [16], [True], dtype=FLOAT16, seed=0)[0] is not None
    assert torch.equal(machine(80).weight_gradient(out, [x], dtype=FLOAT16, seed=0), torch.zeros(8, 16).half())
    _, shift = machine(80).relu_backward(out, None, None, want_g=True, want_shift=True, dtype=FLOAT16, seed=0)
    assert torch.equal(shift, torch.zeros(8))
    g = integers(5, 8, FLOAT16, 0)
    assert machine(80).input_gradients(g, weight, [16], [False], dtype=FLOAT16, seed=0) == [None]


@pytest.mark.parametrize(
    ("dtype", "widths", "out_channels", "supported"),
    [
        (FLOAT16, [64, 8], 8, True),
        (FLOAT16, [64, 12], 8, False),
        (FLOAT16, [64], 12, False),
        (FLOAT16, [8] * 16, 8, True),
        (FLOAT16, [8] * 17, 8, False),
        (FLOAT16, [], 8, False),
        (FLOAT16, [0], 8, False),
        (FLOAT32, [4], 8, True),
        (FLOAT32, [6], 8, False),
        (BFLOAT16, [8], 8, True),
    ],
)
def test_what_is_supported(dtype: int, widths: list[int], out_channels: int, supported: bool) -> None:
    assert machine(80).supported(dtype, 80, widths, out_channels) == supported
    assert not machine(80).supported(dtype, 70, widths, out_channels)
    if dtype == BFLOAT16:
        assert not machine(80).supported(dtype, 75, widths, out_channels)


def test_refusals() -> None:
    odd = integers(4, 12, FLOAT16, 0)
    weight = integers(8, 12, FLOAT16, 1)
    with pytest.raises(EmulationError, match="multiples of 16 bytes"):
        machine(80).forward([odd], weight, None, None, relu=False, mask=False, dtype=FLOAT16, seed=0)
    misaligned = integers(1, 33, FLOAT16, 0).flatten()[1:].view(2, 16)
    with pytest.raises(EmulationError, match="device pointers"):
        machine(80).forward(
            [misaligned], integers(8, 16, FLOAT16, 1), None, None, relu=False, mask=False, dtype=FLOAT16, seed=0
        )
    with pytest.raises(EmulationError, match="older than"):
        machine(75).forward(
            [integers(4, 16, BFLOAT16, 0)], integers(8, 16, BFLOAT16, 1), None, None, relu=False, mask=False,
            dtype=BFLOAT16, seed=0,
        )  # fmt: skip


def test_more_blocks_than_a_grid_has() -> None:
    x, weight = integers(4, 8, FLOAT16, 0), integers(8, 8, FLOAT16, 1)
    library = machine(80).library
    status = library.emulated_forward(
        emulated.pointers([x]), emulated.channels([x]), 1, emulated.pointer(weight), None, None,
        emulated.pointer(weight), None, ctypes.c_int64(2**40), 8, 1, FLOAT16,
    )  # fmt: skip
    with pytest.raises(EmulationError, match="fewer than 2\\^31 tiles"):
        machine(80).check(status)


def huge(rows: int, columns: int) -> torch.Tensor:
    """Return float16 zeros of which only touched pages take memory."""
    no_reserve = 0x4000  # Linux; Python 3.13 has a name for it
    memory = mmap.mmap(-1, 2 * rows * columns, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    return torch.frombuffer(memory, dtype=torch.float16).view(rows, columns)


def test_maps_of_more_than_2_31_elements() -> None:
    """The last blocks compute the last pixels, whose offsets exceed 32 bits."""
    pixels, wide, last = 2**23 + 77, 256, 77
    emulator = Emulator(80)
    emulator.only_last = 1
    x, g = huge(pixels, wide), huge(pixels, 8)
    x[-last:], g[-last:] = integers(last, wide, FLOAT16, 1), integers(last, 8, FLOAT16, 2)
    weight = integers(8, wide, FLOAT16, 0)
    out, _ = emulator.forward([x], weight, None, None, relu=False, mask=False, dtype=FLOAT16, seed=0)
    assert torch.equal(out[-last:], (x[-last:].double() @ weight.double().T).half())
    emulator.weight_gradient(g, [x], dtype=FLOAT16, seed=0)  # stays in bounds; only the last pixels are added

    emulator.only_last = 2  # columns of tiles
    expected = (g[-last:].double() @ weight.double()).half()
    with (
        mock.patch.object(torch, "empty", lambda rows, columns, dtype: huge(rows, columns)),
        mock.patch.object(torch, "empty_like", lambda tensor: huge(*tensor.shape)),
    ):
        (dx,) = emulator.input_gradients(g, weight, [wide], [True], dtype=FLOAT16, seed=0)
        out, _ = emulator.forward([g], weight.T.contiguous(), None, None, relu=False, mask=False, dtype=FLOAT16, seed=0)
    assert dx is not None
    assert torch.equal(dx[-last:], expected)
    assert torch.equal(out[-last:], expected)


def test_relu_backward_of_more_than_2_31_elements() -> None:
    pixels, wide, last = 2**23 + 77, 256, 77
    emulator = Emulator(80)
    emulator.only_last = 1
    grad, out = huge(pixels, wide), huge(pixels, wide)
    grad[-last:], out[-last:] = integers(last, wide, FLOAT16, 1), integers(last, wide, FLOAT16, 2)
    with mock.patch.object(torch, "empty_like", lambda tensor: huge(*tensor.shape)):
        g, _ = emulator.relu_backward(grad, out, None, want_g=True, want_shift=False, dtype=FLOAT16, seed=0)
    assert g is not None
    assert torch.equal(g[-last:], grad[-last:] * (out[-last:] > 0))
