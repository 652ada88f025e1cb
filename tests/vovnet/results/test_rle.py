"""Run lengths of masks and of parts of masks, and their text, equal pycocotools'."""

from __future__ import annotations

import contextlib
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from vovnet.detection.masks import encode_masks
from vovnet.errors import InputError
from vovnet.results.rle import compress, decode, decode_part, encode_part, expand, joined_masks, moved_mask


def of_pycocotools(mask: NDArray[Any]) -> bytes:
    return bytes(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"])


@st.composite
def parts(draw: st.DrawFn) -> tuple[NDArray[np.bool_], tuple[int, int], tuple[int, int]]:
    """A part, its corner, and the size of the mask, which often has the part at its border."""
    shape = draw(st.tuples(st.integers(0, 7), st.integers(0, 7)))
    border = [draw(st.integers(0, 3)) for _ in range(4)]
    size = max(1, border[0] + shape[0] + border[1]), max(1, border[2] + shape[1] + border[3])
    kinds = st.sampled_from([0.0, 0.5, 0.9, 1.0])
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    return random.random(shape) < draw(kinds), (border[0], border[2]), size


@given(parts())
def test_parts(case: tuple[NDArray[np.bool_], tuple[int, int], tuple[int, int]]) -> None:
    part, (top, left), size = case
    whole = np.zeros(size, dtype=np.uint8)
    whole[top : top + part.shape[0], left : left + part.shape[1]] = part
    assert encode_part(part, (top, left), size) == of_pycocotools(whole)


@given(
    numpy_st.arrays(
        np.uint8, st.tuples(st.integers(0, 3), st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 2)
    )
)
def test_masks_of_every_type(masks: NDArray[np.uint8]) -> None:
    expected = [of_pycocotools(mask != 0) for mask in masks]
    assert encode_masks(torch.from_numpy(masks)) == expected
    assert encode_masks(torch.from_numpy(masks != 0)) == expected
    assert encode_masks(torch.from_numpy(masks)[:, None] * 0.51) == expected
    assert encode_masks((torch.from_numpy(masks) * 0.51).requires_grad_()) == expected


@pytest.mark.parametrize("value", [0.5, float("nan"), -1.0])
def test_values_that_do_not_count(value: float) -> None:
    assert encode_masks(torch.full((1, 1, 4, 5), value)) == [of_pycocotools(np.zeros((4, 5)))]


def test_large_numbers() -> None:
    """The mask has more pixels than 16 bits count, and its part lies at its end."""
    part = np.ones((3, 2), dtype=np.bool_)
    whole = np.zeros((70_000, 40), dtype=np.uint8)
    whole[-3:, -2:] = 1
    assert encode_part(part, (69_997, 38), (70_000, 40)) == of_pycocotools(whole)


run_lengths = st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 40), min_size=1, max_size=12)


@given(run_lengths)
def test_the_text_of_run_lengths(counts: list[int]) -> None:
    expected = coco_mask.frPyObjects({"size": [1, sum(counts) or 1], "counts": counts}, 1, 1)["counts"]
    assert compress(np.array(counts)) == expected
    assert expand(expected).tolist() == counts


@given(parts())
def test_decoding(case: tuple[NDArray[np.bool_], tuple[int, int], tuple[int, int]]) -> None:
    part, corner, size = case
    text = encode_part(part, corner, size)
    for counts in (text, text.decode("ascii")):
        found = {"size": list(size), "counts": counts}
        assert np.array_equal(decode(found), coco_mask.decode(found))


@given(st.binary(max_size=20) | st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=12))
def test_any_text_is_decoded_or_refused(text: bytes | str) -> None:
    with contextlib.suppress(InputError):
        assert decode({"size": [3, 5], "counts": text}).shape == (3, 5)


@pytest.mark.parametrize("counts", ["", "@", "o" * 30, "o" * 8 + "0", b"\xff", "0000", "00f0O1", "é"])
def test_wrong_counts_are_refused(counts: str) -> None:
    with pytest.raises(InputError, match="segmentation"):
        decode({"size": [3, 5], "counts": counts})


@given(st.data())
def test_parts_of_masks_are_cut_moved_and_joined(data):
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    masks = [
        np.array(data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))).reshape(
            height, width
        )
        for _ in range(2)
    ]
    counts = [encode_part(one, (0, 0), (height, width)) for one in masks]
    part, (top, left) = decode_part({"size": [height, width], "counts": counts[0]})
    whole = np.zeros((height, width), dtype=bool)
    whole[top : top + part.shape[0], left : left + part.shape[1]] = part
    assert (whole == masks[0]).all()
    if part.size:
        assert all(edge.any() for edge in (part[0], part[-1], part[:, 0], part[:, -1]))
    row, column = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 5))
    size = (height + row + data.draw(st.integers(0, 3)), width + column)
    image = np.zeros(size, dtype=bool)
    image[row : row + height, column : column + width] = masks[0]
    moved = moved_mask(counts[0], (height, width), (row, column), size)
    assert moved == encode_part(image, (0, 0), size)
    assert joined_masks(counts, (height, width)) == encode_part(masks[0] | masks[1], (0, 0), (height, width))


def test_a_union_takes_no_more_memory_for_many_masks() -> None:
    mask = np.ones((300, 300), dtype=np.bool_)
    counts = [encode_part(mask, (number, number), (400, 400)) for number in range(60)]
    peaks = []
    for some in (counts[::59], counts):
        tracemalloc.start()
        joined_masks(some, (400, 400))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
