"""Masks of runs of pixels: CVAT's by its documentation, Label Studio's by bytes that its own program wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import label_files
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.masks import decode_masks
from vovnet.detection.data.sources import read_source
from vovnet.detection.formats.painted import brush_pixels, cvat_pixels

MASK = np.zeros((5, 7), dtype=bool)
MASK[1:4, 2:6] = True
MASK[2, 3] = False
# label_studio_sdk 2.0's converter.brush.encode_rle of this mask in red, green, blue and alpha
BRUSH = [0, 0, 0, 140, 57, 27, 254, 35, 0, 191, 255, 108, 2, 63, 248, 192, 39, 255, 182, 1, 127, 255, 15, 128, 0]


def test_label_studios_bytes() -> None:
    found = brush_pixels(BRUSH, 7, 5)
    assert found is not None
    assert (found == MASK).all()


@pytest.mark.parametrize(
    "data", [None, "rle", [], [0], BRUSH[:8], [300, *BRUSH[1:]], [-1, *BRUSH[1:]], [["a"]], [0, 0, 0, 139, *BRUSH[4:]]]
)
def test_other_bytes_are_refused(data: Any) -> None:
    assert brush_pixels(data, 7, 5) is None


@pytest.mark.parametrize("size", [(0, 5), (10**6, 10**6), (8, 5), (-7, -5)])
def test_other_sizes_are_refused_before_anything_is_allocated(size: tuple[int, int]) -> None:
    assert brush_pixels(BRUSH, *size) is None
    if size != (8, 5):
        assert cvat_pixels(f"0,{size[0] * size[1]}", *size) is None


@given(st.lists(st.booleans(), min_size=6, max_size=6))
def test_cvats_runs_begin_with_zeros_and_go_along_rows(values: list[bool]) -> None:
    runs, now = [0], False
    for value in values:
        if value == now:
            runs[-1] += 1
        else:
            runs.append(1)
            now = value
    found = cvat_pixels(", ".join(map(str, runs)), 3, 2)
    assert found is not None
    assert found.ravel().tolist() == values


@pytest.mark.parametrize("text", ["", "a", "1,2", "-1, 7", "3,4", "1.5, 4.5", "6,,"])
def test_other_runs_are_refused(text: str) -> None:
    assert cvat_pixels(text, 3, 2) is None


def painted(annotation: dict[str, Any]) -> list[list[int]]:
    height, width = (40, 60)
    return np.argwhere(decode_masks([annotation["segmentation"]], height, width)[0].numpy()).tolist()


def test_a_mask_of_cvat_stands_at_its_corner_and_ends_with_the_image(tmp_path: Path) -> None:
    path = label_files.write_cvat(tmp_path)
    text = path.read_text()
    start = text.index("<box")
    box = text[start : text.index("/>", start) + 2]
    inside = '<mask label="dog" left="10" top="5" width="3" height="2" rle="1, 2, 3"/>'
    beyond = '<mask label="cat" left="59" top="39" width="2" height="2" rle="0, 4"/>'
    path.write_text(text.replace(box, inside + beyond, 1))
    (source,) = read_source(DataSource(folder=str(path)))
    first, second, *_ = source.content.annotations
    assert first["bbox"] == [11, 5, 2, 1]
    assert painted(first) == [[5, 11], [5, 12]]
    assert second["bbox"] == [59, 39, 2, 2]
    assert painted(second) == [[39, 59]]


def test_a_brush_of_label_studio(tmp_path: Path) -> None:
    path = label_files.write_label_studio(tmp_path)
    tasks = json.loads(path.read_text())
    brush = {"format": "rle", "rle": BRUSH, "brushlabels": ["dog"]}
    result = {"type": "brushlabels", "original_width": 7, "original_height": 5, "value": brush}
    tasks[0]["annotations"][1]["result"] = [result]
    path.write_text(json.dumps(tasks))
    (source,) = read_source(DataSource(folder=str(path)))
    one = source.content.annotations[0]
    assert one["bbox"] == [2, 1, 4, 3]
    assert one["segmentation"]["size"] == [5, 7]
    assert (decode_masks([one["segmentation"]], 5, 7)[0].numpy() == MASK).all()
