"""Detections as FiftyOne has them, and as it reads the files of an evaluation itself.

FiftyOne starts a database when it is used, which is not there everywhere. Without it, stand-ins for its two classes
hold what we give to the fields that its documentation names.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from vovnet.errors import InputError
from vovnet.results.fiftyone_bridge import to_fiftyone
from vovnet.results.rle import encode_part


@dataclass
class Detection:
    """https://docs.voxel51.com/api/fiftyone.core.labels.html#fiftyone.core.labels.Detection"""

    label: str
    bounding_box: list[float]
    mask: Any
    confidence: float


@dataclass
class Detections:
    """https://docs.voxel51.com/api/fiftyone.core.labels.html#fiftyone.core.labels.Detections"""

    detections: list[Detection] = field(default_factory=list)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("fiftyone")
    module.Detection, module.Detections = Detection, Detections
    monkeypatch.setitem(sys.modules, "fiftyone", module)


def case() -> tuple[list[dict[str, Any]], Any]:
    masks = np.zeros((2, 20, 40), dtype=bool)
    masks[0, 2:6, 4:12] = masks[1, 10:20, 0:30] = True
    masks[0, 2, 4] = False
    rows = [([4.2, 1.9, 8.0, 4.0], 0.75, 7, "a"), ([0.0, 10.0, 30.0, 10.0], 0.5, 90, "b")]
    found = [dict(zip(("bbox", "score", "category_id", "category"), row, strict=True)) for row in rows]
    for one, mask in zip(found, masks, strict=True):
        one["segmentation"] = {"size": [20, 40], "counts": encode_part(mask, (0, 0), (20, 40)).decode()}
    return json.loads(json.dumps(found)), masks


def assert_right(made: Any, masks: Any) -> None:
    first, second = made.detections
    assert first.bounding_box == pytest.approx([4.2 / 40, 1.9 / 20, 8 / 40, 4 / 20])
    assert second.bounding_box == [0, 0.5, 0.75, 0.5]
    assert [(one.label, one.confidence) for one in made.detections] == [("a", 0.75), ("b", 0.5)]
    assert (first.mask == masks[0, 2:6, 4:12]).all()
    assert (second.mask == masks[1, 10:20, 0:30]).all()


def test_fiftyone_has_the_same_objects(stand_in: None) -> None:
    found, masks = case()
    assert_right(to_fiftyone(found), masks)
    boxes = [{key: one[key] for key in one if key != "segmentation"} for one in found]
    made = to_fiftyone(boxes, size=(20, 40))
    assert [one.mask for one in made.detections] == [None, None]
    assert made.detections[1].bounding_box == [0, 0.5, 0.75, 0.5]
    assert to_fiftyone([]).detections == []
    with pytest.raises(InputError, match="size"):
        to_fiftyone(boxes)
    thin = [{**found[0], "bbox": [4.1, 2.0, 0.2, 3.0]}]
    assert to_fiftyone(thin).detections[0].mask is None


def test_without_it_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(InputError, match=r"\[fiftyone\]"):
        to_fiftyone([])


def test_fiftyone_itself_makes_the_same_of_our_coco_results() -> None:
    """What ``add_coco_labels`` does with ``results_bbox.json``, and what it documents of masks."""
    coco = pytest.importorskip("fiftyone.utils.coco", reason="needs FiftyOne")
    found, masks = case()
    assert_right(to_fiftyone(found), masks)
    for one, ours in zip(found, to_fiftyone(found).detections, strict=True):
        names = {7: "a", 90: "b"}
        result = {"image_id": 1, **{key: value for key, value in one.items() if key != "category"}}
        theirs = coco.COCOObject.from_anno_dict(result).to_detection((40, 20), names, load_segmentation=True)
        assert (theirs.label, theirs.confidence) == (ours.label, ours.confidence)
        assert theirs.bounding_box == ours.bounding_box
        assert (theirs.mask == ours.mask).all()
