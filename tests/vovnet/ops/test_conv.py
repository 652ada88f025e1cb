"""The convolution with a folded norm and ReLU, compared with PyTorch's convolution, norm and ReLU."""

from __future__ import annotations

import math

import osa_reference as reference
import pytest
import torch
import torch.nn.functional as F
from osa_reference import LAYOUTS, draw, kept_bytes, largest_error, leaf, storages
from torch import Tensor
from torch.library import opcheck

from vovnet.ops import conv_affine_relu

# x, weight; stride, padding, dilation, groups
CASES = {
    "3x3": ((2, 4, 5, 7), (6, 4, 3, 3), (1, 1, 1, 1)),
    "stem": ((2, 3, 9, 8), (5, 3, 3, 3), (2, 1, 1, 1)),
    "1x1": ((2, 5, 4, 3), (7, 5, 1, 1), (1, 0, 1, 1)),
    "one pixel": ((3, 4, 1, 1), (6, 4, 3, 3), (1, 1, 1, 1)),
    "one channel": ((2, 1, 5, 4), (1, 1, 3, 3), (1, 1, 1, 1)),
    "one channel out": ((2, 3, 5, 4), (1, 3, 3, 3), (1, 1, 1, 1)),
    "no image": ((0, 4, 5, 7), (6, 4, 3, 3), (1, 1, 1, 1)),
    "depthwise": ((2, 4, 6, 5), (4, 1, 3, 3), (1, 1, 1, 4)),
    "grouped, uneven": ((2, 4, 9, 7), (6, 2, 3, 2), ((2, 1), (2, 0), (1, 3), 2)),
}


def case(name, layout="contiguous", weight_layout="contiguous", dtype=torch.float64):
    """Return x, weight, scale, shift and geometry. The scale has both signs, like a norm's γ."""
    shape, kernel, geometry = CASES[name]
    x = leaf(draw(shape, 0, dtype), layout)
    weight = leaf(draw(kernel, 1, dtype) / math.sqrt(math.prod(kernel[1:])), weight_layout)
    return x, weight, leaf(draw(kernel[:1], 2, dtype)), leaf(draw(kernel[:1], 3, dtype)), geometry


def gradients(out: Tensor, wanted: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out, wanted, draw(out.shape, 20, out.dtype))


def check(x, weight, scale, shift, geometry, relu=True) -> None:
    """In float64, values, gradients and layout equal PyTorch's."""
    out = conv_affine_relu(x, weight, scale, shift, *geometry, relu)
    expected = reference.convolution(x, weight, scale, shift, geometry, relu)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    wanted = [t for t in (x, weight, scale, shift) if t is not None and t.requires_grad]
    if wanted:
        for one, other, of in zip(gradients(out, wanted), gradients(expected, wanted), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
            assert (one.dtype, one.shape) == (of.dtype, of.shape)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_equals_pytorchs(name, layout):
    check(*case(name, layout))
    check(*case(name, layout, "channels-last"))


@pytest.mark.parametrize("weight_layout", LAYOUTS)
def test_any_weight(weight_layout):
    check(*case("3x3", "contiguous", weight_layout))


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("with_scale", [True, False])
@pytest.mark.parametrize("with_shift", [True, False])
def test_what_may_be_left_out(layout, relu, with_scale, with_shift):
    x, weight, scale, shift, geometry = case("grouped, uneven", layout)
    check(x, weight, scale if with_scale else None, shift if with_shift else None, geometry, relu)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("wanted", range(2**4))
def test_gradients_only_where_they_are_wanted(layout, wanted):
    """Any subset of the map, the weight, the scale and the shift may require gradients."""
    *tensors, geometry = case("stem", layout)
    for i, tensor in enumerate(tensors):
        tensor.requires_grad_(bool(wanted >> i & 1))
    check(*tensors, geometry)


def test_the_defaults_are_a_plain_convolution_with_relu():
    x, weight, *_ = case("3x3")
    torch.testing.assert_close(conv_affine_relu(x, weight), F.conv2d(x, weight).relu(), rtol=1e-12, atol=1e-12)


def test_numbers_and_pairs_mean_the_same():
    x, weight, scale, shift, _ = case("3x3")
    one = conv_affine_relu(x, weight, scale, shift, 2, 1, 1)
    assert torch.equal(one, conv_affine_relu(x, weight, scale, shift, (2, 2), [1, 1], torch.Size((1, 1))))


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("weight_layout", ["contiguous", "channels-last"])
def test_the_layout_is_pytorchs(layout, weight_layout):
    """Output and map's gradient are channels-last if map or weight is; the weight's gradient is like the weight."""
    x, weight, _, _, _ = case("3x3", layout, weight_layout, torch.float32)
    out, expected = conv_affine_relu(x, weight, padding=1), F.conv2d(x, weight, padding=1)
    assert out.stride() == expected.stride()
    for one, other in zip(gradients(out, [x, weight]), (expected.new_empty(0).expand(0), weight), strict=True):
        last = (
            weight_layout if other is weight else "channels-last" if "channels-last" in (layout, weight_layout) else ""
        )
        assert one.is_contiguous(memory_format=torch.channels_last) == (last == "channels-last")


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    ("layout", "weight_layout"), [("contiguous",) * 2, ("channels-last",) * 2, ("sliced", "turned")]
)
def test_gradcheck(layout, weight_layout, relu):
    x, weight, scale, shift, geometry = case("grouped, uneven", layout, weight_layout)

    def function(x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        return conv_affine_relu(x, weight, scale, shift, *geometry, relu)

    assert torch.autograd.gradcheck(function, (x, weight, scale, shift))
    assert torch.autograd.gradcheck(function, (x, weight.detach(), None, None))
    assert torch.autograd.gradcheck(function, (x.detach(), weight, scale.detach(), shift.detach()))


def test_gradcheck_of_one_map_used_twice():
    x, weight, scale, shift, _ = case("3x3")
    square = leaf(draw((4, 4, 3, 3), 5))
    assert torch.autograd.gradcheck(
        lambda x: conv_affine_relu(conv_affine_relu(x, square, padding=1) + x, weight, scale, shift), (x,)
    )


@pytest.mark.parametrize(
    ("name", "layouts"),
    [
        ("stem", ("contiguous", "contiguous")),
        ("stem", ("turned", "turned")),
        ("grouped, uneven", ("channels-last", "contiguous")),
        ("one channel", ("channels-last", "channels-last")),
        ("one pixel", ("contiguous", "contiguous")),
        ("no image", ("contiguous", "contiguous")),
    ],
)
def test_opcheck(name, layouts):
    x, weight, scale, shift, geometry = case(name, *layouts)
    lists = [[value, value] if isinstance(value, int) else list(value) for value in geometry[:3]]
    forward, backward = torch.ops.vovnet.conv_affine_relu.default, torch.ops.vovnet.conv_affine_relu_backward.default
    opcheck(forward, (x, weight, scale, shift, *lists, geometry[3], True))
    opcheck(forward, (x, weight.detach(), None, None, *lists, geometry[3], False))
    x, weight, scale, shift = (t.detach() for t in (x, weight, scale, shift))
    out = forward(x, weight, scale, shift, *lists, geometry[3], True)
    grad = draw(out.shape, 4)
    opcheck(backward, (grad, out, x, weight, scale, *lists, geometry[3], [True] * 4))
    opcheck(backward, (grad, None, x, weight, None, *lists, geometry[3], [False, True, False, False]))


@pytest.mark.parametrize("parameters", ["own", "float32"])
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_is_as_exact_as_pytorch_in_lower_precision(dtype, layout, parameters):
    """The largest error against float64 is at most a small multiple of PyTorch's own operators'."""
    x = leaf(draw((8, 48, 9, 11), 0, dtype), layout)
    own = [leaf(draw((40, 48, 3, 3), 1, dtype) / 20), leaf(draw((40,), 2, dtype)), leaf(draw((40,), 3, dtype))]
    exact = [leaf(t.double()) for t in (x, *own)]
    geometry = (1, 1, 1, 1)
    truth = reference.convolution(*exact, geometry, relu=False)
    peer = [x, *(leaf(t) for t in own)]
    plain = reference.convolution(*peer, geometry, relu=False)
    if parameters == "float32":
        own = [leaf(t.float()) for t in own]
    out = conv_affine_relu(x, *own, *geometry, relu=False)
    assert out.dtype == dtype
    assert largest_error(out, truth) <= 2 * largest_error(plain, truth)
    for got, other, right, of in zip(
        gradients(out, [x, *own]), gradients(plain, peer), gradients(truth, exact), [x, *own], strict=True
    ):
        assert got.dtype == of.dtype
        assert largest_error(got, right) <= 4 * largest_error(other, right) + torch.finfo(torch.float32).eps


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf, -0.0])
def test_special_values_pass_as_in_eager(layout, special):
    x = leaf(draw((1, 1, 3, 3), 0), layout)
    with torch.no_grad():
        x[0, 0, 1, 2] = special
    weight, scale = leaf(draw((8, 1, 1, 1), 1).abs()), leaf(draw((8,), 2).abs())
    shift = leaf(torch.zeros(8, dtype=torch.float64))
    own = conv_affine_relu(x, weight, scale, shift)
    plain = reference.convolution(x, weight, scale, shift, (1, 0, 1, 1), True)
    torch.testing.assert_close(own, plain, rtol=1e-12, atol=0, equal_nan=True)
    for one, other in zip(gradients(own, [x, weight]), gradients(plain, [x, weight]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_a_zero_of_either_sign_passes_no_gradient():
    x = leaf(torch.tensor([0.0, -0.0, 1.0, -1.0], dtype=torch.float64).view(1, 1, 2, 2))
    weight = leaf(torch.ones(1, 1, 1, 1, dtype=torch.float64))
    (d_x,) = torch.autograd.grad(conv_affine_relu(x, weight).sum(), x)
    assert d_x.flatten().tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "sliced"])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_autograd_keeps_the_input_the_output_and_the_parameters(layout, relu, dtype):
    """Autograd keeps no folded weight, no map before the norm or the ReLU, and no copy of the input."""
    x, weight, scale, shift, geometry = case("3x3", layout, dtype=dtype)
    with kept_bytes() as kept:
        out = conv_affine_relu(x, weight, scale, shift, *geometry, relu)
    assert kept == storages(x, weight, scale, out if relu else None)


def test_under_autocast_the_parameters_and_their_gradients_stay_float32():
    x, weight, scale, shift, geometry = case("3x3", dtype=torch.float32)
    lowered = leaf(x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16), kept_bytes() as kept:
        out = conv_affine_relu(lowered, weight, scale, shift, *geometry)
    assert out.dtype == torch.bfloat16
    assert kept == storages(lowered, weight, scale, out)
    with torch.autocast("cpu", torch.bfloat16), kept_bytes() as kept:
        linear = conv_affine_relu(x, weight, scale, shift, *geometry, relu=False)
    assert storages(weight, scale).items() <= kept.items()
    assert sum(kept.values()) == sum(storages(weight, scale).values()) + x.numel() * 2  # the map, lowered
    plain = reference.convolution(x, weight, scale, shift, geometry, relu=False)
    torch.testing.assert_close(linear.float(), plain, rtol=2e-2, atol=2e-2)
    wanted = [x, weight, scale, shift]
    for one, other in zip(gradients(linear, wanted), gradients(plain, wanted), strict=True):
        assert one.dtype == torch.float32
        assert largest_error(one, other) < 0.02


def test_the_fold_is_exact_in_float32_under_autocast():
    """weight · scale is computed in float32 and then cast: rounded once, not twice."""
    x = torch.ones(1, 1, 1, 1)
    weight, scale = torch.full((1, 1, 1, 1), 1.00390625), torch.full((1,), 1 / 1.00390625)
    assert weight.bfloat16().item() * scale.bfloat16().item() != 1
    with torch.autocast("cpu", torch.bfloat16):
        assert conv_affine_relu(x, weight, scale).item() == 1


def test_a_changed_output_is_noticed():
    """The output is kept, like a ReLU's, so it must not be changed in place."""
    x, weight, scale, shift, geometry = case("3x3")
    out = conv_affine_relu(x, weight, scale, shift, *geometry)
    out.mul_(2)
    with pytest.raises(RuntimeError, match="inplace operation"):
        out.sum().backward()


def test_nothing_that_was_given_is_changed():
    for layouts in (("contiguous", "contiguous"), ("channels-last", "channels-last")):
        *tensors, geometry = case("3x3", *layouts)
        for given in (tensors, [tensors[0], tensors[1], None, None]):
            before = [None if t is None else t.detach().clone() for t in given]
            wanted = [t for t in given if t is not None]
            out = conv_affine_relu(*given, *geometry)
            grad = draw(out.shape, 1)
            torch.autograd.grad(out, wanted, grad)
            assert torch.equal(grad, draw(out.shape, 1))
            for t, values in zip(given, before, strict=True):
                assert t is None or (torch.equal(t, values) and t._version == 0)
