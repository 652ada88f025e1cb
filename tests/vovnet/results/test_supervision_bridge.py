"""Detections as supervision has them."""

import json

import numpy as np
import pytest

from vovnet.results.rle import encode_part
from vovnet.results.supervision_bridge import to_supervision

supervision = pytest.importorskip("supervision", reason="needs supervision")


def test_supervision_has_the_same_objects():
    masks = np.zeros((2, 20, 30), dtype=bool)
    masks[0, 2:6, 3:9] = masks[1, 10:20, 0:30] = True
    segmentations = [{"size": [20, 30], "counts": encode_part(one, (0, 0), (20, 30)).decode()} for one in masks]
    rows = [([3.0, 2.0, 6.0, 4.0], 0.75, 7, "a"), ([0.0, 10.0, 30.0, 10.0], 0.5, 90, "b")]
    found = [dict(zip(("bbox", "score", "category_id", "category"), row, strict=True)) for row in rows]
    for one, segmentation in zip(found, segmentations, strict=True):
        one["segmentation"] = segmentation
    made = to_supervision(json.loads(json.dumps(found)))
    expected = supervision.mask_to_xyxy(masks) + np.array([0, 0, 1, 1])  # its last pixel is inside
    assert (made.xyxy == expected).all()
    assert (made.mask == masks).all()
    assert made.area.tolist() == [24, 300]
    assert made.class_id.tolist() == [7, 90]
    assert made["class_name"].tolist() == ["a", "b"]
    assert made[made.confidence > 0.6].class_id.tolist() == [7]
    assert to_supervision([{key: one[key] for key in one if key != "segmentation"} for one in found]).mask is None
    assert len(to_supervision([])) == 0
