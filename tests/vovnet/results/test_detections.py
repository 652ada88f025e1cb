"""Detections in COCO's terms."""

from __future__ import annotations

import numpy as np
import pytest

from vovnet.errors import InputError
from vovnet.results.detections import ImageDetections


def one(**values: object) -> ImageDetections:
    boxes, scores, ids = np.ones((1, 4), np.float32), np.ones(1, np.float32), np.ones(1, np.int64)
    return ImageDetections(3, boxes, scores, ids, **values)  # type: ignore[arg-type]


def test_masks_need_the_size_of_the_image() -> None:
    (found,) = one(masks=[b"abc"], size=(4, 5)).results("segm")
    assert found["segmentation"] == {"size": [4, 5], "counts": "abc"}
    with pytest.raises(InputError, match="image 3: size"):
        list(one(masks=[b"abc"]).results("segm"))


def test_keypoints_are_flat() -> None:
    points = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    (found,) = one(keypoints=points).results("keypoints")
    assert found["keypoints"] == [0, 1, 2, 3, 4, 5]
    (named,) = one(keypoints=points).named([{"id": 1, "name": "cat"}])
    assert named["keypoints"] == found["keypoints"]
