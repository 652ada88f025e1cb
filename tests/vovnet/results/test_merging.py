"""Detections of tiles: where tiles lie, and which detections of several tiles are one object."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from torchvision.ops import batched_nms

from vovnet.errors import InputError
from vovnet.results.detections import ImageDetections
from vovnet.results.merging import merged
from vovnet.results.rle import encode_part
from vovnet.results.tiling import Region, Tiling, detect_in_tiles


def found(size, *rows, masks=False, points=None):
    """Detections of a tile of ``size``: rows of x0, y0, x1, y1, score and category."""
    table = np.array(rows, dtype=np.float32).reshape(-1, 6)
    boxes = np.concatenate((table[:, :2], table[:, 2:4] - table[:, :2]), 1)
    counts = [_mask(size, row) for row in table.tolist()] if masks else None
    return ImageDetections(7, boxes, table[:, 4], table[:, 5].astype(np.int64), counts, size, points)


def _mask(size, row):
    whole = np.zeros(size, dtype=bool)
    whole[round(row[1]) : round(row[3]), round(row[0]) : round(row[2])] = True
    return encode_part(whole, (0, 0), size)


def corners(result):
    return np.concatenate((result.boxes[:, :2], result.boxes[:, :2] + result.boxes[:, 2:]), 1).tolist()


@given(st.integers(1, 700), st.integers(1, 700), st.integers(32, 300), st.floats(0, 0.9))
def test_tiles_cover_the_image_with_at_least_the_overlap(height, width, side, overlap):
    tiling = Tiling(side, overlap)
    regions = tiling.regions(height, width)
    assert len(set(regions)) == len(regions)
    seen = np.zeros((height, width), dtype=bool)
    for one in regions:
        assert one.size == (min(side, height), min(side, width))
        seen[one.top : one.bottom, one.left : one.right] = True
    assert seen.all()
    lefts = sorted({one.left for one in regions})
    assert all(after - before <= side - int(overlap * side) for before, after in itertools.pairwise(lefts))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((31,), "tile"), ((2.5,), "tile"), ((64, 0.95), "overlap"), ((64, 0.2, False, "x"), "merge")],
)
def test_values_out_of_bounds(arguments, name):
    with pytest.raises(InputError, match=f"^{name}:"):
        Tiling(*arguments)


LEFT, RIGHT = (0, 0, 100, 100), (0, 80, 100, 180)  # top, left, bottom, right: 20 pixels in common
SIZE = (100, 180)
TILE = (100, 100)


def test_an_object_in_the_common_zone_is_found_once():
    parts = [(LEFT, found(TILE, (83, 40, 97, 60, 0.8, 1))), (RIGHT, found(TILE, (3.5, 40, 17, 60.5, 0.9, 1)))]
    (box,) = corners(merged(parts, SIZE))
    assert box == pytest.approx([83.5, 40, 97, 60.5])  # the better one's, not the union


def test_a_cut_detection_gives_way_to_the_whole_one():
    parts = [(LEFT, found(TILE, (90, 40, 100, 60, 0.95, 1))), (RIGHT, found(TILE, (10, 40, 40, 60, 0.6, 1)))]
    result = merged(parts, SIZE)
    assert corners(result) == [[90, 40, 120, 60]]
    assert result.scores.tolist() == pytest.approx([0.95])


def test_a_cut_detection_does_not_give_way_to_a_poor_one():
    parts = [(LEFT, found(TILE, (80, 40, 100, 60, 0.9, 1))), (RIGHT, found(TILE, (2, 42, 18, 58, 0.1, 1)))]
    assert corners(merged(parts, SIZE)) == [[80, 40, 100, 60]]


@pytest.mark.parametrize("masks", [False, True])
def test_the_pieces_of_a_long_object_are_joined(masks):
    """Four tiles in a row, none of which shows it whole."""
    tiles = [(0, left, 100, left + 100) for left in (0, 80, 160, 240)]
    rows = [(30, 40, 100, 60), (0, 41, 100, 60), (0, 40, 100, 61), (0, 40, 50, 60)]
    parts = [
        (tile, found(TILE, (*row, 0.9 - 0.1 * at, 1), masks=masks))
        for at, (tile, row) in enumerate(zip(tiles, rows, strict=True))
    ]
    result = merged(parts, (100, 340))
    assert corners(result) == [[30, 40, 290, 61]]
    if masks:
        whole = coco_mask.decode({"size": [100, 340], "counts": result.masks[0]})
        expected = np.zeros((100, 340), dtype=bool)
        for (_, left, _, _), (x0, y0, x1, y1) in zip(tiles, rows, strict=True):
            expected[y0:y1, left + x0 : left + x1] = True
        assert (whole.astype(bool) == expected).all()


def test_a_tile_that_is_the_whole_image_sees_large_objects():
    whole = (0, 0, *SIZE)
    parts = [
        (LEFT, found(TILE, (20, 0, 100, 100, 0.95, 1), (40, 40, 50, 50, 0.9, 1))),
        (RIGHT, found(TILE, (0, 0, 80, 100, 0.95, 1))),
        (whole, found(SIZE, (20, 0, 160, 100, 0.8, 1))),
    ]
    # The small one is another object: nothing like it is seen by the others.
    assert sorted(corners(merged(parts, SIZE))) == [[20, 0, 160, 100], [40, 40, 50, 50]]


def test_detections_of_one_tile_and_of_two_classes_stay():
    rows = ((83, 40, 97, 60, 0.9, 1), (84, 40, 98, 60, 0.8, 1), (83, 40, 97, 60, 0.7, 2))
    parts = [(LEFT, found(TILE, *rows)), (RIGHT, found(TILE))]
    assert len(merged(parts, SIZE).scores) == 3


boxes = st.tuples(
    st.integers(0, 99),
    st.integers(0, 99),
    st.integers(1, 60),
    st.integers(1, 60),
    st.floats(0, 1, width=32),
    st.integers(1, 2),
).map(lambda one: (one[0], one[1], min(one[0] + one[2], 100), min(one[1] + one[3], 100), one[4], one[5]))


@settings(max_examples=60)
@given(st.lists(boxes, max_size=12), st.lists(boxes, max_size=12), st.sampled_from(["auto", "nms", "nmm"]))
def test_nothing_is_invented(left, right, rule):
    parts = [(LEFT, found(TILE, *left, masks=True)), (RIGHT, found(TILE, *right, masks=True))]
    result = merged(parts, SIZE, rule)
    scores = result.scores.tolist()
    assert scores == sorted(scores, reverse=True)
    assert set(scores) <= {np.float32(one[4]).item() for one in left + right}
    for category in (1, 2):
        rows = [one[4] for one in left + right if one[5] == category]
        ours = result.scores[result.category_ids == category]
        assert bool(rows) == bool(len(ours))
        if rows:  # the best of a class stays
            assert ours.max() == np.float32(max(rows))
    if rule == "auto" and not right:
        assert sorted(corners(result)) == sorted([list(map(float, one[:4])) for one in left])
    assert all(coco_mask.area({"size": SIZE, "counts": one}) > 0 for one in result.masks)


@given(st.lists(boxes, min_size=1, max_size=15), st.lists(boxes, max_size=15))
def test_the_rule_nms_is_torchvisions(left, right):
    parts = [(LEFT, found(TILE, *left)), (RIGHT, found(TILE, *right))]
    result = merged(parts, SIZE, "nms")
    rows = np.array([*left, *((x0 + 80, y0, x1 + 80, y1, score, one) for x0, y0, x1, y1, score, one in right)])
    tensor = torch.from_numpy(rows)
    keep = batched_nms(tensor[:, :4], tensor[:, 4], tensor[:, 5], 0.5 - 1e-9)
    if len(set(rows[:, 4].tolist())) == len(rows):  # equal scores have no order there
        assert sorted(corners(result)) == sorted(rows[keep.numpy(), :4].tolist())


def test_keypoints_move_with_their_box():
    points = np.array([[[90, 50, 0.9], [95, 55, 0.2]]], dtype=np.float32)
    moved = points - np.array([80, 0, 0], dtype=np.float32)
    parts = [
        (LEFT, found(TILE, (85, 45, 97, 60, 0.5, 1), points=points)),
        (RIGHT, found(TILE, (5, 45, 17, 60, 0.9, 1), points=moved)),
    ]
    assert merged(parts, SIZE).keypoints.tolist() == points.tolist()


def test_an_image_of_one_tile_is_not_cut():
    calls = []

    def detect(regions):
        calls.append(list(regions))
        return [found((50, 60), (1, 2, 30, 40, 0.5, 1))]

    result = detect_in_tiles((50, 60), Tiling(64, full_image=True), detect)
    assert calls == [[Region(0, 0, 50, 60)]]
    assert (result.pass_size, result.pass_count) == (None, None)


def test_batches_and_the_limit_are_those_of_tiles():
    sizes = []

    def detect(regions):
        sizes.append(len(regions))
        return [found(one.size, *[(9 * n, 9, 9 * n + 8, 20, 0.5, 1) for n in range(3)]) for one in regions]

    result = detect_in_tiles((100, 200), Tiling(64, 0.25, True), detect, batch_size=4)
    assert sizes == [4, 4, 1]
    assert (result.pass_size, result.pass_count, result.size) == ((64, 64), 3, (100, 200))
