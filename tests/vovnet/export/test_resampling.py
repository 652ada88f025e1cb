"""Pillow's resizing without Pillow: the same bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from vovnet.export.resampling import Filter, pillow_resize, pillow_version, resizes_vertically_first

FILTERS: dict[Filter, Image.Resampling] = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
SIDES = st.integers(1, 90)


def pixels(seed: int, height: int, width: int, smooth: bool) -> NDArray[np.uint8]:
    """Noise, or colours that flow into each other with some at 0 and 255, as in photographs."""
    generator = np.random.default_rng(seed)
    if not smooth:
        return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    small = Image.fromarray(generator.integers(0, 256, (7, 7, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.LANCZOS))


def as_tensor(image: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()


def vertical_first(old: tuple[int, int], new: tuple[int, int]) -> bool:
    return bool(resizes_vertically_first(old, new))


@settings(max_examples=150, deadline=None)
@given(old=st.tuples(SIDES, SIDES), new=st.tuples(SIDES, SIDES), seed=st.integers(0, 99), smooth=st.booleans())
@pytest.mark.parametrize("resample", FILTERS)
def test_bytes_are_pillows(
    resample: Filter, old: tuple[int, int], new: tuple[int, int], seed: int, smooth: bool
) -> None:
    image = pixels(seed, *old, smooth)
    expected = np.asarray(Image.fromarray(image).resize(new[::-1], FILTERS[resample]))
    resized = pillow_resize(as_tensor(image), new, resample, vertical_first=vertical_first(old, new))
    found = resized[0].permute(1, 2, 0).numpy()
    assert np.array_equal(found, expected)


@settings(max_examples=60, deadline=None)
@given(old=st.tuples(SIDES, SIDES), new=st.tuples(SIDES, SIDES), data=st.data())
@pytest.mark.parametrize("resample", FILTERS)
def test_a_crop_is_that_part_of_the_whole(
    resample: Filter, old: tuple[int, int], new: tuple[int, int], data: st.DataObject
) -> None:
    rows, columns = data.draw(st.integers(1, new[0])), data.draw(st.integers(1, new[1]))
    top, left = data.draw(st.integers(0, new[0] - rows)), data.draw(st.integers(0, new[1] - columns))
    image = as_tensor(pixels(0, *old, smooth=True))
    whole = pillow_resize(image, new, resample)
    sizes = torch.tensor(new[0]), torch.tensor(new[1])
    part = pillow_resize(image, sizes, resample, (torch.tensor(top), left, rows, columns))
    assert torch.equal(part, whole[:, :, top : top + rows, left : left + columns])


@pytest.mark.parametrize("resample", FILTERS)
def test_beyond_the_result_its_edge_is_repeated(resample: Filter) -> None:
    image = as_tensor(pixels(1, 12, 9, smooth=True))
    whole = pillow_resize(image, (5, 6), resample)
    found = pillow_resize(image, (5, 6), resample, (-2, -1, 9, 8))
    assert torch.equal(found, torch.nn.functional.pad(whole, (1, 1, 2, 2), mode="replicate"))


@pytest.mark.parametrize("resample", FILTERS)
def test_a_size_that_stays_changes_nothing(resample: Filter) -> None:
    image = as_tensor(pixels(2, 30, 40, smooth=False))
    assert torch.equal(pillow_resize(image, (30, 40), resample), image)


def test_pillow_13_begins_with_columns_where_far_more_rows_go_away() -> None:
    """The order shows in the bytes, so that Pillow itself says which it took."""
    if pillow_version() < 13:
        pytest.skip("older versions of Pillow always begin with rows")
    for seed, (old, new) in enumerate(
        [((90, 40), (30, 20)), ((90, 40), (51, 20)), ((90, 40), (49, 20)), ((60, 80), (30, 40)), ((50, 20), (30, 60))]
    ):
        image = pixels(seed, *old, smooth=False)
        expected = as_tensor(np.asarray(Image.fromarray(image).resize(new[::-1], Image.Resampling.BILINEAR)))
        errors = [
            (pillow_resize(as_tensor(image), new, "bilinear", vertical_first=first) != expected).float().mean()
            for first in (False, True)
        ]
        assert (errors[1] < errors[0]) == resizes_vertically_first(old, new)
