"""SAHI's tiles and its rule of merging, where SAHI is installed (``pip install sahi``)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import detector

from vovnet.detection import predict
from vovnet.results.detections import ImageDetections
from vovnet.results.merging import merged
from vovnet.results.tiling import Tiling

pytest.importorskip("sahi")

from sahi.models.torchvision import TorchVisionDetectionModel
from sahi.postprocess.combine import GreedyNMMPostprocess
from sahi.predict import get_sliced_prediction
from sahi.prediction import ObjectPrediction
from sahi.slicing import get_slice_bboxes

TILE = (100, 100)
boxes = st.tuples(
    st.integers(0, 79),
    st.integers(0, 79),
    st.integers(3, 60),
    st.integers(3, 60),
    st.integers(1, 10**6),
    st.integers(1, 2),
).map(lambda one: (one[0], one[1], min(one[0] + one[2], 100), min(one[1] + one[3], 100), one[4] / 1e6, one[5]))


@given(st.integers(40, 500), st.integers(40, 500), st.integers(32, 200), st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.5]))
def test_tiles_are_sahis(height, width, side, overlap):
    if min(height, width) < side:
        return  # SAHI repeats tiles there
    theirs = get_slice_bboxes(height, width, side, side, False, overlap, overlap)
    ours = Tiling(side, overlap).regions(height, width)
    assert {(one.left, one.top, one.right, one.bottom) for one in ours} == set(map(tuple, theirs))


@settings(max_examples=60)
@given(st.lists(boxes, max_size=14), st.lists(boxes, max_size=14))
def test_the_rule_nmm_is_sahis(left, right):
    rows = [*left, *((x0 + 80, y0, x1 + 80, y1, score, one) for x0, y0, x1, y1, score, one in right)]
    if not rows or len({row[4] for row in rows}) < len(rows):
        return  # equal scores have no order
    objects = [ObjectPrediction(list(row[:4]), category_id=row[5], score=row[4], full_shape=[100, 180]) for row in rows]
    theirs = GreedyNMMPostprocess(match_threshold=0.5, match_metric="IOS", class_agnostic=False)(objects)

    def part(tile):
        table = np.array(tile, dtype=np.float32).reshape(-1, 6)
        xywh = np.concatenate((table[:, :2], table[:, 2:4] - table[:, :2]), 1)
        return ImageDetections(0, xywh, table[:, 4], table[:, 5].astype(np.int64), None, TILE)

    found = merged([((0, 0, 100, 100), part(left)), ((0, 80, 100, 180), part(right))], (100, 180), "nmm")
    ours = {(*map(round, box), int(one)) for box, one in zip(_corners(found), found.category_ids, strict=True)}
    assert ours == {(*map(round, one.bbox.to_xyxy()), one.category.id) for one in theirs}


def _corners(found):
    return np.concatenate((found.boxes[:, :2], found.boxes[:, :2] + found.boxes[:, 2:]), 1).tolist()


def test_sahi_takes_our_detector_with_its_names():
    made = detector("faster_rcnn_vovnet39_fpn", box_score_thresh="0.3")
    made.categories = [{"id": 10 * one, "name": f"class {one}"} for one in (1, 2, 3, 4)]
    image = np.random.default_rng(0).integers(0, 256, (150, 220, 3), dtype=np.uint8)
    names = {str(label): one["name"] for label, one in enumerate(made.categories, 1)}
    model = TorchVisionDetectionModel(model=made, category_mapping=names, confidence_threshold=0.3, device="cpu")
    sliced = get_sliced_prediction(image, model, 128, 128, 0.2, 0.2, perform_standard_pred=False, verbose=0)
    with torch.no_grad():
        (ours,) = predict(made, [image], tile=128, overlap=0.2, score=0.3, merge="nmm")
    theirs = [(one.category.name, *one.bbox.to_xyxy()) for one in sliced.object_prediction_list]
    mine = [(one["category"], *one["bbox"][:2], *np.add(one["bbox"][:2], one["bbox"][2:])) for one in ours]
    assert len(mine) == len(theirs) > 3
    for name, *box in theirs:
        assert any(name == other and np.abs(np.subtract(box, place)).max() < 0.01 for other, *place in mine)
