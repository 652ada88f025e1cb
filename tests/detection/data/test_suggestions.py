"""The values of a recipe that follow from a dataset."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou

from vovnet.detection.config.loading import flat_recipe, load_recipe
from vovnet.detection.data.object_sizes import ObjectSizes
from vovnet.detection.data.suggestions import LARGE, SMALL, crops_per_image, suggest


def sizes(boxes, shapes, counts=None) -> ObjectSizes:
    images = np.zeros(len(boxes), dtype=np.int64) if counts is None else np.repeat(np.arange(len(counts)), counts)
    return ObjectSizes(np.array(boxes, dtype=np.float64), images, np.array(shapes))


@given(
    st.lists(st.tuples(st.floats(0.5, 3000), st.floats(0.5, 3000)), min_size=1, max_size=20),
    st.lists(st.tuples(st.integers(8, 6000), st.integers(8, 6000)), min_size=1, max_size=5),
    st.sampled_from([SMALL, LARGE]),
    st.booleans(),
)
def test_a_recipe_takes_whatever_is_suggested(boxes, shapes, scale, anchors):
    found = suggest(sizes(boxes, shapes), scale, anchors=anchors)
    recipe = load_recipe("own_data_cpu", [one.override for one in found])
    flat = flat_recipe(recipe)
    for one in found:
        assert flat[one.key] == one.value
        assert one.reason
    assert recipe.model.min_size <= recipe.model.max_size
    assert recipe.model.min_size % 32 == 0
    assert ("model.anchor_sizes" in {one.key for one in found}) == anchors


def values(found) -> dict:
    return {one.key: one.value for one in found}


def test_images_are_shrunk_no_further_than_their_small_objects_allow():
    tiny = values(suggest(sizes([(10, 10)] * 9 + [(300, 300)], [(1000, 1000)]), LARGE))
    large = values(suggest(sizes([(300, 300)] * 10, [(1000, 1000)]), LARGE))
    assert large["model.min_size"] == 128  # no detail is needed
    assert tiny["model.min_size"] == 1344  # 32 pixels would need 3,200
    assert values(suggest(sizes([(10, 10)], [(100, 100)]), SMALL))["model.min_size"] == 192  # twice as large


def test_the_long_side_follows_the_images():
    for shape in ((640, 480), (480, 640)):
        found = values(suggest(sizes([(40, 40)], [shape]), SMALL))
        assert found["model.max_size"] == pytest.approx(found["model.min_size"] * 4 / 3, abs=32)


@pytest.mark.parametrize("side", [12, 20, 40, 90, 200])
def test_the_smallest_anchor_fits_small_objects(side):
    found = values(suggest(sizes([(side, side)] * 20, [(512, 512)]), LARGE))
    factor = found["model.min_size"] / 512
    box = torch.tensor([[0.0, 0.0, side * factor, side * factor]])
    anchors = torch.tensor([[0.0, 0.0, size, size] for (size,) in found["model.anchor_sizes"]])
    assert box_iou(box, anchors).max() >= 0.49


def test_long_objects_get_long_anchors():
    usual = values(suggest(sizes([(40, 40), (60, 30)], [(512, 512)]), SMALL))
    assert "model.aspect_ratios" not in usual
    found = values(suggest(sizes([(100, 10)] * 5 + [(10, 100)] * 5, [(512, 512)]), SMALL))
    low, middle, high = found["model.aspect_ratios"]
    assert low < 0.2 < middle < 5 < high


def test_crowded_images_get_more_detections():
    assert "model.box_detections_per_img" not in values(suggest(sizes([(9, 9)] * 60, [(99, 99)]), SMALL))
    found = values(suggest(sizes([(9, 9)] * 290, [(99, 99)] * 2, [3, 287]), SMALL))
    assert found["model.box_detections_per_img"] == 450


@pytest.mark.parametrize("scale", [SMALL, LARGE])
def test_large_images_of_small_objects_are_cut(scale):
    boxes = [(20, 30)] * 500
    whole = values(suggest(sizes(boxes, [(4000, 6000)]), scale, crops=False))
    found = suggest(sizes(boxes, [(4000, 6000)]), scale)
    cut = values(found)
    assert "data.crop" not in whole
    # In a crop an object gets the pixels that the scale asks for, and an image costs as much as before or less.
    after = 600**0.5 * min(cut["model.min_size"], cut["model.max_size"]) / cut["data.crop"]
    assert after == pytest.approx(scale.object_side, rel=0.1)
    assert cut["model.min_size"] * cut["model.max_size"] <= whole["model.min_size"] * whole["model.max_size"] * 1.05
    assert f"--tile {cut['data.crop']}" in found[0].reason
    # 500 objects on 24 million pixels are few in a crop, even if they lie close together.
    assert "model.box_detections_per_img" not in cut
    assert "model.box_detections_per_img" in whole


@pytest.mark.parametrize(
    ("boxes", "shapes"),
    [
        ([(300, 300)] * 4, [(4000, 6000)]),  # large objects
        ([(30, 30)] * 4, [(480, 640)]),  # small images
        ([(40, 40)] * 4 + [(2000, 2500)] * 2, [(4000, 6000)]),  # crops would have to be as large as images for some
    ],
)
def test_other_images_are_not_cut(boxes, shapes):
    for scale in (SMALL, LARGE):
        assert "data.crop" not in values(suggest(sizes(boxes, shapes), scale))


def test_crops_cover_an_image():
    assert crops_per_image(sizes([(1, 1)], [(512, 512), (513, 1024)]), 512) == (1 + 4) / 2
