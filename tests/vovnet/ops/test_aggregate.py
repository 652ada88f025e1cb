"""The aggregation, compared with concatenation, convolution, ReLU and addition in PyTorch."""

from __future__ import annotations

import math

import osa_reference as reference
import pytest
import torch
from osa_reference import LAYOUTS, draw, kept_bytes, largest_error, leaf, storages
from torch import Tensor
from torch.library import opcheck
from torch.profiler import ProfilerActivity, profile

from vovnet.ops import osa_aggregate

# N, the inputs' channels, H, W, the output's channels
SHAPES = [
    (2, (3, 5, 4), 5, 7, 6),
    (1, (8,), 1, 1, 8),
    (3, (1, 1), 4, 3, 1),
    (2, (3, 1, 2), 4, 3, 5),
    (2, (2, 3), 1, 1, 4),
    (2, (3,), 1, 9, 1),
    (0, (4, 2), 3, 3, 5),
    (1, (1, 2, 3, 4, 5, 6), 3, 5, 7),
    (1, (2, 1), 101, 100, 3),  # large for oneDNN
]
LOWER = [torch.bfloat16, torch.float16]
BOTH = [torch.float64, torch.float32]
"""On a CPU, oneDNN computes float32; other dtypes take another path."""


def case(shape, layouts=("contiguous",), dtype=torch.float64, grad=True):
    """Return inputs that cycle through the layouts, weight, bias, residual."""
    n, channels, h, w, out = shape
    inputs = [leaf(draw((n, c, h, w), i, dtype), layouts[i % len(layouts)], grad) for i, c in enumerate(channels)]
    weight = leaf(draw((out, sum(channels), 1, 1), 10, dtype) / math.sqrt(sum(channels)), layouts[0], grad)
    bias = leaf(draw((out,), 11, dtype), grad=grad)
    residual = leaf(draw((n, out, h, w), 12, dtype), layouts[-1], grad)
    return inputs, weight, bias, residual


def gradients(out: Tensor, wanted: list[Tensor], seed: int = 20) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out, wanted, draw(out.shape, seed, out.dtype))


def check(inputs, weight, bias, residual, relu) -> None:
    """Values and all gradients equal the reference's up to rounding."""
    bound = 1e-12 if weight.dtype == torch.float64 else 2e-5
    out = osa_aggregate(inputs, weight, bias, residual, relu)
    expected = reference.aggregate(inputs, weight, bias, residual, relu)
    torch.testing.assert_close(out, expected, rtol=bound, atol=bound)
    last = inputs[0].is_contiguous(memory_format=torch.channels_last) and not inputs[0].is_contiguous()
    assert out.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    wanted = [x for x in {id(x): x for x in (*inputs, weight, bias, residual)}.values() if x is not None]
    wanted = [x for x in wanted if x.requires_grad]
    if wanted:
        got = gradients(out, wanted)
        for one, other, x in zip(got, gradients(expected, wanted), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=bound, atol=bound)
            assert (one.dtype, one.shape) == (x.dtype, x.shape)


@pytest.mark.parametrize("layouts", [(name,) for name in LAYOUTS] + [("channels-last", "contiguous"), tuple(LAYOUTS)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", BOTH)
def test_equals_the_concatenation(dtype, shape, layouts):
    check(*case(shape, layouts, dtype), relu=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("dtype", BOTH)
def test_what_may_be_left_out(dtype, layout, relu, with_bias, with_residual):
    inputs, weight, bias, residual = case(SHAPES[0], (layout,), dtype)
    check(inputs, weight, bias if with_bias else None, residual if with_residual else None, relu)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("wanted", range(2**5))
@pytest.mark.parametrize("dtype", BOTH)
def test_gradients_only_where_they_are_wanted(dtype, layout, wanted):
    """Any subset of two inputs, the weight, the bias and the residual may require gradients."""
    inputs, weight, bias, residual = case((2, (2, 3), 3, 2, 4), (layout,), dtype)
    for i, tensor in enumerate((*inputs, weight, bias, residual)):
        tensor.requires_grad_(bool(wanted >> i & 1))
    check(inputs, weight, bias, residual, relu=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("dtype", BOTH)
def test_one_tensor_in_several_places(dtype, layout):
    (x, y, _), _, bias, _ = case((2, (4, 4, 4), 3, 5, 4), (layout,), dtype)
    weight = leaf(draw((4, 12, 1, 1), 1, dtype))
    check([x, y, x], weight, bias, x, relu=True)  # the first input is the residual, too: VoVNet's identity
    check([x, x, x], weight, None, None, relu=True)


def test_an_expanded_gradient_and_input():
    """``sum()`` returns an expanded gradient; a map may be expanded, too."""
    x = draw((1, 3, 1, 1), 0).expand(2, 3, 4, 5).requires_grad_()
    _, weight, bias, _ = case((2, (3,), 4, 5, 6))
    for function in (
        lambda: osa_aggregate([x], weight, bias),
        lambda: reference.aggregate([x], weight, bias, None, True),
    ):
        function().sum().backward()
    torch.testing.assert_close(weight.grad / 2, torch.autograd.grad(osa_aggregate([x], weight, bias).sum(), weight)[0])


@pytest.mark.parametrize("layouts", [("contiguous",), ("channels-last",), ("channels-last", "sliced")])
@pytest.mark.parametrize("relu", [True, False])
def test_gradcheck(layouts, relu):
    inputs, weight, bias, residual = case((2, (2, 1, 3), 2, 3, 3), layouts)

    def function(*tensors: Tensor) -> Tensor:
        *maps, w, b, r = tensors
        return osa_aggregate([*maps, maps[0]], w, b, r, relu)

    weight = leaf(draw((3, 8, 1, 1), 3))
    assert torch.autograd.gradcheck(function, (*inputs, weight, bias, residual), fast_mode=False)
    assert torch.autograd.gradcheck(function, (*inputs, weight.detach(), None, None))


@pytest.mark.parametrize(
    ("shape", "layouts", "dtype"),
    [
        (SHAPES[0], ("contiguous",), torch.float64),
        (SHAPES[0], ("turned", "channels-last"), torch.float32),
        (SHAPES[3], ("channels-last",), torch.float64),
        (SHAPES[3], ("channels-last",), torch.float32),
        (SHAPES[4], ("contiguous",), torch.float32),
        (SHAPES[6], ("contiguous",), torch.float64),
    ],
)
def test_opcheck(shape, layouts, dtype):
    inputs, weight, bias, residual = case(shape, layouts, dtype)
    forward = torch.ops.vovnet.osa_aggregate.default
    opcheck(forward, (inputs, weight, bias, residual, True, True))
    opcheck(forward, (inputs, weight, None, None, False, False))
    with torch.no_grad():
        out, mask = forward(inputs, weight, bias, residual, True, True)
        plain = [x.detach() for x in inputs]
        backward = torch.ops.vovnet.osa_aggregate_backward.default
        some = [i != 1 for i in range(len(plain))]
        opcheck(backward, (torch.ones_like(out), mask, plain, weight.detach(), some, True, True))
        opcheck(backward, (torch.ones_like(out), None, plain, weight.detach(), some, False, False))


@pytest.mark.parametrize("parameters", ["own", "float32"])
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("dtype", [torch.float32, *LOWER])
def test_is_as_exact_as_pytorch_in_lower_precision(dtype, layout, parameters):
    """The largest error against float64 is at most a small multiple of PyTorch's own convolution's."""
    shape = (32, (64, 48, 80, 32, 16), 9, 11, 40)
    inputs, weight, bias, residual = case(shape, (layout,), dtype)
    weight, bias = leaf(weight), leaf(bias)
    exact = [leaf(x.double()) for x in (*inputs, weight, bias, residual)]
    wanted = [*inputs, weight, bias, residual]
    truth = reference.aggregate(exact[:5], *exact[5:], relu=False)
    plain = reference.aggregate(inputs, weight, bias, residual, relu=False)
    if parameters == "float32":
        weight, bias = leaf(weight.float()), leaf(bias.float())
    own = osa_aggregate(inputs, weight, bias, residual, relu=False)
    assert own.dtype == dtype
    assert largest_error(own, truth) <= 2 * largest_error(plain, truth)
    for got, peer, right, x in zip(
        gradients(own, [*inputs, weight, bias, residual]), gradients(plain, wanted), gradients(truth, exact),
        (*inputs, weight, bias, residual), strict=True,
    ):  # fmt: skip
        assert got.dtype == x.dtype
        assert largest_error(got, right) <= 2 * largest_error(peer, right) + torch.finfo(torch.float32).eps


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf, -0.0])
@pytest.mark.parametrize("dtype", BOTH)
def test_special_values_pass_as_in_eager(dtype, layout, special):
    """Values and gradients equal PyTorch's forward, and backward through the ReLU."""
    x = leaf(draw((1, 4, 3, 3), 0, dtype), layout)
    with torch.no_grad():
        x[0, :, 1, 2] = special
    other = leaf(draw((1, 3, 3, 3), 2, dtype), layout)
    weight, bias = leaf(draw((8, 7, 1, 1), 1, dtype).abs()), leaf(torch.zeros(8, dtype=dtype))
    own = osa_aggregate([other, x], weight, bias)
    plain = reference.aggregate([other, x], weight, bias, None, True)
    bound = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(own, plain, rtol=bound, atol=bound, equal_nan=True)
    assert not own[0, :, 1, 2].isnan().any() or math.isnan(special)
    wanted = [other, x, weight, bias]
    for got, expected in zip(gradients(own, wanted), gradients(plain, wanted), strict=True):
        torch.testing.assert_close(got, expected, rtol=bound, atol=bound, equal_nan=True)


def test_a_zero_of_either_sign_passes_no_gradient():
    x = leaf(torch.tensor([0.0, -0.0, 1.0, -1.0], dtype=torch.float64).view(1, 1, 2, 2))
    weight = leaf(torch.ones(1, 1, 1, 1, dtype=torch.float64))
    (d_x,) = torch.autograd.grad(osa_aggregate([x], weight).sum(), x)
    assert d_x.flatten().tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "sliced"])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_autograd_keeps_the_inputs_the_weight_and_a_bit_an_element(layout, relu, dtype):
    inputs, weight, bias, residual = case((2, (3, 5, 4), 5, 7, 6), (layout,), dtype)
    with kept_bytes() as kept:
        out = osa_aggregate([*inputs, inputs[0]], leaf(draw((6, 15, 1, 1), 0, dtype)), bias, residual, relu)
    allowed = storages(*inputs)
    for address in allowed:
        assert kept.pop(address) == allowed[address]
    rest = sorted(kept.values())
    weight_bytes, mask_bytes = 6 * 15 * weight.element_size(), math.ceil(out.numel() / 8)
    assert rest == sorted([weight_bytes, mask_bytes] if relu else [weight_bytes])


@pytest.mark.parametrize("relu", [True, False])
def test_under_autocast_the_parameters_and_their_gradients_stay_float32(relu):
    inputs, weight, bias, residual = case(SHAPES[0], dtype=torch.float32)
    lowered = [leaf(x.bfloat16()) for x in inputs]
    with torch.autocast("cpu", torch.bfloat16), kept_bytes() as kept:
        out = osa_aggregate([*lowered[:2], inputs[2]], weight, bias, residual, relu)
    plain = reference.aggregate(inputs, weight, bias, residual, relu)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), plain.float(), rtol=2e-2, atol=2e-2)
    got = gradients(out, [*lowered[:2], inputs[2], weight, bias, residual])
    assert [g.dtype for g in got] == [torch.bfloat16] * 2 + [torch.float32] * 4
    expected = gradients(plain, [inputs[2], weight, bias])
    for one, other in zip(got[2:], expected, strict=False):
        # Near zero the ReLU of a rounded sum may decide otherwise.
        assert relu or largest_error(one, other) < 0.02
    own = storages(*lowered[:2], weight)
    assert own.items() <= kept.items()
    others = sorted(size for address, size in kept.items() if address not in own)
    n, channels, h, w, _ = SHAPES[0]
    lowered_input = n * channels[2] * h * w * 2
    assert others == sorted([math.ceil(out.numel() / 8), lowered_input] if relu else [lowered_input])


def test_autocast_leaves_float64_alone():
    inputs, weight, bias, residual = case(SHAPES[0])
    with torch.autocast("cpu", torch.bfloat16):
        out = osa_aggregate(inputs, weight, bias, residual)
    torch.testing.assert_close(out, reference.aggregate(inputs, weight, bias, residual, True), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_the_concatenation_never_exists(layout):
    """Neither the forward nor the backward pass allocates anything as large as the concatenated maps."""
    shape = n, channels, h, w, out = (2, (32, 24, 16, 8), 8, 8, 16)
    inputs, weight, bias, residual = case(shape, (layout,), torch.float32)

    def trace(function) -> tuple[int, int]:
        """Return the size of a concatenation, and of the largest allocation."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as events:
            gradients(function(inputs, weight, bias, residual, True), [*inputs, weight, bias])
        sizes = [(event.self_cpu_memory_usage, event.name) for event in events.events()]
        assert [name for _, name in sizes if "GeneratedBackwardFor_vovnet" in name or "ConvolutionBackward" in name]
        return max((size for size, name in sizes if name == "aten::cat"), default=0), max(sizes)[0]

    concatenation = n * sum(channels) * h * w * 4
    of_cat, largest = trace(osa_aggregate)
    assert of_cat <= weight.nbytes  # whose gradient comes in blocks
    assert n * out * h * w * 4 <= largest < concatenation / 2
    of_cat, largest = trace(reference.aggregate)  # that this would be seen
    assert largest >= of_cat == concatenation


def test_keeps_no_bits_without_autograd():
    inputs, weight, _, _ = case(SHAPES[0])
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **kwargs or {})
            seen.append((str(function), out))
            return out

    for keeps, context in ((False, torch.no_grad()), (True, torch.enable_grad())):
        seen.clear()
        with context, Watch():
            osa_aggregate(inputs, weight)
        ((_, (out, mask)),) = [entry for entry in seen if entry[0] == "vovnet.osa_aggregate.default"]
        assert mask.numel() == (math.ceil(out.numel() / 8) if keeps else 0)


def test_the_output_may_be_changed_in_place():
    """Autograd keeps a mask, not the output, unlike for a plain ReLU."""
    inputs, weight, bias, _ = case(SHAPES[0])
    own = osa_aggregate(inputs, weight, bias).mul_(3)
    plain = reference.aggregate(inputs, weight, bias, None, True) * 3
    for one, other in zip(gradients(own, [*inputs, weight]), gradients(plain, [*inputs, weight]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_an_input_that_was_changed_in_place_is_noticed():
    inputs, weight, bias, _ = case(SHAPES[0])
    x = inputs[0] * 1
    out = osa_aggregate([x, *inputs[1:]], weight, bias)
    x.add_(1)
    with pytest.raises(RuntimeError, match="inplace operation"):
        out.sum().backward()


def test_nothing_that_was_given_is_changed():
    tensors = case(SHAPES[0], ("sliced", "channels-last"))
    flat = [*tensors[0], *tensors[1:]]
    before = [(x.detach().clone(), x._version) for x in flat]
    gradients(osa_aggregate(*tensors), flat)
    for x, (values, version) in zip(flat, before, strict=True):
        assert torch.equal(x, values)
        assert x._version == version
