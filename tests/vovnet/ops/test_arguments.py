"""Wrong arguments raise one error that names the argument, what was expected and what was given, in every mode."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from vovnet.errors import InputError
from vovnet.ops import conv_affine_relu, osa_aggregate

MODES: dict[str, Callable[[], Any]] = {"eager": nullcontext, "fake": FakeTensorMode, "no grad": torch.no_grad}


def maps(*channels: int, **options: Any) -> list[Tensor]:
    return [torch.ones(2, c, 4, 6, **options) for c in channels]


def ones(*shape: int, **options: Any) -> Tensor:
    return torch.ones(shape, **options)


def huge(*shape: int) -> Tensor:
    """Return a tensor of any size that takes no memory."""
    return torch.empty(1, 1, 1, 1).expand(shape)


# What is called with, when it is called, and the words of the error, of which the first is the argument's name.
AGGREGATE: dict[str, tuple[Callable[[], tuple[Any, ...]], list[str]]] = {
    "empty list": (lambda: ([], ones(5, 3, 1, 1)), ["inputs: ", "at least one", "an empty list"]),
    "integers": (lambda: (maps(3, dtype=torch.int32), ones(5, 3, 1, 1)), ["inputs[0]: ", "float32", "torch.int32"]),
    "complex": (lambda: (maps(3, dtype=torch.complex64), ones(5, 3, 1, 1)), ["inputs[0]: ", "torch.complex64"]),
    "bool": (lambda: (maps(3, dtype=torch.bool), ones(5, 3, 1, 1)), ["inputs[0]: ", "torch.bool"]),
    "rank 3": (lambda: ([ones(3, 4, 6)], ones(5, 3, 1, 1)), ["inputs[0]: ", "(N, C, H, W)", "(3, 4, 6)"]),
    "a map instead of a list": (lambda: (ones(2, 3, 4, 6), ones(5, 3, 1, 1)), ["inputs[0]: ", "(3, 4, 6)"]),
    "rank 5": (lambda: ([*maps(3), ones(2, 3, 4, 6, 1)], ones(5, 6, 1, 1)), ["inputs[1]: ", "5 dimensions"]),
    "other batch": (lambda: ([*maps(3), ones(1, 3, 4, 6)], ones(5, 6, 1, 1)), ["inputs[1]: ", "N, H", "(1, 3, 4, 6)"]),
    "other height": (lambda: ([*maps(3), ones(2, 3, 5, 6)], ones(5, 6, 1, 1)), ["inputs[1]: ", "(2, 3, 5, 6)"]),
    "other width": (lambda: ([*maps(3), ones(2, 3, 4, 1)], ones(5, 6, 1, 1)), ["inputs[1]: ", "(2, 3, 4, 1)"]),
    "mixed types": (
        lambda: ([*maps(3), *maps(3, dtype=torch.float64)], ones(5, 6, 1, 1)),
        ["inputs[1]: ", "torch.float32", "inputs[0]", "torch.float64"],
    ),
    "mixed devices": (
        lambda: ([*maps(3), *maps(3, device="meta")], ones(5, 6, 1, 1)),
        ["inputs[1]: ", "cpu", "inputs[0]", "meta"],
    ),
    "mixed devices, the other way": (
        lambda: ([*maps(3, device="meta"), *maps(3)], ones(5, 6, 1, 1)),
        ["inputs[1]: ", "meta", "inputs[0]", "cpu"],
    ),
    "channel sum": (lambda: (maps(3, 4), ones(5, 8, 1, 1)), ["weight: ", "3 + 4 = 7", "(5, 8, 1, 1)"]),
    "channel sum of one": (lambda: (maps(3), ones(5, 8, 1, 1)), ["weight: ", "(out channels, 3,", "(5, 8, 1, 1)"]),
    "3×3 weight": (lambda: (maps(3), ones(5, 3, 3, 3)), ["weight: ", "1, 1)", "(5, 3, 3, 3)"]),
    "matrix weight": (lambda: (maps(3), ones(5, 3)), ["weight: ", "1, 1)", "(5, 3)"]),
    "weight's type": (lambda: (maps(3), ones(5, 3, 1, 1, dtype=torch.float64)), ["weight: ", "float32", "float64"]),
    "lower weight": (lambda: (maps(3), ones(5, 3, 1, 1, dtype=torch.float16)), ["weight: ", "float32", "float16"]),
    "higher weight": (
        lambda: (maps(3, dtype=torch.bfloat16), ones(5, 3, 1, 1, dtype=torch.float64)),
        ["weight: ", "torch.bfloat16 or torch.float32", "float64"],
    ),
    "weight's device": (lambda: (maps(3), ones(5, 3, 1, 1, device="meta")), ["weight: ", "cpu", "meta"]),
    "bias's shape": (lambda: (maps(3), ones(5, 3, 1, 1), ones(3)), ["bias: ", "(5,)", "(3,)"]),
    "bias's rank": (lambda: (maps(3), ones(5, 3, 1, 1), ones(1, 5)), ["bias: ", "(5,)", "(1, 5)"]),
    "bias's type": (
        lambda: (maps(3, dtype=torch.bfloat16), ones(5, 3, 1, 1), ones(5, dtype=torch.bfloat16)),
        ["bias: ", "float32", "weight", "bfloat16"],
    ),
    "bias's device": (lambda: (maps(3), ones(5, 3, 1, 1), ones(5, device="meta")), ["bias: ", "cpu", "weight", "meta"]),
    "residual's shape": (
        lambda: (maps(3), ones(5, 3, 1, 1), None, ones(2, 3, 4, 6)),
        ["residual: ", "(2, 5, 4, 6)", "(2, 3, 4, 6)"],
    ),
    "a residual that would broadcast": (
        lambda: (maps(3), ones(5, 3, 1, 1), None, ones(1, 5, 4, 6)),
        ["residual: ", "(2, 5, 4, 6)", "(1, 5, 4, 6)"],
    ),
    "residual's type": (
        lambda: (maps(3), ones(5, 3, 1, 1), None, ones(2, 5, 4, 6, dtype=torch.float64)),
        ["residual: ", "float32", "float64"],
    ),
    "residual's device": (
        lambda: (maps(3), ones(5, 3, 1, 1), None, ones(2, 5, 4, 6, device="meta")),
        ["residual: ", "cpu", "meta"],
    ),
    "index range": (
        lambda: ([huge(2**30, 1, 2**16, 2**13)], ones(16, 1, 1, 1)),
        ["the result: ", str(2**63 - 1), str(2**65), "(1073741824, 16, 65536, 8192)"],
    ),
}  # fmt: skip
KERNEL = (5, 4, 3, 3)
CONV: dict[str, tuple[Callable[[], tuple[Any, ...]], list[str]]] = {
    "integers": (lambda: (*maps(4, dtype=torch.int64), ones(*KERNEL)), ["x: ", "float32", "torch.int64"]),
    "complex": (lambda: (*maps(4, dtype=torch.complex128), ones(*KERNEL)), ["x: ", "torch.complex128"]),
    "rank 3": (lambda: (ones(4, 4, 6), ones(*KERNEL)), ["x: ", "(N, C, H, W)", "(4, 4, 6)"]),
    "channels": (lambda: (*maps(3), ones(*KERNEL)), ["weight: ", "3 channels", "(5, 4, 3, 3)"]),
    "weight's rank": (lambda: (*maps(4), ones(5, 4, 3)), ["weight: ", "height, width", "(5, 4, 3)"]),
    "no taps": (lambda: (*maps(4), ones(5, 4, 0, 3)), ["weight: ", "(5, 4, 0, 3)"]),
    "no output": (lambda: (*maps(4), ones(0, 4, 3, 3)), ["weight: ", "(0, 4, 3, 3)"]),
    "weight's type": (lambda: (*maps(4), ones(*KERNEL, dtype=torch.float64)), ["weight: ", "float32", "float64"]),
    "weight's device": (lambda: (*maps(4), ones(*KERNEL, device="meta")), ["weight: ", "cpu", "meta"]),
    "the map's device": (lambda: (*maps(4, device="meta"), ones(*KERNEL)), ["weight: ", "meta", "cpu"]),
    "scale's shape": (lambda: (*maps(4), ones(*KERNEL), ones(4)), ["scale: ", "(5,)", "(4,)"]),
    "scale's type": (
        lambda: (*maps(4, dtype=torch.bfloat16), ones(*KERNEL), ones(5, dtype=torch.bfloat16)),
        ["scale: ", "float32", "weight", "bfloat16"],
    ),
    "scale's device": (lambda: (*maps(4), ones(*KERNEL), ones(5, device="meta")), ["scale: ", "cpu", "meta"]),
    "shift's shape": (lambda: (*maps(4), ones(*KERNEL), None, ones(1, 5, 1, 1)), ["shift: ", "(5,)", "(1, 5, 1, 1)"]),
    "shift's type": (
        lambda: (*maps(4), ones(*KERNEL), None, ones(5, dtype=torch.float64)),
        ["shift: ", "float32", "float64"],
    ),
    "stride 0": (lambda: (*maps(4), ones(*KERNEL), None, None, 0), ["stride: ", "at least 1", "[0, 0]"]),
    "three strides": (lambda: (*maps(4), ones(*KERNEL), None, None, (1, 1, 1)), ["stride: ", "two", "[1, 1, 1]"]),
    "half a stride": (lambda: (*maps(4), ones(*KERNEL), None, None, 1.5), ["stride: ", "an integer", "1.5"]),
    "padding -1": (lambda: (*maps(4), ones(*KERNEL), None, None, 1, (1, -1)), ["padding: ", "at least 0", "[1, -1]"]),
    "padding in words": (lambda: (*maps(4), ones(*KERNEL), None, None, 1, "same"), ["padding: ", "integer", "'same'"]),
    "dilation 0": (lambda: (*maps(4), ones(*KERNEL), None, None, 1, 1, 0), ["dilation: ", "at least 1", "[0, 0]"]),
    "groups 0": (lambda: (*maps(4), ones(*KERNEL), None, None, 1, 1, 1, 0), ["groups: ", "divisor", "4 channels", "0"]),
    "groups 3": (lambda: (*maps(4), ones(*KERNEL), None, None, 1, 1, 1, 3), ["groups: ", "divisor", "4 channels", "3"]),
    "groups and weight": (
        lambda: (*maps(4), ones(5, 2, 3, 3), None, None, 1, 1, 1, 2),  # 5 is no multiple of 2
        ["weight: ", "multiple of groups", "groups=2", "(5, 2, 3, 3)"],
    ),
    "small map": (lambda: (*maps(4), ones(5, 4, 5, 3)), ["x: ", "5×3", "4×6", "[0, 0]"]),
    "wide dilation": (lambda: (*maps(4), ones(*KERNEL), None, None, 1, 1, (1, 4)), ["x: ", "3×3", "[1, 4]", "4×6"]),
    "index range": (
        lambda: (huge(2**30, 1, 2**16, 2**13), ones(16, 1, 1, 1)),
        ["the result: ", str(2**63 - 1), str(2**65)],
    ),
    "index range by padding": (
        lambda: (*maps(4), ones(8, 4, 1, 1), None, None, 1, 2**40),
        ["the result: ", str(2**63 - 1), "2199023255556"],
    ),
}  # fmt: skip


def refused(operator: Callable[..., Tensor], arguments: tuple[Any, ...], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        operator(*arguments)
    text = str(caught.value)
    assert text.startswith(words[0])
    for word in words:
        assert word in text, text
    assert "\n" not in text


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", AGGREGATE)
def test_osa_aggregate_refuses(name, mode):
    make, words = AGGREGATE[name]
    with MODES[mode]():
        refused(osa_aggregate, make(), words)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CONV)
def test_conv_affine_relu_refuses(name, mode):
    make, words = CONV[name]
    with MODES[mode]():
        refused(conv_affine_relu, make(), words)


@pytest.mark.parametrize("mode", ["eager", "no grad"])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("kind", ["torch.sparse_coo", "torch.sparse_csr", "torch._mkldnn"])
def test_other_layouts_are_refused(kind, mode):
    def other(x: Tensor) -> Tensor:
        if kind == "torch._mkldnn":
            return x.to_mkldnn()
        return x.to_sparse() if kind == "torch.sparse_coo" else x.flatten(1).to_sparse_csr()

    (x,), weight, vector = maps(3), ones(3, 3, 1, 1), ones(3)
    with MODES[mode]():
        if kind != "torch.sparse_csr":  # which has two dimensions only
            refused(osa_aggregate, ([x, other(x)], ones(3, 6, 1, 1)), ["inputs[1]: ", "dense", kind])
            refused(osa_aggregate, ([x], other(weight)), ["weight: ", "dense", kind])
            refused(conv_affine_relu, (other(x), weight), ["x: ", "dense", kind])
        if kind == "torch.sparse_coo":
            refused(osa_aggregate, ([x], weight, other(vector)), ["bias: ", "dense", kind])
            refused(osa_aggregate, ([x], weight, None, other(x)), ["residual: ", "dense", kind])
            refused(conv_affine_relu, (x, weight, other(vector)), ["scale: ", "dense", kind])
            refused(conv_affine_relu, (x, weight, None, other(vector)), ["shift: ", "dense", kind])
        if kind == "torch.sparse_csr":
            refused(osa_aggregate, ([other(x)], weight), ["inputs[0]: ", "2 dimensions"])


def test_errors_come_with_gradients_wanted_and_under_autocast():
    (x,), weight = maps(3), ones(5, 4, 1, 1).requires_grad_()
    words = ["weight: ", "3", "(5, 4, 1, 1)"]
    for context in (nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        with context:
            refused(osa_aggregate, ([x.clone().requires_grad_()], weight), words)
            refused(conv_affine_relu, (x.clone().requires_grad_(), weight), words)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_each_floating_type_is_taken_in_each_mode(dtype):
    for mode in MODES.values():
        with mode():
            (x,), weight = maps(3, dtype=dtype), ones(5, 3, 1, 1, dtype=dtype)
            assert osa_aggregate([x], weight).dtype == conv_affine_relu(x, weight).dtype == dtype


def test_the_largest_that_is_taken():
    """A result just below the limit is not refused; the meta device allocates no memory for it."""
    x, weight = torch.empty(2**20, 1, 2**20, 2**20 - 1, device="meta"), ones(2, 1, 1, 1, device="meta")
    assert osa_aggregate([x], weight).shape == (2**20, 2, 2**20, 2**20 - 1)
    refused(osa_aggregate, ([x], ones(4, 1, 1, 1, device="meta")), ["the result: "])
