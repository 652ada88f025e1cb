"""The operators of ``vovnet.fuse``: references, schemas and fake kernels, compared with PyTorch's layers in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from osa_reference import draw
from torch import Tensor
from torch.library import opcheck
from torchvision.ops import MultiScaleRoIAlign, roi_align

from vovnet.ops import inference
from vovnet.ops.algorithms import BFLOAT16
from vovnet.ops.build import loader
from vovnet.ops.inference import block_step, conv_step, packed_chain, packed_conv, pool_max, pool_step, roi_align_levels

# x, weight, stride, padding
CONVS: dict[str, Any] = {
    "3x3": ((2, 16, 7, 6), (24, 16, 3, 3), [1, 1], [1, 1]),
    "stem": ((2, 3, 9, 8), (16, 3, 3, 3), [2, 2], [1, 1]),
    "1x1": ((2, 32, 5, 4), (20, 32, 1, 1), [1, 1], [0, 0]),
    "as large as the map": ((3, 16, 7, 7), (12, 16, 7, 7), [1, 1], [0, 0]),
    "uneven": ((1, 16, 9, 8), (16, 16, 3, 2), [2, 1], [0, 1]),
    "no image": ((0, 16, 7, 6), (24, 16, 3, 3), [1, 1], [1, 1]),
}


def case(name: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, list[int], list[int]]:
    shape, kernel, stride, padding = CONVS[name]
    x = draw(shape, 0, dtype).contiguous(memory_format=torch.channels_last)
    return x, draw(kernel, 1, dtype) / math.sqrt(math.prod(kernel[1:])), draw(kernel[:1], 2, dtype), stride, padding


def nothing(like: Tensor) -> Tensor:
    """Return a placeholder for packed weights, which the references do not read."""
    return like.new_empty(0)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CONVS)
def test_a_convolution(name: str, bias: bool, relu: bool) -> None:
    x, weight, shift, stride, padding = case(name)
    expected = F.conv2d(x, weight, shift if bias else None, stride, padding)
    expected = F.relu(expected) if relu else expected
    got = packed_conv(x, weight, shift if bias else None, None, nothing(x), stride, padding, relu, 0)
    torch.testing.assert_close(got, expected)
    assert got.is_contiguous(memory_format=torch.channels_last)
    for size in (expected.shape[-2:], (2, 3), (1, 1)):
        residual = draw((*expected.shape[:2], *size), 3)
        added = expected + (F.interpolate(residual, expected.shape[-2:], mode="nearest") if len(x) else 0)
        got = packed_conv(x, weight, shift if bias else None, residual, nothing(x), stride, padding, relu, 0)
        torch.testing.assert_close(got, added)


@pytest.mark.parametrize("name", CONVS)
def test_a_convolution_of_bfloat16_numbers(name: str) -> None:
    """Products of rounded numbers are exact, and the sum is rounded once; the map may be float32."""
    x, weight, shift, stride, padding = case(name, torch.float32)
    expected = F.conv2d(x.bfloat16().double(), weight.bfloat16().double(), shift.double(), stride, padding).relu()
    residual = draw(expected.shape, 3, torch.bfloat16)
    for given in (x, x.bfloat16()):
        got = packed_conv(given, weight, shift, residual, nothing(x), stride, padding, True, BFLOAT16)
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.double(), expected + residual, rtol=2**-8, atol=1e-5)


def block_case(dtype: torch.dtype, identity: bool) -> tuple[Any, ...]:
    x = draw((2, 16, 7, 6), 0, dtype).contiguous(memory_format=torch.channels_last)
    shapes = [(16, 16, 3, 3), (20, 16, 3, 3), (16 if identity else 24, 16 + 16 + 20, 1, 1)]
    weights = [draw(shape, i, dtype) / math.sqrt(math.prod(shape[1:])) for i, shape in enumerate(shapes, 1)]
    return x, weights, [draw((shape[0],), i, dtype) for i, shape in enumerate(shapes, 7)]


@pytest.mark.parametrize("identity", [True, False])
def test_a_block(identity: bool) -> None:
    x, weights, biases = block_case(torch.float64, identity)
    first = F.relu(F.conv2d(x, weights[0], biases[0], padding=1))
    second = F.relu(F.conv2d(first, weights[1], biases[1], padding=1))
    expected = F.relu(F.conv2d(torch.cat([x, first, second], 1), weights[2], biases[2]))
    (got,) = packed_chain(x, weights, biases, [nothing(x)] * 3, [0] * 3, block_step(3, identity, True))
    torch.testing.assert_close(got, expected + x if identity else expected)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_a_chain() -> None:
    """The maps of steps with ``is_output`` are returned: a convolution, a pool, a block and another convolution."""
    x, weights, biases = block_case(torch.float64, True)
    first, last = draw((16, 16, 3, 3), 20, torch.float64) / 12, draw((5, 16, 1, 1), 21, torch.float64) / 4
    shift = draw((16,), 22, torch.float64)
    one = F.conv2d(x, first, shift, 2, 1)
    two = F.max_pool2d(one, 3, 2, ceil_mode=True)
    (three,) = packed_chain(two, weights, biases, [nothing(x)] * 3, [0] * 3, block_step(3, True, True))
    four = F.relu(F.conv2d(three, last))
    steps = [
        *conv_step([2, 2], [1, 1], False, False),
        *pool_step([3, 3], [2, 2], [0, 0], True, True),
        *block_step(3, True, False),
        *conv_step([1, 1], [0, 0], True, True),
    ]
    all_weights, all_biases = [first, *weights, last], [shift, *biases, torch.zeros_like(four[0, :, 0, 0])]
    got = packed_chain(x, all_weights, all_biases, [nothing(x)] * 5, [0] * 5, steps)
    for expected, found in zip((two, four), got, strict=True):
        torch.testing.assert_close(found, expected)
        assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("arguments", [([3, 3], [2, 2], [0, 0], True), ([2, 3], [1, 2], [1, 1], False)])
def test_a_pool(arguments: Any) -> None:
    x = draw((2, 5, 8, 9), 0)
    kernel, stride, padding, ceil_mode = arguments
    got = pool_max(x, *arguments)
    assert torch.equal(got, F.max_pool2d(x, kernel, stride, padding, 1, ceil_mode))
    assert got.is_contiguous(memory_format=torch.channels_last)


def rois(count: int) -> Tensor:
    corner = draw((count, 2), 5, torch.float32).abs() * 30
    sides = draw((count, 2), 6, torch.float32).abs() * 40 + 1
    return torch.cat((torch.arange(count)[:, None] % 2, corner, corner + sides), dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 12])
def test_pooling_of_boxes(count: int, dtype: torch.dtype) -> None:
    maps = [draw((2, 6, size, size + 3), i, dtype) for i, size in enumerate((24, 12, 6))]
    boxes, levels, scales = rois(count), torch.arange(count) % 3, [0.25, 0.125, 0.0625]
    got = roi_align_levels(maps, boxes, levels, scales, [7, 5], 2, False)
    assert (got.shape, got.dtype) == ((count, 6, 7, 5), dtype)
    assert got.is_contiguous(memory_format=torch.channels_last)
    for i, box in enumerate(boxes):
        level = int(levels[i])
        expected = roi_align(maps[level].float(), box[None], [7, 5], scales[level], 2, False)[0]
        torch.testing.assert_close(got[i], expected.to(dtype))


def test_pooling_of_boxes_as_a_detectors() -> None:
    maps = {str(i): draw((2, 6, 48 >> i, 56 >> i), i, torch.float32) for i in range(3)}
    pool: Any = MultiScaleRoIAlign(["0", "1", "2"], output_size=7, sampling_ratio=0)
    boxes = [part[:, 1:] * 3 for part in (rois(5), rois(4))]
    expected = pool(maps, boxes, [(192, 224)] * 2)
    together = torch.cat([F.pad(part, (1, 0), value=i) for i, part in enumerate(boxes)])
    levels = pool.map_levels(boxes)
    assert len(levels.unique()) > 1
    got = roi_align_levels(list(maps.values()), together, levels, pool.scales, [7, 7], 0, False)
    torch.testing.assert_close(got, expected)


def in_use(weight: Tensor, method: int) -> Tensor:
    """Return a weight for this process's operators: packed if the compiled kernels are loaded."""
    try:
        return torch.ops.vovnet.pack_conv(weight, method)  # type: ignore[no-any-return]
    except NotImplementedError:
        return nothing(weight)


@pytest.fixture(params=["reference", "kernels"])
def loaded(request: pytest.FixtureRequest) -> None:
    """The references are called until the compiled library is loaded; it is never unloaded."""
    if request.param == "kernels" and not loader.cpu_operators():
        pytest.skip("needs the compiled operators for the CPU")


@pytest.mark.parametrize("name", [name for name in CONVS if name != "uneven"])
def test_the_convolutions_schema_and_fake_kernel(name: str, loaded: None) -> None:
    x, weight, bias, stride, padding = case(name, torch.float32)
    operator = torch.ops.vovnet.packed_conv.default
    opcheck(operator, (x, weight, bias, None, in_use(weight, 0), stride, padding, True, 0))
    residual = torch.zeros_like(operator(x, weight, bias, None, in_use(weight, 0), stride, padding, True, 0))
    if len(x):
        opcheck(operator, (x, weight, None, residual, in_use(weight, 0), stride, padding, False, 0))


def test_the_others_schemas_and_fake_kernels(loaded: None) -> None:
    for identity in (True, False):
        x, weights, biases = block_case(torch.float32, identity)
        ready = [in_use(weight, 0) for weight in weights]
        steps = [*pool_step([3, 3], [1, 2], [1, 1], False, True), *block_step(3, identity, True)]
        opcheck(torch.ops.vovnet.packed_chain.default, (x, weights, biases, ready, [0] * 3, steps))
    for dtype in (torch.float32, torch.bfloat16):
        pooled = draw((2, 16, 8, 9), 0, dtype).contiguous(memory_format=torch.channels_last)
        opcheck(torch.ops.vovnet.pool_max.default, (pooled, [3, 3], [2, 2], [0, 0], True))
        maps = [draw((2, 16, n, n), n, dtype).contiguous(memory_format=torch.channels_last) for n in (16, 8)]
        for count in (0, 5):
            arguments = (maps, rois(count), torch.arange(count) % 2, [0.25, 0.125], [7, 7], 2, False)
            opcheck(torch.ops.vovnet.roi_align_levels.default, arguments)


def test_types_of_fake_results() -> None:
    x, weight, bias, stride, padding = case("3x3", torch.float32)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in (x, weight, bias)]
        for method, dtype in ((0, torch.float32), (BFLOAT16, torch.bfloat16)):
            out = torch.ops.vovnet.packed_conv(*fake, None, fake[0], stride, padding, True, method)
            assert (out.shape, out.dtype) == ((2, 24, 7, 6), dtype)


def test_repeated_leaves_what_fits() -> None:
    x = draw((1, 2, 3, 4), 0)
    assert inference.repeated(x, (3, 4)) is x
