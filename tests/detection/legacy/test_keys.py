"""Published detectors: told from keys and shapes, and their keys onto ours."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from vovnet.detection.checkpoints.empty import empty_detector
from vovnet.detection.config.loading import load_recipe, recipe_names
from vovnet.detection.legacy.keys import check_cell_anchors, infer_detector, published_detector_keys
from vovnet.errors import InputError

Shapes = dict[str, tuple[int, ...]]

GOLDEN = {
    "frcn_v39": "faster_rcnn_V_39_FPN_2x",
    "frcn_r50": "faster_rcnn_R_50_FPN_2x",
    "mrcn_v57": "mask_rcnn_V_57_FPN_2x",
    "mrcn_r101": "mask_rcnn_R_101_FPN_2x",
}
LEGACY = [name for name in recipe_names() if re.search("_[RV]_[0-9]+_FPN_", name)]
ANCHORS = [f"rpn.anchor_generator.cell_anchors.{i}" for i in range(5)]

# The reference's table (shared/reference/rule.md): x1, y1, x2, y2 for the ratios 0.5, 1 and 2.
CELLS = {
    0: [[-22, -10, 25, 13], [-14, -14, 17, 17], [-10, -22, 13, 25]],
    1: [[-40, -20, 47, 27], [-28, -28, 35, 35], [-20, -44, 27, 51]],
    2: [[-84, -40, 99, 55], [-56, -56, 71, 71], [-36, -80, 51, 95]],
    3: [[-164, -72, 195, 103], [-112, -112, 143, 143], [-76, -168, 107, 199]],
    4: [[-332, -152, 395, 215], [-224, -224, 287, 287], [-148, -328, 211, 391]],
}


def golden(shared: Path, name: str) -> Shapes:
    rows = json.loads((shared / "reference" / "golden" / f"keys_{name}.json").read_text())["state_dict"]
    return {row[0]: tuple(row[1]) for row in rows}


def published(name: str, classes: int = 80) -> Shapes:
    """The shapes of a recipe's detector under the reference's names, with its anchors."""
    model = load_recipe(name, [f"model.num_classes={classes}"]).model
    detector = empty_detector(model)
    ours = detector.state_dict()
    shapes = {t: tuple(ours[o].shape) for t, o in published_detector_keys(detector, model.backbone).items()}
    return shapes | dict.fromkeys(ANCHORS, (3, 4))


@pytest.mark.parametrize(("name", "recipe"), GOLDEN.items())
def test_every_golden_key_is_mapped_once_or_ignored(shared: Path, name: str, recipe: str) -> None:
    shapes = golden(shared, name)
    found = infer_detector(shapes)
    assert found.recipe == recipe
    assert found.model == load_recipe(recipe, ["model.num_classes=80"]).model
    assert list(found.ignored) == ANCHORS
    assert set(found.names) | set(found.ignored) == set(shapes)
    ours = empty_detector(found.model).state_dict()
    assert sorted(found.names.values()) == sorted(ours)
    assert {found.names[key]: shapes[key] for key in found.names} == {k: tuple(v.shape) for k, v in ours.items()}


@pytest.mark.parametrize("name", LEGACY)
def test_every_recipes_detector_is_told_apart(name: str) -> None:
    model = load_recipe(name, ["model.num_classes=7"]).model
    shapes = published(name, classes=7)
    found = infer_detector(shapes)
    assert found.model == model
    assert found.recipe == name.replace("_1x", "_2x")
    assert sorted(found.names.values()) == sorted(empty_detector(model).state_dict())


def test_group_norm_has_the_references_names() -> None:
    shapes = published("scratch_mask_rcnn_V_39_FPN_3x_gn")
    names = infer_detector(shapes).names
    body, box, mask = "backbone.body", "roi_heads.box.feature_extractor", "roi_heads.mask.feature_extractor"
    pairs = {
        f"{body}.stem.stem_1/norm.weight": f"{body}.stem_0.bn.weight",
        f"{body}.stage4.OSA4_2.concat.OSA4_2_concat/norm.bias": f"{body}.stages_2.blocks.1.conv_concat.bn.bias",
        "backbone.fpn.fpn_inner1.0.weight": "backbone.fpn.inner_blocks.0.0.weight",
        "backbone.fpn.fpn_layer4.1.bias": "backbone.fpn.layer_blocks.3.1.bias",
        f"{box}.xconvs.0.weight": "roi_heads.box_head.0.0.weight",
        f"{box}.xconvs.1.bias": "roi_heads.box_head.0.1.bias",
        f"{box}.xconvs.9.weight": "roi_heads.box_head.3.0.weight",
        f"{box}.xconvs.10.weight": "roi_heads.box_head.3.1.weight",
        f"{box}.fc6.weight": "roi_heads.box_head.5.weight",
        f"{mask}.mask_fcn1.0.weight": "roi_heads.mask_head.0.0.weight",
        f"{mask}.mask_fcn4.1.weight": "roi_heads.mask_head.3.1.weight",
        "roi_heads.mask.predictor.conv5_mask.bias": "roi_heads.mask_predictor.conv5_mask.bias",
    }
    assert {key: names.get(key) for key in pairs} == pairs
    assert not [key for key in names if "running" in key or key.endswith(("xconvs.0.bias", "inner1.0.bias"))]


def test_a_slim_body_is_told_though_no_recipe_ships() -> None:
    model = load_recipe("faster_rcnn_V_39_FPN_2x", ["model.num_classes=80", "model.backbone=vovnet27_slim"]).model
    detector = empty_detector(model)
    names, ours = published_detector_keys(detector, "vovnet27_slim"), detector.state_dict()
    found = infer_detector({theirs: tuple(ours[key].shape) for theirs, key in names.items()})
    assert (found.title, found.recipe, found.model) == ("Faster R-CNN V-27-slim-FPN", None, model)


def test_missing_left_over_and_reshaped_keys_are_all_listed() -> None:
    shapes = published("mask_rcnn_V_39_FPN_2x")
    del shapes["rpn.head.conv.bias"], shapes["backbone.body.stage5.OSA5_2.concat.OSA5_2_concat/norm.bias"]
    shapes["roi_heads.box.feature_extractor.fc7.weight"] = (1024, 512)
    shapes |= {"roi_heads.keypoint.extra": (1,), "head.num_batches_tracked": ()}
    with pytest.raises(InputError) as error:
        infer_detector(shapes)
    message = str(error.value)
    assert "Mask R-CNN V-39-FPN" in message
    assert "missing: backbone.body.stage5.OSA5_2.concat.OSA5_2_concat/norm.bias, rpn.head.conv.bias;" in message
    assert "left over: roi_heads.keypoint.extra, head.num_batches_tracked;" in message
    assert "fc7.weight is (1024, 512) and should be (1024, 1024))" in message
    assert "\n" not in message


def test_counters_of_known_norms_are_ignored() -> None:
    shapes = published("faster_rcnn_R_50_FPN_2x")
    shapes["backbone.body.layer1.0.bn1.num_batches_tracked"] = ()
    found = infer_detector(shapes)
    assert set(found.ignored) == {*ANCHORS, "backbone.body.layer1.0.bn1.num_batches_tracked"}


def test_anchors_come_all_or_not_at_all() -> None:
    shapes = published("faster_rcnn_R_50_FPN_2x")
    assert not infer_detector({key: shape for key, shape in shapes.items() if key not in ANCHORS}).ignored
    with pytest.raises(InputError, match=r"left over: rpn\.anchor_generator\.cell_anchors\.0"):
        infer_detector({key: shape for key, shape in shapes.items() if key != ANCHORS[4]})
    with pytest.raises(InputError, match=r"cell_anchors\.5"):
        infer_detector(shapes | {"rpn.anchor_generator.cell_anchors.5": (3, 4)})
    with pytest.raises(InputError, match=r"cell_anchors\.2"):
        infer_detector(shapes | {ANCHORS[2]: (9, 4)})


def test_only_the_published_anchors_pass() -> None:
    tensors = {ANCHORS[level]: torch.tensor(cells, dtype=torch.float32) for level, cells in CELLS.items()}
    check_cell_anchors(tensors)
    check_cell_anchors({"something.else": torch.zeros(3)})
    tensors[ANCHORS[3]] = tensors[ANCHORS[3]] + torch.tensor([0, 0, 0, 1])
    with pytest.raises(InputError, match=r"cell_anchors\.3 is .* expected the published anchors"):
        check_cell_anchors(tensors)


@pytest.mark.parametrize("shape", [(), (1, 1024), (81,), (10**9, 1024)])
def test_a_classifier_of_an_odd_shape(shape: tuple[int, ...]) -> None:
    shapes = published("faster_rcnn_V_39_FPN_2x")
    shapes["roi_heads.box.predictor.cls_score.weight"] = shape
    with pytest.raises(InputError, match=r"cls_score\.weight is"):
        infer_detector(shapes)


def test_without_a_classifier_it_is_listed_as_missing() -> None:
    shapes = published("faster_rcnn_V_39_FPN_2x")
    del shapes["roi_heads.box.predictor.cls_score.weight"]
    with pytest.raises(InputError, match=r"missing: roi_heads\.box\.predictor\.cls_score\.weight\)"):
        infer_detector(shapes)
