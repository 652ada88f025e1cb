"""Each fused layer against PyTorch's layer in float64, in every layout, type and geometry."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from osa_reference import LAYOUTS, draw
from torch import Tensor, nn

from vovnet.errors import InputError
from vovnet.fusion import base
from vovnet.fusion.layers import FusedConv, FusedMaxPool2d, FusedOsaBlock
from vovnet.fusion.linear import FusedLinear
from vovnet.modules import Geometry, to_pair

# x, weight, stride, padding, dilation, groups
CONVS: dict[str, Any] = {
    "3x3": ((2, 16, 9, 7), (24, 16, 3, 3), 1, 1, 1, 1),
    "one map": ((1, 32, 21, 18), (33, 32, 3, 3), 1, 1, 1, 1),
    "stem": ((2, 3, 33, 30), (20, 3, 3, 3), 2, 1, 1, 1),
    "stem of one channel": ((1, 1, 9, 30), (16, 1, 3, 3), 2, 1, 1, 1),
    "stride 2": ((2, 16, 17, 14), (16, 16, 3, 3), 2, 1, 1, 1),
    "1x1": ((2, 24, 13, 5), (40, 24, 1, 1), 1, 0, 1, 1),
    "1x1, stride 2": ((2, 24, 13, 6), (40, 24, 1, 1), 2, 0, 1, 1),
    "one pixel": ((3, 16, 1, 1), (17, 16, 3, 3), 1, 1, 1, 1),
    "one channel": ((2, 1, 5, 4), (1, 1, 3, 3), 1, 1, 1, 1),
    "narrow": ((2, 7, 6, 5), (5, 7, 3, 3), 1, 1, 1, 1),
    "no padding": ((2, 16, 6, 5), (8, 16, 3, 3), 1, 0, 1, 1),
    "dilated": ((2, 16, 9, 8), (8, 16, 3, 3), 1, 2, 2, 1),
    "depthwise": ((2, 16, 9, 8), (16, 1, 3, 3), 1, 1, 1, 16),
    "5x5": ((2, 16, 9, 8), (8, 16, 5, 5), 1, 2, 1, 1),
    "1x3": ((2, 16, 9, 8), (8, 16, 1, 3), 1, (0, 1), 1, 1),
    "stride 3": ((2, 16, 9, 8), (8, 16, 3, 3), 3, 1, 1, 1),
}
BOUND = 1e-5


def conv(name: str, bias: bool = True, **options: Any) -> tuple[FusedConv, Tensor, Any]:
    """Return a layer, its input, and a function that computes the layer in float64."""
    shape, kernel, stride, padding, dilation, groups = CONVS[name]
    weight = draw(kernel, 1) / math.sqrt(math.prod(kernel[1:]))
    shift = draw(kernel[:1], 2) if bias else None
    geometry = Geometry(to_pair(stride), to_pair(padding), to_pair(dilation), groups)
    options = {"relu": True, **options}
    layer = FusedConv(weight.float(), None if shift is None else shift.float(), geometry, **options)

    def exact(x: Tensor, residual: Tensor | None = None) -> Tensor:
        out = F.conv2d(x.double(), layer.weight.double(), None if shift is None else shift, *geometry)
        out = F.relu(out) if layer.relu else out
        out = out if layer.act is None else layer.act(out)
        if residual is None:
            return out
        return out + F.interpolate(residual.double(), size=out.shape[-2:], mode="nearest")

    return layer, draw(shape, 0, torch.float32), exact


def close(got: Tensor, expected: Tensor, bound: float = BOUND) -> None:
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= bound * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("name", CONVS)
def test_convolutions(name: str, relu: bool, way: str) -> None:
    layer, x, exact = conv(name, relu=relu)
    out = layer(x)
    close(out, exact(x))
    assert out.is_contiguous(memory_format=torch.channels_last)
    direct = conv(name, relu=relu, algorithm="direct")[0]
    close(direct(x), exact(x))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["3x3", "stem", "1x1"])
def test_layouts(name: str, layout: str, way: str) -> None:
    layer, x, exact = conv(name)
    close(layer(LAYOUTS[layout](x)), exact(x))


@pytest.mark.parametrize("name", ["3x3", "1x1"])
def test_without_bias(name: str, way: str) -> None:
    layer, x, exact = conv(name, bias=False)
    close(layer(x), exact(x))


def test_other_activations(way: str) -> None:
    layer, x, exact = conv("3x3", relu=False, act=nn.Hardswish(inplace=True))
    close(layer(x), exact(x))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(13, 5), (7, 3), (1, 1), (4, 5)])
def test_what_is_added_is_repeated(size: tuple[int, int], layout: str, way: str) -> None:
    for relu in (False, True):
        layer, x, exact = conv("1x1", relu=relu)
        residual = draw((2, 40, *size), 5, torch.float32)
        close(layer(x, LAYOUTS[layout](residual)), exact(x, residual))


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("name", ["stem", "stride 2", "1x1"])
def test_numbers_that_are_none_go_where_they_go_in_pytorch(name: str, value: float, way: str) -> None:
    """Exceptions: Winograd's algorithm mixes the pixels of a tile, and oneDNN's ReLU turns NaN into 0."""
    layer, x, exact = conv(name, algorithm="direct")
    x[0, 0, 2, 3] = value
    got, expected = layer(x), exact(x)
    if way == "plain":
        expected.nan_to_num_(0, torch.inf, -torch.inf)
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.isinf(), expected.isinf())
    close(got.nan_to_num(0, 0, 0), expected.nan_to_num(0, 0, 0))


@pytest.mark.parametrize("algorithm", ["direct", "auto"])
@pytest.mark.parametrize("name", CONVS)
def test_bfloat16_is_as_exact_as_pytorchs(name: str, algorithm: str, way: str) -> None:
    """F(2×2) rounds twice where a sum of products rounds once. In a whole network, PyTorch rounds more often."""
    layer, x, exact = conv(name, precision="bf16", algorithm=algorithm)
    for given in (x, x.bfloat16()):
        out = layer(given)
        assert out.dtype == torch.bfloat16
        geometry = layer.geometry
        eager = F.conv2d(given.bfloat16(), layer.weight.bfloat16(), layer.bias.bfloat16(), *geometry).relu()
        true = exact(given)
        assert _rms(out - true) <= (1.1 if algorithm == "direct" else 1.7) * _rms(eager - true)


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(2, 15, 9, 7), r"x: expected \(N, 16, H, W\), got \(2, 15, 9, 7\)"),
        (torch.zeros(16, 9), r"x: expected \(N, 16, H, W\), got \(16, 9\)"),
        (torch.zeros(2, 16, 9, 7).double(), "x: expected torch.float32, got torch.float64"),
        (torch.zeros(2, 16, 9, 7).bfloat16(), "x: expected torch.float32, got torch.bfloat16"),
        (torch.zeros(2, 16, 9, 7, device="meta"), "x: expected it on cpu, where the fused layer is, got meta"),
    ],
)
def test_wrong_input(x: Tensor, words: str, way: str) -> None:
    layer = conv("3x3")[0]
    block = FusedOsaBlock([layer], conv("1x1")[0], identity=False)
    for one in (layer, block):
        with pytest.raises(InputError, match=words):
            one(x)


def test_wrong_input_of_a_linear_layer(way: str) -> None:
    layer = FusedLinear(torch.zeros(4, 48), torch.zeros(4), relu=False)
    for x in (torch.zeros(2, 47), torch.zeros(2, 3, 4, 5), torch.zeros(48)):
        with pytest.raises(InputError, match=r"x: expected \(N, C, H, W\) or \(N, C\) of 48"):
            layer(x)
    with pytest.raises(InputError, match=r"expected torch.float32, got torch.float64"):
        layer(torch.zeros(2, 48).double())


@pytest.mark.parametrize("shape", [(0, 16, 9, 7), (2, 16, 0, 7), (2, 16, 9, 0)])
@pytest.mark.parametrize("name", ["3x3", "1x1"])
def test_empty_maps_end_as_in_pytorch(name: str, shape: tuple[int, ...], way: str) -> None:
    layer, _, exact = conv(name)
    x = torch.zeros(shape[0], layer.in_channels, *shape[2:])
    try:
        expected = exact(x)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            layer(x)
    else:
        close(layer(x), expected) if expected.numel() else None
        assert layer(x).shape == expected.shape


@pytest.mark.parametrize("shape", [(5, 3, 4, 4), (5, 48), (1, 48, 1, 1), (300, 12, 2, 2)])
@pytest.mark.parametrize("relu", [True, False])
def test_linear_layers(shape: tuple[int, ...], relu: bool, way: str) -> None:
    weight, bias = draw((37, 48), 1, torch.float32), draw((37,), 2, torch.float32)
    x = draw(shape, 0, torch.float32)
    expected = F.linear(x.double().flatten(1), weight.double(), bias.double())
    layer = FusedLinear(weight, bias, relu=relu)
    for given in (x, x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.t().contiguous().t()):
        close(layer(given), expected.relu() if relu else expected)
    assert layer(x[:0]).shape == (0, 37)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "arguments", [([3, 3], [2, 2], [0, 0], True), ([3, 3], [1, 1], [1, 1], True), ([2, 3], [2, 1], [1, 0], False)]
)
def test_pools(arguments: Any, layout: str, way: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = draw((2, 20, 11, 14), 0, dtype)
        kernel, stride, padding, ceil_mode = arguments
        expected = F.max_pool2d(x, kernel, stride, padding, 1, ceil_mode)
        assert torch.equal(FusedMaxPool2d(*arguments)(LAYOUTS[layout](x)), expected)


def block(channels: int, mid: int, out: int, depth: int, *, identity: bool = False, attn: Any = None) -> FusedOsaBlock:
    convs = []
    for i in range(depth + 1):
        last = i == depth
        shape = (out, channels + depth * mid, 1, 1) if last else (mid, mid if i else channels, 3, 3)
        weight = draw(shape, i, torch.float32) * math.sqrt(2 / math.prod(shape[1:]))
        pad = [0, 0] if last else [1, 1]
        convs.append(
            FusedConv(weight, draw((shape[0],), 40 + i, torch.float32), Geometry([1, 1], pad, [1, 1], 1), relu=True)
        )
    return FusedOsaBlock(convs[:-1], convs[-1], identity=identity, attn=attn)


def concatenated(made: FusedOsaBlock, x: Tensor) -> Tensor:
    maps = [x.double()]
    convs: list[Any] = [*made.conv_mid, made.conv_concat]
    for layer in convs[:-1]:
        maps.append(F.conv2d(maps[-1], layer.weight.double(), layer.bias.double(), padding=1).relu())
    out = F.conv2d(torch.cat(maps, 1), convs[-1].weight.double(), convs[-1].bias.double()).relu()
    out = out if made.attn is None else copy.deepcopy(made.attn).double()(out)
    return out + x if made.identity else out


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("widths", "size"),
    [((16, 16, 24, 3), (9, 7)), ((32, 20, 32, 5), (21, 18)), ((16, 16, 16, 1), (1, 1)), ((9, 5, 9, 2), (6, 5))],
)
@pytest.mark.parametrize("kind", ["plain", "identity", "attention"])
def test_blocks(kind: str, widths: tuple[int, int, int, int], size: tuple[int, int], layout: str, way: str) -> None:
    channels, mid, out, depth = widths
    identity = kind != "plain" and channels == out
    attn = nn.Sequential(nn.Conv2d(out, out, 1), nn.Sigmoid()).requires_grad_(False) if kind == "attention" else None
    made = block(channels, mid, out, depth, identity=identity, attn=attn)
    x = draw((2, channels, *size), 9, torch.float32)
    got = made(LAYOUTS[layout](x))
    close(got, concatenated(made, x))
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_a_chain_longer_than_the_kernels_take(way: str) -> None:
    made = block(16, 16, 16, 17)
    assert not made.has_kernel
    x = draw((1, 16, 5, 6), 9, torch.float32)
    close(made(x), concatenated(made, x))


@pytest.mark.filterwarnings("ignore:a fused copy in")
def test_gradients_of_the_input_and_of_parameters_that_somebody_wants(way: str) -> None:
    """Gradients are PyTorch's, and none is missing."""
    made = block(16, 16, 16, 2, identity=True)
    made.conv_mid[0].weight.requires_grad_()
    x = draw((2, 16, 6, 5), 9, torch.float32).requires_grad_()
    made(x).square().sum().backward()
    twin, other = copy.deepcopy(made).double(), x.detach().double().requires_grad_()
    twin.conv_mid[0].weight.grad = None
    concatenated(twin, other).square().sum().backward()
    for got, expected in ((x.grad, other.grad), (made.conv_mid[0].weight.grad, twin.conv_mid[0].weight.grad)):
        close(got, expected, 1e-4)
    made.conv_mid[0].weight.requires_grad_(False)
    made.conv_concat.bias.requires_grad_()
    made(x.detach()).sum().backward()
    assert made.conv_concat.bias.grad is not None
    linear = FusedLinear(draw((4, 48), 1, torch.float32), torch.zeros(4), relu=True)
    x = draw((2, 3, 4, 4), 2, torch.float32).requires_grad_()
    linear(x).sum().backward()
    assert x.grad is not None


def test_a_parameter_is_packed_again_when_it_has_moved(way: str) -> None:
    layer, x, exact = conv("3x3")
    close(layer(x), exact(x))
    with torch.no_grad():
        layer.weight.mul_(2)
    layer.to(torch.float32)
    close(layer(x), exact(x))


def test_it_says_once_where_it_is_slow(recwarn: pytest.WarningsRecorder) -> None:
    base._warned.clear()
    for _ in range(2):
        conv("3x3")[0].half()
    conv("1x1")[0].half()
    conv("3x3")[0].to("meta")
    texts = [str(entry.message) for entry in recwarn]
    assert texts == ["a fused copy in torch.float16 on cpu runs as plain PyTorch: the kernels take float32 on the CPU"]


def test_what_it_says_of_itself() -> None:
    assert "16, 24, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1)" in repr(conv("3x3")[0])
    assert "48, 37, relu=True, fp32" in repr(FusedLinear(torch.zeros(37, 48), torch.zeros(37), relu=True))
    assert "kernel_size=[3, 3], stride=[2, 2]" in repr(FusedMaxPool2d([3, 3], [2, 2], [0, 0], True))


@pytest.mark.parametrize("name", CONVS)
def test_one_image_without_a_batch_is_taken_as_pytorch_takes_it(name: str) -> None:
    layer, x, exact = conv(name)
    expected = exact(x[0])
    residual = draw(tuple(expected.shape), 5, torch.float32)
    with torch.no_grad():
        found, added = layer(x[0]), layer(x[0], residual)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < BOUND * max(1.0, float(expected.abs().max()))
    assert float((added - expected - residual).abs().max()) < BOUND * max(1.0, float(expected.abs().max()))


def test_a_block_needs_a_batch_as_pytorchs_does() -> None:
    block = FusedOsaBlock([conv("3x3")[0]], conv("1x1")[0], identity=False)
    for shape, layer in (((16, 9, 7), block), ((17, 9, 7), block.convs[0])):
        with pytest.raises(InputError, match=r"^x: expected \(N, 16, H, W\), got \(1[67], 9, 7\)"):
            layer(torch.zeros(shape))
