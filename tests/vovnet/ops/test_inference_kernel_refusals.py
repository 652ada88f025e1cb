"""Wrong arguments of the compiled convolutions: errors name the operator, the argument, what was expected and given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from packed_calls import METHODS, channels_last, some_map, some_weight
from torch import Tensor

from vovnet.ops.algorithms import BFLOAT16, DIRECT, WINOGRAD_2, WINOGRAD_4, WINOGRAD_STRIDED
from vovnet.ops.build import loader
from vovnet.ops.inference import STEP, block_step, conv_step, pool_step

METHOD = "method: expected 0 to 3, and 16 more for bfloat16 maps and products or 48 for bfloat16 maps alone"


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Skip the tests if nothing can be compiled."""
    if not loader.cpu_operators():
        pytest.skip("needs the compiled operators for the CPU")


def refused(method: int = DIRECT, **changes: Any) -> str:
    """Return the message of the error of a call with some arguments changed."""
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
        ({"x": last(2, 31, 9, 8)}, "x: expected (N, 32, H, W), with as many channels as the weight, got (2, 31, 9, 8)"),
        (
            {"x": torch.zeros(32, 9, 8)},
            "x: expected (N, 32, H, W), with as many channels as the weight, got (32, 9, 8)",
        ),
        (
            {"x": last(2, 32, 1, 8), "padding": [0, 0]},
            "x: expected a map at least as large as the kernel (3, 3), got (2, 32, 1,",
        ),
        (
            {"weight": torch.zeros(24, 32, 9)},
            "weight: expected (out channels, channels, height, width), got (24, 32, 9)",
        ),
        ({"weight": torch.zeros(0, 32, 3, 3)}, "weight: expected (out channels, channels, height, width), got (0, 32,"),
        ({"weight": torch.zeros(24, 32, 3, 3).double()}, "weight: expected float32, got float64"),
        ({"weight": torch.zeros(24, 64, 3, 3)}, "packed: expected what pack_conv makes of this weight for method 0, "),
        ({"bias": torch.zeros(25)}, "bias: expected one number per output channel, (24,), got (25,)"),
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
        ({"stride": [2, 1], "method": WINOGRAD_4}, "stride: expected 1 for this transform of Winograd's, got (2, 1)"),
        ({"method": WINOGRAD_STRIDED}, "stride: expected 2 for this transform of Winograd's, got (1, 1)"),
        ({"stride": [0, 1]}, "stride: expected two numbers from 1 to 2147483647, got (0, 1)"),
        ({"stride": [1]}, "stride: expected two numbers from 1 to 2147483647, got (1,)"),
        ({"stride": [1, 1, 1]}, "stride: expected two numbers from 1 to 2147483647, got (1, 1, 1)"),
        ({"padding": [-1, 0]}, "padding: expected two numbers from 0 to 2147483647, got (-1, 0)"),
        ({"padding": [1, 1, 1]}, "padding: expected two numbers from 0 to 2147483647, got (1, 1, 1)"),
        ({"padding": [2**62, 1]}, f"padding: expected two numbers from 0 to 2147483647, got ({2**62}, 1)"),
        ({"padding": [2**31 - 1, 2**31 - 1]}, "MiB of memory"),
        ({"method": 5}, f"{METHOD}, got 5"),
        ({"method": -1}, f"{METHOD}, got -1"),
        ({"method": 2**32}, f"{METHOD}, got 4294967296"),
        ({"method": 32}, f"{METHOD}, got 32"),
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
        (torch.zeros(24, 32, 3, 3), 7, f"{METHOD}, got 7"),
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
        (BLOCK, {"biases": []}, "weights: expected a bias, a packed weight and a method for each, got 3, 0,"),
        (
            BLOCK,
            {"biases": [torch.zeros(16), torch.zeros(24), torch.zeros(33)]},
            "biases[2]: expected one number per output channel, (32,), got (33,)",
        ),
        (
            BLOCK,
            {"packed": [torch.zeros(7)] * 3},
            "packed[0]: expected what pack_conv makes of this weight for method 0, ",
        ),
        (
            BLOCK[:1],
            {},
            "x: expected a convolution, a pool or a block of 2 to 16 convolutions, whose weights are there",
        ),
        (
            [BLOCK[0]] * 17,
            {},
            "block of 2 to 16 convolutions, whose weights are there, got (2, 1, 17, 1, 0, 0, 0, 0, 0)",
        ),
        (
            BLOCK,
            {"steps": block_step(2, True, True)},
            "weights[1]: expected (out channels, 48, 1, 1), got (24, 16, 3, 3)",
        ),
        (BLOCK, {"steps": block_step(4, True, True)}, "x: expected a convolution, a pool or a block of 2 to 16"),
        (BLOCK, {"steps": [3] * STEP}, "x: expected a convolution, a pool or a block of 2 to 16"),
        (BLOCK, {"steps": [2, 1, 3]}, "steps: expected rows of 9 numbers, got 3 numbers"),
        (BLOCK, {"steps": []}, "steps: expected rows of 9 numbers, got 0 numbers"),
        (
            BLOCK,
            {"steps": conv_step([1, 1], [1, 1], True, True)},
            "weights: expected as many as the steps take, 1, got 3",
        ),
        (
            BLOCK,
            {"steps": [*block_step(3, True, True), *conv_step([1, 1], [0, 0], True, True)]},
            "steps[1]: expected a convolution, a pool or a block of 2 to 16 convolutions, whose weights are there",
        ),
        (
            [*BLOCK, (16, 40, 1, 1)],
            {"steps": [*block_step(3, True, True), *conv_step([1, 1], [0, 0], True, True)]},
            "weights[3]: expected one for the map before it, (2, 32, 9, 8) of float32, got 40 channels and method 0",
        ),
        (
            [*BLOCK, (16, 32, 1, 1)],
            {"steps": [*block_step(3, True, True), *conv_step([1, 1], [0, 0], True, True)], "methods": [0, 0, 0, 16]},
            "weights[3]: expected one for the map before it, (2, 32, 9, 8) of float32, got 32 channels and method 16",
        ),
        (
            [*BLOCK, (16, 32, 11, 3)],
            {"steps": [*block_step(3, True, True), *conv_step([1, 1], [0, 0], True, True)]},
            "steps[1]: expected a map at least as large as the kernel (11, 3), got (2, 32, 9, 8)",
        ),
        (
            BLOCK,
            {"steps": [*block_step(3, True, True), *pool_step([30, 3], [2, 2], [0, 0], False, True)]},
            "steps[1]: expected a map that a window (30, 3) fits in, got shape (2, 32, 9, 8)",
        ),
        (
            BLOCK,
            {"steps": [*pool_step([3, 3], [2, 2], [2, 0], False, True), *block_step(3, True, True)]},
            "padding: expected at most half of the kernel (3, 3), got (2, 0)",
        ),
        (
            [(16, 24, 3, 3), *BLOCK[1:]],
            {},
            "x: expected (N, 24, H, W), with as many channels as the weight, got (2, 32, 9, 8)",
        ),
        ([BLOCK[0], (24, 16, 1, 1), BLOCK[2]], {}, "weights[1]: expected (out channels, 16, 3, 3), got (24, 16, 1, 1)"),
        ([*BLOCK[:2], (32, 70, 1, 1)], {}, "weights[2]: expected (out channels, 72, 1, 1), got (32, 70, 1, 1)"),
        ([(8, 32, 3, 3), (8, 8, 3, 3), (32, 48, 1, 1)], {}, "weights[1]: expected 16 or more channels, got 8"),
        (BLOCK, {"methods": [0, 16, 0]}, "methods[1]: expected one for maps of float32, got 16"),
        (BLOCK, {"methods": [WINOGRAD_STRIDED, 0, 0]}, "methods[0]: expected one for a stride of 1, got 3"),
        ([*BLOCK[:2], (40, 72, 1, 1)], {}, "x: expected no identity, or as many channels as the result's 40"),
        (BLOCK, {"x": torch.zeros(2, 32, 9, 8)}, "x: expected channels-last memory"),
        (BLOCK, {"x": torch.zeros(32, 9, 8)}, "x: expected a feature map (N, C, H, W), got shape (32, 9, 8)"),
        (BLOCK, {"x": last(2, 32, 9, 8).bfloat16()}, "x: expected float32, got bfloat16"),
    ],
)
def test_bad_chains(shapes: list[tuple[int, ...]], changes: dict[str, Any], message: str) -> None:
    weights = [torch.zeros(shape) for shape in shapes]
    methods = changes.get("methods", [0] * len(shapes))
    arguments = {
        "x": last(2, 32, 9, 8),
        "weights": weights,
        "biases": [torch.zeros(shape[0]) for shape in shapes],
        "packed": [torch.ops.vovnet.pack_conv(weight, method) for weight, method in zip(weights, methods, strict=True)],
        "methods": methods,
        "steps": block_step(len(shapes), True, True),
    }
    with pytest.raises(RuntimeError, match="vovnet::packed_chain: ") as caught:
        torch.ops.vovnet.packed_chain(*(arguments | changes).values())
    assert message in str(caught.value)


def test_tensors_without_data_get_results_without_data() -> None:
    x, weight = some_map(2, 32, 9, 8).to("meta"), some_weight(24, 32, 3, 3).to("meta")
    out = torch.ops.vovnet.packed_conv(x, weight, None, None, weight, [1, 1], [1, 1], True, DIRECT)
    assert (out.device.type, out.shape) == ("meta", (2, 24, 9, 8))
    with pytest.raises(NotImplementedError):
        torch.ops.vovnet.pack_conv(weight, DIRECT)
