"""The packed mask of what a ReLU let through, and gradients through a ReLU."""

from __future__ import annotations

import math

import pytest
import torch
from osa_reference import draw

from vovnet.ops.relu_mask import (
    format_of,
    is_channels_last,
    match_strides,
    memory_order,
    pack_positive,
    relu_backward,
    unpack,
)

SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (1, 8, 1, 1),
    (3, 1, 4, 5),
    (2, 8, 4, 4),
    (1, 1, 1, 9),
    (0, 3, 2, 2),
    (2, 3, 0, 2),
]
FORMATS = [torch.contiguous_format, torch.channels_last]
TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_bits_are_as_documented_and_come_back(shape, layout):
    values = draw(shape, 0).contiguous(memory_format=layout)
    bits = pack_positive(values)
    # By hand: element e in memory is bit e % 8 of byte e // 8.
    memory = values.as_strided((values.numel(),), (1,)).tolist()
    expected = [0] * math.ceil(len(memory) / 8)
    for element, value in enumerate(memory):
        expected[element // 8] |= (value > 0) << element % 8
    assert bits.dtype == torch.uint8
    assert bits.tolist() == expected
    assert torch.equal(unpack(bits, values) > 0, values > 0)


def test_every_byte():
    """All 256 patterns of a byte are packed and unpacked."""
    patterns = (torch.arange(256)[:, None] >> torch.arange(8)) % 2
    values = patterns.double().view(1, 256, 8, 1)
    bits = pack_positive(values)
    assert bits.tolist() == list(range(256))
    assert torch.equal(unpack(bits, values) > 0, values.bool())


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", TYPES)
def test_the_gradient_is_pytorchs_own(dtype, layout):
    """This includes NaN, infinities, zeros of both signs and the smallest numbers of the dtype."""
    info = torch.finfo(dtype)
    special = [
        math.nan,
        math.inf,
        -math.inf,
        0.0,
        -0.0,
        info.tiny,
        -info.tiny,
        info.smallest_normal * info.eps,
        1.0,
        -1,
    ]
    x = torch.tensor(special * 3, dtype=dtype).view(1, 5, 3, 2).contiguous(memory_format=layout).requires_grad_()
    grad = torch.tensor(([1.5, -2.5, math.inf, math.nan, -0.0, 3] * 5), dtype=dtype).view(1, 5, 3, 2)
    grad = grad.contiguous(memory_format=layout)
    out = torch.relu(x)
    (expected,) = torch.autograd.grad(out, x, grad)
    for output_or_mask in (out.detach(), pack_positive(out.detach())):
        torch.testing.assert_close(relu_backward(grad, output_or_mask), expected, rtol=0, atol=0, equal_nan=True)
    assert relu_backward(grad, None) is grad


@pytest.mark.parametrize(
    ("shape", "given", "found"),
    [
        ((2, 3, 4, 5), torch.contiguous_format, torch.contiguous_format),
        ((2, 3, 4, 5), torch.channels_last, torch.channels_last),
        ((2, 1, 4, 5), torch.channels_last, torch.contiguous_format),  # both at once
        ((2, 3, 1, 1), torch.channels_last, torch.contiguous_format),
        ((0, 3, 4, 5), torch.channels_last, torch.contiguous_format),
    ],
)
def test_the_layout(shape, given, found):
    x = draw(shape, 0).contiguous(memory_format=given)
    assert format_of(x) == found
    assert is_channels_last(x) == (found == torch.channels_last)
    assert format_of(x[:, :, ::2].transpose(2, 3)) == torch.contiguous_format
    flat = memory_order(x)
    assert flat.data_ptr() == x.data_ptr()
    assert flat.tolist() == x.as_strided((x.numel(),), (1,)).tolist()


@pytest.mark.parametrize("shape", [(4, 3, 1, 1), (4, 3, 3, 3), (4, 1, 3, 3), (1, 3, 2, 1)])
@pytest.mark.parametrize("given", FORMATS)
@pytest.mark.parametrize("wanted", FORMATS)
def test_a_gradient_lies_as_its_parameter(shape, given, wanted):
    """All strides match, also those of dimensions of size 1; the gradient of a 1×1 kernel is not copied."""
    parameter = draw(shape, 0).to(memory_format=wanted)
    gradient = draw(shape, 1).to(memory_format=given)
    got = match_strides(parameter, gradient)
    assert got.stride() == parameter.stride()
    assert torch.equal(got, gradient)
    if shape[2:] == (1, 1):
        assert got.data_ptr() == gradient.data_ptr()
