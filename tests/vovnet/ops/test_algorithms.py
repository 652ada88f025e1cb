"""The choice of a convolution's method: properties that hold however the costs are tuned."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from packed_calls import convolve, some_map, some_weight

from vovnet.ops.algorithms import (
    ALGORITHMS,
    BFLOAT16,
    DIRECT,
    FLOAT_PRODUCTS,
    PRECISIONS,
    WINOGRAD_2,
    WINOGRAD_4,
    WINOGRAD_STRIDED,
    conv_method,
)
from vovnet.ops.build import loader

# in channels, out channels, kernel, stride
LAYERS: dict[str, Any] = {
    "stem": (3, 64, (3, 3), (2, 2)),
    "first of the stem without steps": (3, 64, (3, 3), (1, 1)),
    "stem's last": (64, 128, (3, 3), (2, 2)),
    "few channels": (16, 16, (3, 3), (1, 1)),
    "stage 2": (128, 128, (3, 3), (1, 1)),
    "stage 5": (224, 224, (3, 3), (1, 1)),
    "aggregation": (1888, 1024, (1, 1), (1, 1)),
    "pyramid": (1024, 256, (1, 1), (1, 1)),
    "predictor": (256, 15, (1, 1), (1, 1)),
    "steps of a pointwise": (512, 256, (1, 1), (2, 2)),
    "linear": (256, 1024, (7, 7), (1, 1)),
    "large kernel": (64, 64, (5, 5), (1, 1)),
    "uneven kernel": (64, 64, (1, 3), (1, 1)),
    "uneven steps": (64, 64, (3, 3), (1, 2)),
}
SIZES = [(1, 1, 1), (1, 7, 7), (8, 7, 7), (1, 25, 42), (1, 200, 336), (16, 200, 336), (1000, 1, 1)]
ALL = list(itertools.product(SIZES, ALGORITHMS, PRECISIONS, (1, 2, 64)))


@pytest.mark.parametrize("layer", LAYERS)
def test_methods_that_can_compute_the_layer(layer: str) -> None:
    channels, _, kernel, stride = LAYERS[layer]
    square = kernel == (3, 3) and channels >= 16
    transforms = {(1, 1): (WINOGRAD_2, WINOGRAD_4), (2, 2): (WINOGRAD_STRIDED,)}.get(stride, ()) if square else ()
    for size, algorithm, precision, threads in ALL:
        method = conv_method(*LAYERS[layer], *size, algorithm, precision, threads)
        assert bool(method & BFLOAT16) == (precision == "bf16")
        assert method & BFLOAT16 or not method & FLOAT_PRODUCTS
        method &= ~(BFLOAT16 | FLOAT_PRODUCTS)
        assert method in (DIRECT, *transforms)
        if algorithm == "direct":
            assert method == DIRECT
        if channels < 16:
            assert method == DIRECT


@pytest.mark.parametrize("layer", LAYERS)
def test_it_takes_what_it_plans(layer: str) -> None:
    """The operator accepts every method that may be chosen, and computes the layer with it."""
    if not loader.cpu_operators():
        pytest.skip("needs the compiled operators for the CPU")
    channels, out_channels, kernel, stride = LAYERS[layer]
    weight = some_weight(min(out_channels, 64), channels, *kernel)
    x = some_map(1, channels, 9, 8)
    geometry = {"stride": stride, "padding": tuple(size // 2 for size in kernel)}
    exact = F.conv2d(x.double(), weight.double(), **geometry)
    for method in {conv_method(*LAYERS[layer], *size, *how) for size, *how in ALL}:
        low = bool(method & BFLOAT16)
        given = x.bfloat16() if low and channels >= 16 else x
        out = convolve(given, weight, **geometry, method=method)
        torch.testing.assert_close(out.double(), exact, rtol=0, atol=0.3 if low else 5e-5)


def test_the_same_answer_whenever_it_is_asked() -> None:
    def plan() -> list[int]:
        return [conv_method(*layer, *size, *how) for layer in LAYERS.values() for size, *how in ALL]

    expected = plan()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert plan() == expected
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_larger_tiles_where_the_maps_are_large(precision: str) -> None:
    """F(4x4) multiplies less but loads more weights, which pays only for many tiles."""
    bit = BFLOAT16 if precision == "bf16" else 0
    small = conv_method(512, 512, (3, 3), (1, 1), 1, 7, 7, precision=precision)
    assert small == WINOGRAD_2 + bit
    if precision == "fp32":
        assert conv_method(160, 160, (3, 3), (1, 1), 1, 100, 168) == WINOGRAD_4
    # From some size on it stays.
    sides = [4 * n for n in range(1, 60)]
    methods = [conv_method(512, 512, (3, 3), (1, 1), 1, side, side, precision=precision) for side in sides]
    assert methods == sorted(methods)


def test_images_count_as_pixels_do() -> None:
    methods = [conv_method(512, 512, (3, 3), (1, 1), batch, 8, 8) for batch in range(1, 200)]
    assert methods == sorted(methods)
    assert methods[-1] == WINOGRAD_4


def test_more_threads_make_no_tile_larger() -> None:
    """All threads wait for the same weights."""
    methods = [conv_method(256, 256, (3, 3), (1, 1), 1, 28, 28, threads=threads) for threads in range(1, 65)]
    assert methods == sorted(methods, reverse=True)
    assert (methods[0], methods[-1]) == (WINOGRAD_4, WINOGRAD_2)


def test_the_first_layers_round_little() -> None:
    """Every later layer inherits the errors of the first ones, and bfloat16's errors are large."""
    half, mixed = BFLOAT16, BFLOAT16 + FLOAT_PRODUCTS
    size = (1, 100, 168)
    methods = {
        (3, 64, (2, 2)): DIRECT + mixed,
        (64, 64, (1, 1)): WINOGRAD_4 + mixed,
        (64, 128, (2, 2)): DIRECT + half,
        (128, 128, (1, 1)): WINOGRAD_2 + half,
        (256, 160, (1, 1)): WINOGRAD_4 + half,
    }
    for (channels, out_channels, stride), expected in methods.items():
        assert conv_method(channels, out_channels, (3, 3), stride, *size, precision="bf16") == expected
    assert conv_method(64, 64, (3, 3), (1, 1), *size) == WINOGRAD_4


def test_a_transform_of_stride_2_where_it_saves_more_than_its_weights_cost() -> None:
    sizes = [conv_method(64, 128, (3, 3), (2, 2), 1, side, side, threads=2) for side in range(3, 200, 3)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (DIRECT, WINOGRAD_STRIDED)
    assert conv_method(64, 128, (3, 3), (2, 2), 1, 200, 336, precision="bf16") == DIRECT + BFLOAT16
