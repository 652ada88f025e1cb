"""Labels that can be read, a legend, and colours for every reader."""

import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vovnet.errors import InputError
from vovnet.results.drawing import draw_detections
from vovnet.results.labels import Labels, extent, legend_entries, overlap
from vovnet.results.lettering import category_colour


def crowd(count=300, side=40, step=32):
    """Detections that overlap their neighbours."""
    columns = 20
    return [
        {
            "bbox": [step * (number % columns), step * (number // columns), side, side],
            "score": 0.5 + number / 1000,
            "category_id": 1 + number % 2,
            "category": ("red cell", "platelet")[number % 2],
        }
        for number in range(count)
    ]


def placed(mode, objects, size=(700, 540)):
    draw = ImageDraw.Draw(Image.new("RGB", size))
    boxes = [(x, y, x + w - 1, y + h - 1) for x, y, w, h in (one["bbox"] for one in objects)]
    labels = Labels(draw, boxes, mode)
    for one, box in zip(objects, boxes, strict=True):
        labels.write([f"{one['category']} {one['score']:.2f}", one["category"]], box, (1, 2, 3))
    return labels


def test_labels_hide_neither_another_label_nor_another_object():
    objects = crowd()
    labels = placed("auto", objects)
    assert 0 < len(labels.taken) == len(objects) - labels.left_out < len(objects)
    assert not any(overlap(*pair) for pair in itertools.combinations(labels.taken, 2))
    for label in labels.taken:
        hidden = [
            max(0, min(label[2], x + w) - max(label[0], x)) * max(0, min(label[3], y + h) - max(label[1], y)) / (w * h)
            for x, y, w, h in (one["bbox"] for one in objects)
        ]
        assert sum(share > 0.3 for share in hidden) <= 1, "only its own object"


def test_all_labels_or_none():
    objects = crowd(50)
    assert len(placed("all", objects).taken) == 50
    assert placed("none", objects).taken == []
    image = Image.new("RGB", (700, 540))
    plain, texts = draw_detections(image, objects, labels="none"), draw_detections(image, objects, labels="all")
    assert (np.asarray(plain) != np.asarray(texts)).any()
    assert (np.asarray(draw_detections(image, objects, labels=False)) == np.asarray(plain)).all()
    with pytest.raises(InputError, match=r"^labels:"):
        draw_detections(image, objects, labels="some")


def test_letters_are_small_where_boxes_are():
    heights = [placed("auto", crowd(30, side, side + 40), (2000, 2000)).taken[0] for side in (40, 200)]
    assert heights[0][3] - heights[0][1] < heights[1][3] - heights[1][1]


def test_the_legend_counts_what_is_drawn():
    assert legend_entries(crowd(5)) == [("3 red cell", category_colour(1)), ("2 platelet", category_colour(2))]
    image = Image.new("RGB", (700, 700))
    drawn = np.asarray(draw_detections(image, crowd(40), threshold=0.0))  # two rows at the top
    corner = drawn[-40:, -150:].reshape(-1, 3)
    assert all((corner == category_colour(one)).all(axis=1).any() for one in (1, 2))
    assert not np.asarray(draw_detections(image, crowd(1), threshold=0.0))[-40:].any(), "one object needs no legend"


def test_truth_is_named():
    image = Image.new("RGB", (300, 200), (90, 90, 90))
    box = {"bbox": [60, 60, 120, 100]}
    plain = np.asarray(draw_detections(image, [], truth=[box]))
    named = np.asarray(draw_detections(image, [], truth=[{**box, "category": "cell"}]))
    changed = (plain != named).any(axis=2)
    assert changed.sum() > 100
    assert (named[changed] == 255).all(axis=1).any()


# Machado, Oliveira and Fernandes 2009 (doi:10.1109/TVCG.2009.113), table 1: what people without red and without green
# cones see, in linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}


@pytest.mark.parametrize("kind", BLINDNESS)
def test_colours_can_be_told_apart(kind):
    colours = np.array([category_colour(one) for one in range(1, 8)]) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = (linear @ BLINDNESS[kind].T).clip(0, 1) ** (1 / 2.4)
    for one, other in itertools.combinations(seen, 2):
        assert np.abs(one - other).sum() > 0.25
    assert len({category_colour(one) for one in range(1, 36)}) == 35


@pytest.mark.parametrize("mode", ["auto", "all"])
def test_letters_fit_small_boxes_in_every_mode(mode):
    draw = ImageDraw.Draw(Image.new("RGB", (2000, 2000)))
    boxes = [(x, y, x + 60.0, y + 60.0) for x in range(0, 2000, 100) for y in range(0, 2000, 100)]
    assert extent(draw, "Äg", Labels(draw, boxes, mode).font)[1] < 30
    assert extent(draw, "Äg", Labels(draw, boxes[:1], mode).font)[1] > 30
