"""The operators on a GPU, by the compiled kernels and by the reference: exact, deterministic, capturable.

``test_gpu.py`` runs these checks with pytest, and ``make gpu`` without it. They need PyTorch alone. Those that need no
GPU run on the CPU, too, so that a mistake in a check shows without one.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import osa_reference as reference
import torch
from osa_reference import draw, kept_bytes, largest_error, leaf, storages
from torch import Tensor

from vovnet.errors import InputError
from vovnet.ops import conv_affine_relu, cuda, osa_aggregate

WAYS = ("require", "off")
"""The values of ``VOVNET_OPS``: with the kernels, and with the reference."""

TYPES = (torch.float16, torch.bfloat16, torch.float32)
LAYOUTS = ("channels-last", "contiguous", "misaligned channels-last")
PARAMETERS = ("own", "float32")
"""The dtype of weights: that of the maps, or float32."""

# N, the inputs' channels, H, W, the output's channels; the last cannot be the kernels'
Shape = tuple[int, tuple[int, ...], int, int, int]
SHAPES: tuple[Shape, ...] = (
    (2, (64, 64, 64, 64, 64, 64), 25, 42, 112),
    (1, (128, 80, 96), 13, 7, 256),
    (3, (32,), 1, 1, 8),
    (0, (32, 16), 4, 4, 16),
    (2, (5, 3), 6, 7, 9),
)


@dataclass(frozen=True)
class Check:
    """One check with its values.

    Attributes:
        function: takes the device and the values; raises an AssertionError if the operators are wrong.
        values: name → value.
        way: one of :data:`WAYS`.
        needs_gpu: the check uses streams, graphs or several devices.
    """

    function: Callable[..., None]
    values: dict[str, Any]
    way: str
    needs_gpu: bool

    def __str__(self) -> str:
        words = (str(value).removeprefix("torch.") for value in self.values.values())
        return "-".join([self.function.__name__, self.way, *words])

    def run(self, device: torch.device) -> None:
        """Run the check. float32 is not rounded to TF32 meanwhile."""
        precise = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with _operators(self.way), precise:
            self.function(device, **self.values)


@contextmanager
def _operators(way: str) -> Iterator[None]:
    before = os.environ.get("VOVNET_OPS")
    os.environ["VOVNET_OPS"] = way
    try:
        yield
    finally:
        os.environ.pop("VOVNET_OPS")
        if before is not None:
            os.environ["VOVNET_OPS"] = before


CHECKS: list[Check] = []


def over(*, needs_gpu: bool = False, **axes: Sequence[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a check for each way and each combination of values."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        for way, *values in itertools.product(WAYS, *axes.values()):
            CHECKS.append(Check(function, dict(zip(axes, values, strict=True)), str(way), needs_gpu))
        return function

    return register


def expect(condition: bool, what: str) -> None:
    """Raise an AssertionError that says what was expected; these checks also run without pytest's own messages."""
    if not condition:
        raise AssertionError(f"expected {what}")


def case(
    device: torch.device,
    shape: Shape,
    dtype: torch.dtype,
    layout: str = "channels-last",
    parameters: torch.dtype | None = None,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Return inputs, weight, bias and residual."""
    n, channels, h, w, out = shape
    inputs = [leaf(draw((n, c, h, w), i, dtype).to(device), layout) for i, c in enumerate(channels)]
    weight = draw((out, sum(channels), 1, 1), 10, dtype) / math.sqrt(sum(channels))
    weight, bias = (leaf(t.to(device, parameters or dtype)) for t in (weight, draw((out,), 11, dtype)))
    return inputs, weight, bias, leaf(draw((n, out, h, w), 12, dtype).to(device), layout)


def gradients(out: Tensor, wanted: list[Tensor]) -> tuple[Tensor, ...]:
    """Return the gradients for a fixed gradient of the output."""
    grad = draw(out.shape, 20, torch.float16).to(out.device, out.dtype).contiguous(memory_format=torch.channels_last)
    return torch.autograd.grad(out, wanted, grad)


def judge(own: list[Tensor], plain: list[Tensor], exact: list[Tensor], multiple: float = 4) -> None:
    """Errors against float64 are at most a small multiple of those of PyTorch's own operators on this device."""
    for place, (one, peer, truth) in enumerate(zip(own, plain, exact, strict=True)):
        if truth.numel():
            allowed = multiple * largest_error(peer, truth) + torch.finfo(torch.float32).eps * 4
            error = largest_error(one, truth)
            expect(error <= allowed, f"result {place} with an error of at most {allowed:.2e}, got {error:.2e}")


def equal(got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """The tensors are equal to the last bit."""
    for place, (one, other) in enumerate(zip(got, expected, strict=True)):
        expect(torch.equal(one, other), f"result {place} with equal bits")


@over(shape=SHAPES, dtype=TYPES, layout=LAYOUTS, parameters=PARAMETERS)
def aggregation_is_as_exact_as_pytorchs(
    device: torch.device, shape: Shape, dtype: torch.dtype, layout: str, parameters: str
) -> None:
    tensors = case(device, shape, dtype, layout, torch.float32 if parameters == "float32" else dtype)
    inputs, weight, bias, residual = tensors
    if os.environ["VOVNET_OPS"] == "require" and layout == "channels-last":
        can = torch.cuda.get_device_capability(device) >= (8, 0) or dtype != torch.bfloat16
        served = cuda.supported(inputs, weight)
        expect(served == (can and sum(shape[1]) != 8), f"the kernels to take this case or not, got {served}")
    flat = [*inputs, weight, bias, residual]
    exact = [leaf(t.double()) for t in flat]
    lowered = [leaf(t.to(dtype)) for t in flat]
    count = len(inputs)
    results = []
    for function, of in ((osa_aggregate, flat), (reference.aggregate, lowered), (reference.aggregate, exact)):
        out = function(of[:count], *of[count:], False)  # near zero a ReLU may decide otherwise for rounded sums
        results.append([out, *gradients(out, of)])
    expect(results[0][0].dtype == dtype, f"an output of {dtype}, got {results[0][0].dtype}")
    types = [g.dtype for g in results[0][1:]]
    expect(types == [t.dtype for t in flat], f"gradients of their tensors' dtypes, got {types}")
    judge(*results)


@over(shape=SHAPES, dtype=TYPES)
def bits_are_those_of_the_output(device: torch.device, shape: Shape, dtype: torch.dtype) -> None:
    """The gradient passes only where the output without residual is above zero."""
    inputs, weight, bias, _ = case(device, shape, dtype)
    out = osa_aggregate(inputs, weight, bias)
    expect(not (out < 0).any(), "no negative output of a ReLU")
    got = gradients(out, [*inputs, weight, bias])
    passed = draw(out.shape, 20, torch.float16).to(device, dtype) * (out > 0)
    linear = osa_aggregate(inputs, weight, bias, relu=False)
    expected = torch.autograd.grad(
        linear, [*inputs, weight, bias], passed.contiguous(memory_format=torch.channels_last)
    )
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


@over(dtype=TYPES, layout=LAYOUTS[:2], parameters=PARAMETERS)
def convolution_is_as_exact_as_pytorchs(device: torch.device, dtype: torch.dtype, layout: str, parameters: str) -> None:
    x = leaf(draw((2, 64, 25, 42), 0, dtype).to(device), layout)
    shapes = ((80, 64, 3, 3), (80,), (80,))
    kinds = torch.float32 if parameters == "float32" else dtype
    own = [x, *(leaf((draw(s, i, dtype) / 8).to(device, kinds)) for i, s in enumerate(shapes))]
    results = []
    for function, of in (
        (lambda *t: conv_affine_relu(*t, 2, 1, relu=False), own),
        (lambda *t: reference.convolution(*t, (2, 1, 1, 1), False), [leaf(t.to(dtype)) for t in own]),
        (lambda *t: reference.convolution(*t, (2, 1, 1, 1), False), [leaf(t.double()) for t in own]),
    ):
        out = function(*of)
        results.append([out, *gradients(out, of)])
    types = [g.dtype for g in results[0][1:]]
    expect(types == [t.dtype for t in own], f"gradients of their tensors' dtypes, got {types}")
    judge(*results)


def step(device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], Callable[[], list[Tensor]]]:
    """Return tensors, and a function that computes the output of both operators and all gradients from them."""
    inputs, weight, bias, residual = case(device, SHAPES[0], dtype)
    kernel = leaf(draw((64, 64, 3, 3), 5, dtype).to(device) / 24)
    scale, shift = (leaf(draw((64,), i, dtype).to(device)) for i in (6, 7))
    flat = [*inputs, weight, bias, residual, kernel, scale, shift]
    grad = draw(residual.shape, 8, dtype).to(device).contiguous(memory_format=torch.channels_last)

    def run() -> list[Tensor]:
        first = conv_affine_relu(inputs[0], kernel, scale, shift, padding=1)
        out = osa_aggregate([first, *inputs[1:]], weight, bias, residual)
        return [out, *torch.autograd.grad(out, flat, grad)]

    return flat, run


@over(dtype=TYPES)
def equal_inputs_give_equal_bits(device: torch.device, dtype: torch.dtype) -> None:
    _, run = step(device, dtype)
    first = run()
    for _ in range(5):
        equal(run(), first)


@over(needs_gpu=True, dtype=TYPES)
def a_graph_captures_forward_and_backward(device: torch.device, dtype: torch.dtype) -> None:
    flat, run = step(device, dtype)
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


@over(needs_gpu=True)
def the_current_stream_is_used(device: torch.device) -> None:
    """The operators run on the current stream, behind its pending work, not on the default stream."""
    _, run = step(device, torch.float16)
    expected = run()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        got = run()
        ahead = torch.cuda.Event()
        ahead.record(stream)
    expect(torch.cuda.current_stream() != stream, "the default stream to be current again")
    torch.cuda.default_stream().synchronize()
    ahead.synchronize()
    equal(got, expected)


@over(dtype=TYPES, special=(math.nan, math.inf))
def special_values_pass_as_in_eager(device: torch.device, dtype: torch.dtype, special: float) -> None:
    """This holds for cuDNN's fused ReLU, too."""
    x = draw((1, 32, 4, 4), 0, dtype).to(device).contiguous(memory_format=torch.channels_last)
    x[0, 3, 1, 2] = special
    weight, shift = draw((32, 32, 1, 1), 1, dtype).to(device).abs(), torch.zeros(32, dtype=dtype, device=device)
    plain = torch.relu(torch.nn.functional.conv2d(x, weight, shift))
    for own in (osa_aggregate([x], weight, shift), conv_affine_relu(x, weight, None, shift)):
        equal([own.isnan(), own.isinf()], [plain.isnan(), plain.isinf()])


@over(dtype=TYPES)
def autograd_keeps_inputs_weight_and_bits(device: torch.device, dtype: torch.dtype) -> None:
    inputs, weight, bias, residual = case(device, SHAPES[0], dtype)
    with kept_bytes() as kept:
        out = osa_aggregate(inputs, weight, bias, residual)
    own = storages(*inputs, weight)
    expect(own.items() <= kept.items(), "the inputs and the weight to be kept")
    more = sum(kept.values()) - sum(own.values())
    expect(more == math.ceil(out.numel() / 8), f"a bit per element of the output besides, got {more} bytes")
    kernel = leaf(draw((64, 64, 3, 3), 5, dtype).to(device))
    scale, shift = (leaf(draw((64,), i, dtype).to(device)) for i in (6, 7))
    with kept_bytes() as kept:
        out = conv_affine_relu(inputs[0], kernel, scale, shift, padding=1)
    expect(kept == storages(inputs[0], kernel, scale, out), "the convolution to keep input, weight, scale and output")


@over(needs_gpu=True)
def mixed_devices_are_refused(device: torch.device) -> None:
    inputs, weight, *_ = case(device, SHAPES[1], torch.float32)
    _refused("inputs[1]", lambda: osa_aggregate([inputs[0], inputs[1].cpu(), inputs[2]], weight))
    _refused("weight", lambda: conv_affine_relu(inputs[0], draw((8, 128, 1, 1), 0, torch.float32)))


def _refused(argument: str, call: Callable[[], object]) -> None:
    try:
        call()
    except InputError as error:
        text = str(error)
        expect(f"{argument}: expected it on cuda:0" in text and "got cpu" in text, f"{argument} in the error: {text}")
    else:
        raise AssertionError(f"expected an InputError for {argument}, got none")
