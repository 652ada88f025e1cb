"""The operators on a real GPU, by the compiled kernels and by the reference: exact, deterministic, capturable.

Every test skips where there is no GPU; those of the kernels skip, too, where nothing can be compiled.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator

import osa_reference as reference
import pytest
import torch
from osa_reference import draw, kept_bytes, largest_error, leaf, storages
from torch import Tensor

from vovnet.ops import conv_affine_relu, cuda, osa_aggregate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and PyTorch sees none")

DEVICE = "cuda"
TYPES = [torch.float16, torch.bfloat16, torch.float32]
# N, the inputs' channels, H, W, the output's channels; the last cannot be the kernels'
SHAPES = [
    (2, (64, 64, 64, 64, 64, 64), 25, 42, 112),
    (1, (128, 80, 96), 13, 7, 256),
    (3, (32,), 1, 1, 8),
    (0, (32, 16), 4, 4, 16),
    (2, (5, 3), 6, 7, 9),
]


@pytest.fixture(params=["require", "off"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run with the kernels, or with the reference; float32 is not rounded to TF32."""
    if request.param == "require" and shutil.which("nvcc") is None:
        pytest.skip("needs nvcc on PATH to compile the kernels")
    monkeypatch.setenv("VOVNET_OPS", request.param)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield request.param


def case(shape, dtype, layout="channels-last", parameters=None) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    n, channels, h, w, out = shape
    inputs = [leaf(draw((n, c, h, w), i, dtype).to(DEVICE), layout) for i, c in enumerate(channels)]
    weight = draw((out, sum(channels), 1, 1), 10, dtype) / math.sqrt(sum(channels))
    weight, bias = (leaf(t.to(DEVICE, parameters or dtype)) for t in (weight, draw((out,), 11, dtype)))
    return inputs, weight, bias, leaf(draw((n, out, h, w), 12, dtype).to(DEVICE), layout)


def gradients(out: Tensor, wanted: list[Tensor]) -> tuple[Tensor, ...]:
    grad = draw(out.shape, 20, torch.float16).to(out.device, out.dtype).contiguous(memory_format=torch.channels_last)
    return torch.autograd.grad(out, wanted, grad)


def judge(own: list[Tensor], plain: list[Tensor], exact: list[Tensor], multiple: float = 4) -> None:
    """Errors against float64 are at most a small multiple of those of PyTorch's own operators on this GPU."""
    for one, peer, truth in zip(own, plain, exact, strict=True):
        if truth.numel():
            floor = torch.finfo(torch.float32).eps * 4
            assert largest_error(one, truth) <= multiple * largest_error(peer, truth) + floor


@pytest.mark.parametrize("parameters", ["own", "float32"])
@pytest.mark.parametrize("layout", ["channels-last", "contiguous", "misaligned channels-last"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_aggregation_is_as_exact_as_pytorchs(way, shape, dtype, layout, parameters):
    tensors = case(shape, dtype, layout, torch.float32 if parameters == "float32" else dtype)
    inputs, weight, bias, residual = tensors
    can = torch.cuda.get_device_capability() >= (8, 0) or dtype == torch.float16
    if way == "require" and layout == "channels-last" and can:
        assert cuda.supported(inputs, weight) == (sum(shape[1]) != 8)
    flat = [*inputs, weight, bias, residual]
    exact = [leaf(t.double()) for t in flat]
    lowered = [leaf(t.to(dtype)) for t in flat]
    count = len(inputs)
    results = []
    for function, of in ((osa_aggregate, flat), (reference.aggregate, lowered), (reference.aggregate, exact)):
        out = function(of[:count], *of[count:], False)  # near zero a ReLU may decide otherwise for rounded sums
        results.append([out, *gradients(out, of)])
    assert results[0][0].dtype == dtype
    assert [g.dtype for g in results[0][1:]] == [t.dtype for t in flat]
    judge(*results)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_bits_are_those_of_the_output(way, shape, dtype):
    """The gradient passes only where the output without residual is above zero."""
    inputs, weight, bias, _ = case(shape, dtype)
    out = osa_aggregate(inputs, weight, bias)
    assert not (out < 0).any()
    got = gradients(out, [*inputs, weight, bias])
    passed = draw(out.shape, 20, torch.float16).to(DEVICE, dtype) * (out > 0)
    linear = osa_aggregate(inputs, weight, bias, relu=False)
    expected = torch.autograd.grad(
        linear, [*inputs, weight, bias], passed.contiguous(memory_format=torch.channels_last)
    )
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("parameters", ["own", "float32"])
@pytest.mark.parametrize("layout", ["channels-last", "contiguous"])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_convolution_is_as_exact_as_pytorchs(way, dtype, layout, parameters):
    x = leaf(draw((2, 64, 25, 42), 0, dtype).to(DEVICE), layout)
    shapes = ((80, 64, 3, 3), (80,), (80,))
    kinds = torch.float32 if parameters == "float32" else dtype
    own = [x, *(leaf((draw(s, i, dtype) / 8).to(DEVICE, kinds)) for i, s in enumerate(shapes))]
    results = []
    for function, of in (
        (lambda *t: conv_affine_relu(*t, 2, 1, relu=False), own),
        (lambda *t: reference.convolution(*t, (2, 1, 1, 1), False), [leaf(t.to(dtype)) for t in own]),
        (lambda *t: reference.convolution(*t, (2, 1, 1, 1), False), [leaf(t.double()) for t in own]),
    ):
        out = function(*of)
        results.append([out, *gradients(out, of)])
    assert [g.dtype for g in results[0][1:]] == [t.dtype for t in own]
    judge(*results)


def step(dtype: torch.dtype) -> tuple[list[Tensor], Callable[[], list[Tensor]]]:
    """Return tensors, and a function that computes the output of both operators and all gradients from them."""
    inputs, weight, bias, residual = case(SHAPES[0], dtype)
    kernel = leaf(draw((64, 64, 3, 3), 5, dtype).to(DEVICE) / 24)
    scale, shift = (leaf(draw((64,), i, dtype).to(DEVICE)) for i in (6, 7))
    flat = [*inputs, weight, bias, residual, kernel, scale, shift]
    grad = draw(residual.shape, 8, dtype).to(DEVICE).contiguous(memory_format=torch.channels_last)

    def run() -> list[Tensor]:
        first = conv_affine_relu(inputs[0], kernel, scale, shift, padding=1)
        out = osa_aggregate([first, *inputs[1:]], weight, bias, residual)
        return [out, *torch.autograd.grad(out, flat, grad)]

    return flat, run


@pytest.mark.parametrize("dtype", TYPES)
def test_equal_inputs_give_equal_bits(way, dtype):
    _, run = step(dtype)
    first = run()
    for _ in range(5):
        for one, other in zip(run(), first, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_graph_captures_forward_and_backward(way, dtype):
    flat, run = step(dtype)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    with torch.no_grad():
        for tensor in flat:
            tensor.mul_(-0.75)
    graph.replay()
    torch.cuda.synchronize()
    for one, other in zip(captured, run(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_current_stream_is_used(way):
    """The operators run on the current stream, behind its pending work, not on the default stream."""
    _, run = step(torch.float16)
    expected = run()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        got = run()
        ahead = torch.cuda.Event()
        ahead.record(stream)
    assert torch.cuda.current_stream() != stream
    torch.cuda.default_stream().synchronize()
    ahead.synchronize()
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("special", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", TYPES)
def test_special_values_pass_as_in_eager(way, dtype, special):
    """This holds for cuDNN's fused ReLU, too."""
    x = draw((1, 32, 4, 4), 0, dtype).to(DEVICE).contiguous(memory_format=torch.channels_last)
    x[0, 3, 1, 2] = special
    weight, shift = draw((32, 32, 1, 1), 1, dtype).to(DEVICE).abs(), torch.zeros(32, dtype=dtype, device=DEVICE)
    plain = torch.relu(torch.nn.functional.conv2d(x, weight, shift))
    for own in (osa_aggregate([x], weight, shift), conv_affine_relu(x, weight, None, shift)):
        assert torch.equal(own.isnan(), plain.isnan())
        assert torch.equal(own.isinf(), plain.isinf())


@pytest.mark.parametrize("dtype", TYPES)
def test_what_autograd_keeps(way, dtype):
    inputs, weight, bias, residual = case(SHAPES[0], dtype)
    with kept_bytes() as kept:
        out = osa_aggregate(inputs, weight, bias, residual)
    own = storages(*inputs, weight)
    assert own.items() <= kept.items()
    assert sum(kept.values()) - sum(own.values()) == math.ceil(out.numel() / 8)
    kernel = leaf(draw((64, 64, 3, 3), 5, dtype).to(DEVICE))
    scale, shift = (leaf(draw((64,), i, dtype).to(DEVICE)) for i in (6, 7))
    with kept_bytes() as kept:
        out = conv_affine_relu(inputs[0], kernel, scale, shift, padding=1)
    assert kept == storages(inputs[0], kernel, scale, out)


def test_mixed_devices_are_refused():
    inputs, weight, *_ = case(SHAPES[1], torch.float32)
    with pytest.raises(ValueError, match=r"inputs\[1\]: expected it on cuda:0, .* got cpu"):
        osa_aggregate([inputs[0], inputs[1].cpu(), inputs[2]], weight)
    with pytest.raises(ValueError, match=r"weight: expected it on cuda:0, .* got cpu"):
        conv_affine_relu(inputs[0], draw((8, 128, 1, 1), 0, torch.float32))
