"""Predictions as tables and labels: what is counted, and what our own readers read back."""

import csv
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from torch import nn

from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.formats.finding import sources_of
from vovnet.detection.prediction.predictor import predict_files
from vovnet.errors import InputError
from vovnet.results.polygons import outlines

CATEGORIES = [{"id": 11, "name": 'disc "é" 😀: x'}, {"id": 5, "name": "bar"}, {"id": 9, "name": "absent"}]
SIZE = (90, 120)
SHAPES = {"disc": (10, 12, 49, 51), "bar": (60, 20, 99, 39)}


class Finder(nn.Module):
    """Finds a disc with score 0.9, a bar with 0.5 and a bar with 0.2."""

    categories = CATEGORIES

    def __init__(self, masks=True):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.masks = masks
        self.transform = nn.Identity()
        self.transform.image_mean = [0.5] * 3
        self.transform.max_size = 1333

    def forward(self, images):
        masks = np.stack([drawn("disc"), drawn("bar"), drawn("bar")])
        boxes = torch.tensor([[x0, y0, x1 + 1, y1 + 1] for x0, y0, x1, y1 in (SHAPES["disc"], *[SHAPES["bar"]] * 2)])
        output = {"boxes": boxes.float(), "labels": torch.tensor([1, 2, 2]), "scores": torch.tensor([0.9, 0.5, 0.2])}
        if self.masks:
            output["masks"] = torch.from_numpy(masks).float()[:, None]
        return [output for _ in images]


def drawn(shape):
    image = Image.new("L", SIZE[::-1])
    draw = ImageDraw.Draw(image)
    (draw.ellipse if shape == "disc" else draw.rectangle)(SHAPES[shape], fill=1)
    return np.asarray(image).astype(bool)


@pytest.fixture
def images(tmp_path):
    paths = [tmp_path / name / "ä.png" for name in ("one", "two")]
    for seed, path in enumerate(paths):
        path.parent.mkdir()
        pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return paths


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("threshold", "bars"), [(0.21, "1"), (0.5, "1"), (0.51, "0"), (0.0, "2")])
def test_counts_are_those_from_the_threshold(images, tmp_path, threshold, bars):
    predict_files(Finder(), images, tmp_path / "out", threshold)
    rows = rows_of(tmp_path / "out" / "counts.csv")
    expected = [(CATEGORIES[0]["name"], "1"), ("bar", bars), ("absent", "0")]
    assert [(row["image"], row["category"], row["count"]) for row in rows] == [
        (str(path), name, count) for path in images for name, count in expected
    ]


def test_the_table_has_what_the_json_has(images, tmp_path):
    files = predict_files(Finder(), images, tmp_path / "out")
    rows = rows_of(tmp_path / "out" / "detections.csv")
    found = [(path, one) for path, file in zip(images, files, strict=True) for one in json.loads(file.read_text())]
    assert len(rows) == len(found) == 6
    for row, (path, one) in zip(rows, found, strict=True):
        assert (row["image"], row["category"], int(row["category_id"])) == (
            str(path),
            one["category"],
            one["category_id"],
        )
        assert [float(row[key]) for key in ("x", "y", "width", "height", "score")] == [*one["bbox"], one["score"]]


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("form", ["coco", "yolo", "labelme"])
def test_our_readers_read_the_labels(images, tmp_path, form, masks):
    predict_files(Finder(masks), images, tmp_path / "out", 0.5, formats=[form, form])
    sources = sources_of(tmp_path / "out" / form, hold_out=False)
    assert sources.format == form
    dataset = CocoDataset(sources.train, masks=masks, training=True)
    assert len(dataset) == 2
    names = {one["id"]: one["name"] for one in dataset.categories}
    ids = [one["id"] for one in dataset.categories]
    for index in range(2):
        image, target = dataset[index]
        assert sum((np.asarray(Image.open(path)) == image.permute(1, 2, 0).numpy()).all() for path in images) == 1
        labels = [names[ids[label - 1]] for label in target["labels"].tolist()]
        assert sorted(labels) == sorted([CATEGORIES[0]["name"], "bar"])
        for label, box in zip(labels, target["boxes"].tolist(), strict=True):
            x0, y0, x1, y1 = SHAPES["bar" if label == "bar" else "disc"]
            assert box == pytest.approx([x0, y0, x1 + 1, y1 + 1], abs=0.8)
        if masks:
            for label, mask in zip(labels, target["masks"].numpy().astype(bool), strict=True):
                truth = drawn("bar" if label == "bar" else "disc")
                assert (mask & truth).sum() / (mask | truth).sum() > 0.93


def test_unknown_formats_are_refused_before_anything_is_written(images, tmp_path):
    with pytest.raises(InputError, match="format"):
        predict_files(Finder(), images, tmp_path / "out", formats=["voc"])
    assert not (tmp_path / "out").exists()


@given(st.lists(st.tuples(*[st.integers(0, 30)] * 2, *[st.integers(3, 12)] * 2), min_size=1, max_size=4))
def test_outlines_keep_the_area(rectangles):
    mask = np.zeros((45, 45), dtype=bool)
    for x, y, width, height in rectangles:
        mask[y : y + height, x : x + width] = True
    polygons = outlines(mask, 0)
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons, 45, 45))
    again = coco_mask.decode(rle).astype(bool)
    filled = again & ~mask  # holes
    assert (mask & ~again).sum() <= 4 * len(rectangles)  # corners are cut by half a pixel
    padded = np.pad(mask, 1)
    assert not padded[0].any()
    for row, column in np.argwhere(filled):
        window = padded[row : row + 3, column : column + 3]
        assert window.any() or again[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].all()


def test_pieces_come_in_the_order_of_their_size():
    mask = np.zeros((40, 40), dtype=bool)
    mask[2:6, 2:6] = mask[10:30, 10:30] = True
    small, large = (np.reshape(one, (-1, 2)) for one in sorted(outlines(mask), key=len))
    first = np.reshape(outlines(mask)[0], (-1, 2))
    assert (first.min(axis=0) == [10, 10]).all()
    assert (first.max(axis=0) == [30, 30]).all()
    assert len(small) <= 8 >= len(large)
    assert outlines(np.zeros((5, 5), dtype=bool)) == []
