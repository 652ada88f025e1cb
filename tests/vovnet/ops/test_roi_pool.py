"""RoIAlign of several maps and the max-pool, compiled for the CPU, compared with torchvision and PyTorch in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from osa_reference import draw
from torch import Tensor
from torchvision.ops import roi_align

from vovnet.ops import inference  # noqa: F401  (the operators' schemas)
from vovnet.ops.build import loader

SCALES = [0.25, 0.125, 0.0625]
CHANNELS = [1, 3, 15, 16, 17, 64, 100, 256, 300]


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Skip the tests if nothing can be compiled."""
    if not loader.cpu_operators():
        pytest.skip("needs the compiled operators for the CPU")


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def pyramid(channels: int, dtype: torch.dtype = torch.float32, batch: int = 2) -> list[Tensor]:
    """Return the maps of images of 160x224 pixels."""
    sizes = [(round(160 * scale), round(224 * scale)) for scale in SCALES]
    return [channels_last(draw((batch, channels, *size), i).to(dtype)) for i, size in enumerate(sizes)]


def boxes(count: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    """Return RoIs of all sizes, some of them partly outside, and their levels."""
    generator = torch.Generator().manual_seed(count)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([264.0, 200.0]) - 20
    size = torch.exp(torch.rand(count, 2, generator=generator) * 5)
    image = torch.randint(batch, (count, 1), generator=generator)
    return torch.cat([image, corner, corner + size], dim=1), torch.randint(3, (count,), generator=generator)


def expected_rois(
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    size: Sequence[int],
    sampling_ratio: int,
    aligned: bool,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Compute torchvision's RoIAlign, one RoI after the other."""
    out = [torch.zeros(0, maps[0].shape[1], *size, dtype=dtype)]
    for roi, level in zip(rois.to(dtype), levels.tolist(), strict=True):
        out.append(roi_align(maps[level].to(dtype), roi[None], list(size), SCALES[level], sampling_ratio, aligned))
    return torch.cat(out)


def pooled(
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    size: Sequence[int] = (7, 7),
    sampling_ratio: int = 2,
    aligned: bool = False,
) -> Tensor:
    out: Tensor = torch.ops.vovnet.roi_align_levels(maps, rois, levels, SCALES, size, sampling_ratio, aligned)
    assert out.shape == (len(rois), maps[0].shape[1], *size)
    assert out.dtype == maps[0].dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    return out


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [2, 0, -1, 1, 3])
@pytest.mark.parametrize("channels", CHANNELS)
def test_roi_align(channels: int, sampling_ratio: int, aligned: bool) -> None:
    """The error is at most that of torchvision's own float32, whose sample positions are rounded in the same way."""
    maps, (rois, levels) = pyramid(channels), boxes(30)
    for size in ((7, 7), (1, 4)):
        arguments = (maps, rois, levels, size, sampling_ratio, aligned)
        expected = expected_rois(*arguments)
        own = (pooled(*arguments) - expected).abs().max()
        theirs = (expected_rois(*arguments, dtype=torch.float32) - expected).abs().max()
        assert own <= theirs + 5e-7


@pytest.mark.parametrize("channels", CHANNELS)
def test_roi_align_of_samples_at_exact_places(channels: int) -> None:
    maps, (rois, levels) = pyramid(channels), boxes(30)
    rois = rois.round()
    for sampling_ratio in (1, 2, 4):
        arguments = (maps, rois, levels, (8, 4), sampling_ratio, True)
        torch.testing.assert_close(pooled(*arguments).double(), expected_rois(*arguments), rtol=1e-6, atol=5e-7)


@pytest.mark.parametrize("channels", [3, 16, 36, 256])
def test_roi_align_in_bfloat16(channels: int) -> None:
    """The result is rounded once, at the end."""
    maps, (rois, levels) = pyramid(channels, torch.bfloat16), boxes(30)
    expected = expected_rois(maps, rois, levels, (7, 7), 2, False)
    torch.testing.assert_close(pooled(maps, rois, levels).double(), expected, rtol=2**-8, atol=2e-5)
    assert ((pooled(maps, rois, levels).double() - expected).mean() / expected.std()).abs() < 1e-4  # not cut off


ODD = {
    "all around": [-400, -400, 800, 800],
    "beside": [-90, -90, -30, -30],
    "behind": [500, 500, 600, 700],
    "upside down": [100, 90, 60, 30],
    "a point": [50, 60, 50, 60],
    "the corner": [224, 160, 224, 160],
    "a line": [10, 20, 200, 20],
    "the border": [-4, -4, 4, 4],
}


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("box", ODD)
def test_roi_align_of_odd_boxes(box: str, sampling_ratio: int, aligned: bool) -> None:
    rois, levels = torch.tensor([[1.0, *ODD[box]]] * 3), torch.arange(3)
    arguments = (pyramid(20), rois, levels, (4, 4), sampling_ratio, aligned)
    torch.testing.assert_close(pooled(*arguments).double(), expected_rois(*arguments), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("place", [1, 2, 3, 4])
def test_roi_align_of_boxes_that_are_none(place: int, number: float) -> None:
    """Strange RoIs cause no crash and no endless loop, and the other RoIs are right."""
    rois, levels = boxes(3)
    rois[1, place] = number
    maps = pyramid(16)
    for sampling_ratio in (0, 2):
        out = pooled(maps, rois, levels, (7, 7), sampling_ratio)
        assert out[1].isfinite().all()
        others = torch.tensor([0, 2])
        expected = expected_rois(maps, rois[others], levels[others], (7, 7), sampling_ratio, False)
        torch.testing.assert_close(out[others].double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_roi_align_spreads_what_is_not_finite_as_torchvision(dtype: torch.dtype, number: float) -> None:
    maps, (rois, levels) = pyramid(20, dtype), boxes(40)
    for level in maps:
        level[:, :, 1:][draw(level[:, :, 1:].shape, 5) > 2.5] = number  # not where torchvision looks for boxes outside
    out, expected = pooled(maps, rois, levels), expected_rois(maps, rois, levels, (7, 7), 2, False)
    assert 0 < expected.isfinite().sum() < expected.numel()
    assert torch.equal(out.isfinite(), expected.isfinite())
    assert not (out.isnan() & ~expected.isnan()).any()  # a sample's 0 times inf is lost in others' share of the pixel
    if math.isnan(number):
        assert torch.equal(out.isnan(), expected.isnan())


def test_roi_align_reads_no_pixel_for_boxes_outside() -> None:
    maps = [torch.full_like(level, math.nan) for level in pyramid(16)]
    assert pooled(maps, torch.tensor([[0.0, -90, -90, -60, -60]]), torch.tensor([0])).count_nonzero() == 0


def test_roi_align_of_nothing() -> None:
    none, levels = torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)
    pooled(pyramid(16), none, levels)
    pooled(pyramid(16, batch=0), none, levels)
    pooled([level[:, :0] for level in pyramid(16)], *boxes(4))


def test_roi_align_of_one_pixel() -> None:
    maps = [draw((1, 16, 1, 1), i, torch.float32) for i in range(3)]
    rois, levels = boxes(20, batch=1)
    expected = expected_rois(maps, rois, levels, (7, 7), 2, False)
    torch.testing.assert_close(pooled(maps, rois, levels).double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    maps, (rois, levels) = pyramid(256, dtype), boxes(600)  # over 24 MB in float32: written past the caches
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append((pooled(maps, rois, levels), largest(maps[0], WINDOWS["VoVNet's"])))
    finally:
        torch.set_num_threads(before)
    for rois_of, pool_of in results[1:]:
        assert torch.equal(rois_of, results[0][0])
        assert torch.equal(pool_of, results[0][1])
    some = torch.arange(0, 600, 29)
    expected = expected_rois(maps, rois[some], levels[some], (7, 7), 2, False)
    torch.testing.assert_close(results[0][0][some].double(), expected, rtol=2**-8, atol=2e-5)


def swap(position: int, value: Any) -> tuple[Any, ...]:
    """Return valid arguments with some changed."""
    rois, levels = boxes(4)
    arguments: list[Any] = [pyramid(16), rois, levels, SCALES, [7, 7], 2, False]
    arguments[position] = value(arguments[position])
    return tuple(arguments)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, lambda maps: [], "maps: expected one feature map or more"),
        (0, lambda maps: [*maps[:2], maps[2].double()], r"maps\[2\]: expected float32, got float64"),
        (0, lambda maps: [level.double() for level in maps], r"maps\[0\]: expected float32 or bfloat16, got float64"),
        (0, lambda maps: [level.contiguous() for level in maps], r"maps\[0\]: expected channels-last memory"),
        (0, lambda maps: [maps[0], maps[1][:, :8], maps[2]], r"maps\[1\]: expected "),
        (0, lambda maps: [maps[0], maps[1], maps[2][0]], r"maps\[2\]: expected a feature map"),
        (0, lambda maps: [maps[0], maps[1], maps[2][:1]], r"maps\[2\]: expected maps\[0\]'s N and C"),
        (1, lambda rois: rois[:, :4], r"rois: expected \(K, 5\)"),
        (1, lambda rois: rois.double(), "rois: expected float32, got float64"),
        (1, lambda rois: rois.T.contiguous().T, "rois: expected contiguous memory"),
        (1, lambda rois: rois + 7, r"rois\[0\]: expected an image's index below 2, got [78]"),
        (1, lambda rois: rois - 7, r"rois\[0\]: expected an image's index below 2, got -[67]"),
        (1, lambda rois: rois * math.nan, r"rois\[0\]: expected an image's index below 2, got -?nan"),
        (2, lambda levels: levels[:3], r"levels: expected one for each RoI, so \(4,\), got \(3,\)"),
        (2, lambda levels: levels.int(), "levels: expected "),
        (2, lambda levels: levels * 0 + 3, r"levels\[0\]: expected a map's index below 3, got 3"),
        (2, lambda levels: levels * 0 - 1, r"levels\[0\]: expected a map's index below 3, got -1"),
        (3, lambda scales: scales[:2], "scales: expected one for each map, 3, got 2"),
        (4, lambda size: [7, 0], "output_size: expected two numbers from 1"),
        (4, lambda size: [2**40, 2**40], "output_size: expected two numbers from 1 to 2147483647"),
    ],
)
def test_roi_align_refuses(position: int, value: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"vovnet::roi_align_levels: {message}"):
        torch.ops.vovnet.roi_align_levels(*swap(position, value))


# ---- max-pool

WINDOWS: dict[str, tuple[list[int], list[int], list[int], bool]] = {
    "VoVNet's": ([3, 3], [2, 2], [0, 0], True),
    "dilated VoVNet's": ([3, 3], [1, 1], [1, 1], True),
    "ResNet's": ([3, 3], [2, 2], [1, 1], False),
    "2x2": ([2, 2], [2, 2], [0, 0], False),
    "uneven": ([2, 3], [3, 1], [1, 0], False),
    "uneven, ceil": ([3, 2], [2, 3], [0, 1], True),
    "wide steps": ([2, 2], [5, 5], [0, 0], True),
    "one": ([1, 1], [2, 2], [0, 0], True),
    "large": ([15, 17], [1, 1], [7, 8], False),
}


def largest(x: Tensor, window: tuple[list[int], list[int], list[int], bool]) -> Tensor:
    out: Tensor = torch.ops.vovnet.pool_max(x, *window)
    return out


@pytest.mark.parametrize("special", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", WINDOWS)
def test_max_pool(window: str, dtype: torch.dtype, special: float | None) -> None:
    """Results equal PyTorch's in float64 exactly; both refuse the same arguments."""
    kernel, stride, padding, ceil_mode = WINDOWS[window]
    for channels in CHANNELS:
        for size in ((17, 20), (16, 15), (3, 3), (9, 2), (1, 9), (1, 1)):
            x = channels_last(draw((2, channels, *size), channels).to(dtype))
            if special is not None:
                x[draw(x.shape, 1) > 0.5] = special
                x[:, 0] = special
            try:
                expected = F.max_pool2d(x.double(), kernel, stride, padding, 1, ceil_mode)
            except RuntimeError:
                with pytest.raises(RuntimeError, match="vovnet::pool_max: x: expected a map that a window"):
                    largest(x, WINDOWS[window])
                continue
            out = largest(x, WINDOWS[window])
            assert out.dtype == dtype
            assert out.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(out.double(), expected, rtol=0, atol=0, equal_nan=True)


def test_max_pool_of_no_image() -> None:
    assert largest(channels_last(torch.zeros(0, 16, 9, 9)), WINDOWS["VoVNet's"]).shape == (0, 16, 4, 4)


@pytest.mark.parametrize(
    ("x", "window", "message"),
    [
        ((1, 2, 9, 9), ([3, 3], [2, 2], [2, 0], False), r"padding: expected at most half of the kernel \(3, 3\), got"),
        ((1, 2, 9, 9), ([3, 3], [2, 2], [-1, 0], False), "padding: expected two numbers from 0"),
        ((1, 2, 9, 9), ([3, 3], [0, 2], [0, 0], False), "stride: expected two numbers from 1"),
        ((1, 2, 9, 9), ([3, 0], [2, 2], [0, 0], False), "kernel: expected two numbers from 1"),
        ((1, 2, 9, 9), ([3, 3], [2, 2**40], [0, 0], True), "stride: expected two numbers from 1 to 2147483647"),
        ((1, 2, 9, 9), ([11, 3], [2, 2], [0, 0], False), r"x: expected a map that a window \(11, 3\) fits in"),
        ((1, 2, 0, 9), ([1, 1], [2, 2], [0, 0], True), r"x: expected a map that a window \(1, 1\) fits in"),
        ((2, 9, 9), ([3, 3], [2, 2], [0, 0], False), "x: expected a feature map"),
    ],
)
def test_max_pool_refuses(x: tuple[int, ...], window: Any, message: str) -> None:
    feature_map = torch.zeros(x)
    with pytest.raises(RuntimeError, match=f"vovnet::pool_max: {message}"):
        largest(channels_last(feature_map) if len(x) == 4 else feature_map, window)


def test_max_pool_refuses_other_tensors() -> None:
    x = draw((1, 4, 9, 9), 0, torch.float32)
    with pytest.raises(RuntimeError, match="pool_max: x: expected channels-last memory"):
        largest(x, WINDOWS["2x2"])
    with pytest.raises(RuntimeError, match="pool_max: x: expected float32 or bfloat16, got float64"):
        largest(channels_last(x.double()), WINDOWS["2x2"])


# ---- both, as PyTorch's tools see them


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_schemas_and_fake_kernels(dtype: torch.dtype) -> None:
    maps, (rois, levels) = pyramid(16, dtype), boxes(3)
    tools = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    regions = torch.ops.vovnet.roi_align_levels.default
    torch.library.opcheck(regions, (maps, rois, levels, SCALES, [7, 7], 2, False), test_utils=tools)
    torch.library.opcheck(torch.ops.vovnet.pool_max.default, (maps[0], *WINDOWS["VoVNet's"]), test_utils=tools)
