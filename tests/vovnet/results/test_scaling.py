"""Detections of an image that is shown in another size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vovnet.results.rle import decode, encode_part
from vovnet.results.scaling import scaled_detections, scaled_entry, scaled_size


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.05, 12), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_a_mask_is_that_of_the_whole_image_resized(width, height, scale, seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.bool_)
    top, left = rng.integers(0, height), rng.integers(0, width)
    mask[top : top + rng.integers(1, 30), left : left + rng.integers(1, 30)] = True
    mask &= rng.random((height, width)) < 0.9
    counts = encode_part(mask, (0, 0), (height, width))
    one = {"bbox": [1.0, 2, 3, 4], "segmentation": {"size": [height, width], "counts": counts}}
    (found,) = scaled_detections([one], scale, (width, height))
    new = scaled_size((width, height), scale)
    whole = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(new, Image.Resampling.BILINEAR), np.int16)
    got = decode(found["segmentation"])
    assert got.shape == whole.shape
    # Where the filter's answer is near one half, roundings differ.
    assert not (got != (whole > 127))[np.abs(whole - 127.5) > 2].any()


def test_boxes_and_keypoints_grow_and_scores_stay():
    one = {"bbox": [1, 2, 3, 4], "score": 0.5, "keypoints": [5, 6, 0.7, 8, 9, 1.0]}
    assert scaled_entry(one, 2) == {"bbox": [2, 4, 6, 8], "score": 0.5, "keypoints": [10, 12, 0.7, 16, 18, 1.0]}
    assert one["bbox"] == [1, 2, 3, 4]


@pytest.mark.parametrize(("size", "scale", "new"), [((10, 20), 0.5, (5, 10)), ((3, 1000), 0.01, (1, 10))])
def test_no_side_vanishes(size, scale, new):
    assert scaled_size(size, scale) == new
