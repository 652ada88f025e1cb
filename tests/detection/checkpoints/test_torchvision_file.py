"""Which of torchvision's detectors a file holds is told by its checksum, or by the names and shapes in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models import detection as theirs
from torchvision.models import get_model, get_model_weights, list_models

from vovnet.checkpoints.shapes import Shapes, shapes_of
from vovnet.detection.checkpoints.torchvision_detectors import NETWORKS, torchvision_detector
from vovnet.detection.checkpoints.torchvision_file import (
    infer_torchvision,
    is_torchvision_file,
    published_by_torchvision,
)
from vovnet.errors import InputError

UNKNOWN = "0" * 64
OTHERS = sorted(set(list_models(module=theirs)) - NETWORKS.keys())
LARGE, SMALL = "fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn"
KEYPOINTS = "keypointrcnn_resnet50_fpn"


def shapes(name: str, *, counters: bool | None = None, **arguments: Any) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a detector of torchvision, by default with counters of batches as in its file."""
    with torch.device("meta"):
        found = shapes_of(get_model(name, weights=None, weights_backbone=None, **arguments).state_dict())
    kept = name.endswith("_v2") if counters is None else counters
    return {key: shape for key, shape in found.items() if kept or not key.endswith("num_batches_tracked")}


def digits(name: str, member: str = "DEFAULT") -> str:
    """Return the eight digits that the name of torchvision's file ends in."""
    return str(get_model_weights(name)[member].url)[-12:-4]


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != SMALL])
def test_each_detector_is_told_by_its_names_and_shapes(name: str) -> None:
    found = infer_torchvision(shapes(name), UNKNOWN)
    assert (found.source.name, found.published, found.licence) == (name, False, "not-stated")
    assert found.name == f"torchvision:{name}"
    assert found.model == found.source.model
    assert found.categories == found.source.categories
    assert sorted(found.names.values()) == sorted(found.detector.state_dict())
    assert not found.ignored
    assert any("SHA-256" in note for note in found.notes)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_published_file_is_told_by_its_checksum(name: str) -> None:
    for weights in get_model_weights(name):
        sha256 = digits(name, weights.name) + 56 * "a"
        found = infer_torchvision(shapes(name), sha256)
        assert (found.name, found.published) == (f"torchvision:{name}.{weights.name}", True)
        assert (found.notes, found.licence) == ((), "bsd-3-clause")
        assert published_by_torchvision(found.name, sha256) == found.source
        assert published_by_torchvision(found.name, UNKNOWN) is None
        assert published_by_torchvision("faster_rcnn_V_39_FPN_2x", sha256) is None


@pytest.mark.parametrize(
    ("shared", "wanted", "differs"),
    [(LARGE, f"{SMALL}.COCO_V1", "min_size"), (KEYPOINTS, f"{KEYPOINTS}.COCO_LEGACY", "norm_eps")],
)
def test_files_with_the_same_shapes_are_told_apart_by_what_is_expected(shared: str, wanted: str, differs: str) -> None:
    source = torchvision_detector(f"torchvision:{wanted}")
    first, second = (infer_torchvision(shapes(source.name), UNKNOWN, one) for one in (None, source))
    assert (first.source.name, second.source) == (shared, source)
    assert getattr(first.model, differs) != getattr(second.model, differs)
    assert second.model == source.model
    assert any(source.full_name in note and "--expect" in note for note in first.notes)
    assert first.fits(source)
    assert not first.fits(torchvision_detector("torchvision:fcos_resnet50_fpn"))
    published = infer_torchvision(shapes(shared), digits(shared) + 56 * "a", source)
    assert published.source.name == shared  # the checksum decides
    assert not published.fits(source)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("fasterrcnn_resnet50_fpn", {"num_classes": 3}),
        ("maskrcnn_resnet50_fpn_v2", {"num_classes": 2}),
        ("keypointrcnn_resnet50_fpn", {"num_classes": 2, "num_keypoints": 4}),
        ("keypointrcnn_resnet50_fpn", {"num_classes": 3}),
        ("retinanet_resnet50_fpn", {"num_classes": 5}),
        ("fcos_resnet50_fpn", {"num_classes": 8}),
    ],
)
def test_any_number_of_classes_and_keypoints(name: str, arguments: dict[str, Any]) -> None:
    found = infer_torchvision(shapes(name, **arguments), UNKNOWN)
    assert found.source.name == name
    assert found.model.num_classes == arguments["num_classes"] - 1
    if "num_keypoints" in arguments:
        assert found.model.num_keypoints == arguments["num_keypoints"]
    assert found.categories is None


def test_norms_that_count_batches_were_trained_and_have_an_epsilon() -> None:
    name = "retinanet_resnet50_fpn"
    found = infer_torchvision(shapes(name, counters=True), UNKNOWN)
    assert (found.model.norm, found.model.norm_eps, found.ignored) == ("bn", None, {})
    assert not any("epsilon" in note for note in found.notes)
    frozen = infer_torchvision(shapes(name), UNKNOWN)
    assert (frozen.model.norm, frozen.model.norm_eps) == ("frozen_bn", 0.0)
    assert any("epsilon" in note for note in frozen.notes)
    published = infer_torchvision(shapes(name, counters=True), digits(name) + 56 * "a")
    assert published.model.norm_eps == 0.0
    assert all(key.endswith("tracked") for key in published.ignored)
    assert published.ignored


@pytest.mark.parametrize("name", OTHERS)
def test_detectors_without_a_counterpart_are_refused_with_the_list(name: str) -> None:
    found = shapes(name)
    assert is_torchvision_file(found)
    with pytest.raises(InputError) as refused:
        infer_torchvision(found, UNKNOWN)
    assert all(one in str(refused.value) for one in NETWORKS)
    assert "\n" not in str(refused.value)


FCOS = shapes("fcos_resnet50_fpn")
MOBILE = shapes(LARGE)
STRANGE = st.sampled_from(
    [
        *("rpn.head.conv.weight", "backbone.body.99.0.weight", "backbone.body.4.block.9.9.weight", "head.x"),
        *("backbone.body.4.block.2.fc3.weight", "backbone.body.x", "", "roi_heads.box_head.fc6.weight.weight"),
    ]
)


@settings(max_examples=40)
@given(
    base=st.sampled_from([FCOS, MOBILE]),
    dropped=st.sets(st.integers(0, 200), max_size=3),
    added=st.dictionaries(STRANGE, st.lists(st.integers(0, 3), max_size=3).map(tuple), max_size=3),
    bias=st.none() | st.lists(st.integers(0, 2**40), max_size=2).map(tuple),
)
def test_what_does_not_fit_is_one_line(
    base: Shapes, dropped: set[int], added: dict[str, tuple[int, ...]], bias: tuple[int, ...] | None
) -> None:
    found = {key: shape for number, (key, shape) in enumerate(base.items()) if number not in dropped}
    key = next(key for key in base if key.endswith(("cls_logits.bias", "cls_score.bias")) and "rpn" not in key)
    if bias is not None:
        found[key] = bias
    found |= added
    if found == base:
        return
    with pytest.raises(InputError) as refused:
        infer_torchvision(found, UNKNOWN)
    assert "\n" not in str(refused.value)


def test_a_tensor_under_both_of_its_names_is_left_over() -> None:
    found = shapes("fasterrcnn_resnet50_fpn")
    found["rpn.head.conv.weight"] = found["rpn.head.conv.0.0.weight"]
    with pytest.raises(InputError, match=r"left over.*rpn\.head\.conv"):
        infer_torchvision(found, UNKNOWN)
