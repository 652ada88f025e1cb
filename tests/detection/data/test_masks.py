"""Segmentations are judged and decoded as pycocotools does it."""

import random
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from vovnet.detection.data import masks
from vovnet.detection.data.masks import decode_masks, mask_area, rle_counts, sound_segmentation, to_rle

SQUARE = [2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]


def run_lengths(pixels: np.ndarray) -> list[int]:
    """Independent of pycocotools: column by column, background first."""
    flat = np.concatenate(([0], pixels.flatten(order="F")))
    changes = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate(([0], changes, [pixels.size]))).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_compressed_counts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = (rng.random(rng.integers(1, 90, 2)) > rng.random()).astype(np.uint8)
    pixels[10:, 20:30] = 1  # long runs
    encoded = coco_mask.encode(np.asfortranarray(pixels))
    for counts in (encoded["counts"], encoded["counts"].decode(), run_lengths(pixels)):
        found = rle_counts(counts)
        assert found is not None
        assert found.tolist() == run_lengths(pixels)
    for counts in (encoded["counts"], run_lengths(pixels)):
        decoded = decode_masks([{"size": list(pixels.shape), "counts": counts}], *pixels.shape)
        np.testing.assert_array_equal(decoded[0], pixels)


@pytest.mark.parametrize(
    "counts",
    [
        None,
        "",
        7,
        "a b",
        "ä",
        "\ud800",
        "P",
        [1, -1],
        [1, "x"],
        [[1], [2]],
        [float("nan")],
        [1.5],
        b"\xff",
        "o" * 12 + "0",
        [2**40],
    ],
)
def test_malformed_counts(counts: object) -> None:
    assert rle_counts(counts) is None
    assert sound_segmentation({"size": [4, 4], "counts": counts}, 4, 4) == (None, "bad_rle")


@pytest.mark.parametrize(
    ("segmentation", "problem", "usable"),
    [
        (None, "no_mask", False),
        ([], "no_mask", False),
        ({}, "no_mask", False),
        ("text", "bad_polygon", False),
        ([[1, 1, 5, 5]], "bad_polygon", False),
        ([[1, 1, 5, 5, 9]], "bad_polygon", False),
        ([[1, 1, 5, 5, 9, float("nan")]], "bad_polygon", False),
        ([[1, 1, 5, 5, 9, "9"]], "bad_polygon", False),
        ([[1, 1, 5, 5, 9, 1e12]], "bad_polygon", False),
        ([[1, 1, 5, 5, 9, 10**400]], "bad_polygon", False),
        ([1, 1, 5, 5, 9, 5], "bad_polygon", False),
        ([SQUARE], None, True),
        ([SQUARE, [1, 1]], "bad_polygon", True),
        ([[1, 1, 1, 1, 1, 1]], "empty_mask", True),
        ([[30, 30, 40, 30, 40, 40]], "empty_mask", True),
        ({"size": [10, 12]}, "bad_rle", False),
        ({"counts": [120]}, "bad_rle", False),
        ({"size": [10, 12], "counts": [120]}, "empty_mask", True),
        ({"size": [10, 12], "counts": [60, 60]}, None, True),
        ({"size": [12, 10], "counts": [60, 60]}, "rle_size", False),
        ({"size": [10, 12], "counts": [60, 61]}, "rle_sum", False),
        ({"size": [10, 12], "counts": []}, "rle_sum", False),
    ],
)
def test_problems(segmentation: Any, problem: str | None, usable: bool) -> None:
    sound, found = sound_segmentation(segmentation, 10, 12)
    assert found == problem
    assert (sound is not None) == usable
    if usable:
        assert (
            decode_masks([sound], 10, 12).sum()
            == mask_area(sound, 10, 12)
            == (0 if problem == "empty_mask" else mask_area(sound, 10, 12))
        )
    if problem == "bad_polygon" and usable:
        assert sound == [SQUARE]


def test_no_masks() -> None:
    assert decode_masks([], 4, 5).shape == (0, 4, 5)


def test_parts_are_joined() -> None:
    other = [1.0, 8.0, 4.0, 8.0, 4.0, 10.0]
    both = decode_masks([[SQUARE, other]], 10, 12)[0]
    one, two = decode_masks([[SQUARE], [other]], 10, 12)
    np.testing.assert_array_equal(both, one | two)
    assert coco_mask.area(to_rle([SQUARE, other], 10, 12)) == int(both.sum())


def test_the_quick_test_for_area_is_never_wrong() -> None:
    draw, sure = random.Random(0), 0
    for _ in range(3000):
        side = draw.choice([1, 2, 4, 8, 20, 40])
        x, y, flat = draw.uniform(0, 50 - side), draw.uniform(0, 40 - side), draw.choice([1, 1, 0.05])
        polygon = [
            number
            for _ in range(draw.randint(3, 9))
            for number in (x + draw.uniform(0, side), y + draw.uniform(0, side) * flat)
        ]
        if masks._surely_covers_a_pixel(polygon, 40, 50):
            sure += 1
            assert mask_area([polygon], 40, 50) > 0
    assert sure > 100
