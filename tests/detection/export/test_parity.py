"""An exported detector is compared with its detector, in the file's own runtime; what differs is found."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_networks
import torch
from PIL import Image

from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.export import DetectorParity, check_exported, detector_parity, export_detector
from vovnet.detection.prediction.predictor import predict
from vovnet.errors import InputError
from vovnet.export.checking import CheckOptions
from vovnet.results.comparison import Agreement

SIZE = (96, 128)
NAMES = ("images/a.png", "images/b.png")


@pytest.fixture(scope="module")
def detector() -> Any:
    made: Any = small_networks.detector(mask_head_convs="1", mask_head_channels="16")
    made.categories = [{"id": 10 * label, "name": f"kind {label}"} for label in range(1, 5)]
    made.recipe = ModelRecipe(detector="mask_rcnn", num_classes=4)
    made.preprocessing = {}
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, detector: Any) -> Path:
    """Two images, their annotations (half of what the detector finds), and the detector as a file."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "images").mkdir()
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": detector.categories}
    for number, name in enumerate(NAMES):
        pixels = np.random.default_rng(number).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        truth["images"].append({"id": number + 5, "file_name": Path(name).name, "height": SIZE[0], "width": SIZE[1]})
        found = predict(detector, [torch.from_numpy(pixels).permute(2, 0, 1)])[0]
        for one in found[::2]:
            entry = {key: one[key] for key in ("bbox", "category_id", "segmentation")}
            entry |= {"id": len(truth["annotations"]) + 1, "image_id": number + 5, "iscrowd": 0}
            truth["annotations"].append(entry | {"area": one["bbox"][2] * one["bbox"][3]})
    (folder / "truth.json").write_text(json.dumps(truth))
    export_detector(detector, folder / "model.torchscript", "torchscript", size=SIZE)
    return folder


def test_a_file_agrees_with_its_detector(detector: Any, folder: Path) -> None:
    parity = detector_parity(detector, folder / "model.torchscript", folder / "images", folder / "truth.json")
    assert parity.images == 2
    assert parity.agreement.count == parity.agreement.eager_count > 10
    assert set(parity.accuracy) == {"bbox", "segm"}
    assert all(0.2 < before < 1 for before, _ in parity.accuracy.values())
    # Pasting truncates boxes to whole pixels, so the last bit of a coordinate, which depends on the processor, can move
    # a small mask by a pixel.
    assert parity.agreement.mask_iou is not None
    assert parity.agreement.mask_iou > 0.9
    dataclasses.replace(
        parity,
        agreement=dataclasses.replace(parity.agreement, mask_iou=1.0),
        accuracy={"bbox": parity.accuracy["bbox"]},
    ).require(0)
    assert "box AP" in parity.table()
    without = detector_parity(detector, folder / "model.torchscript", folder / "images")
    assert without.agreement == parity.agreement
    assert not without.accuracy


def test_another_detector_is_told_from_it(detector: Any, folder: Path) -> None:
    other = copy.deepcopy(detector)
    with torch.no_grad():
        other.roi_heads.box_predictor.cls_score.bias[0] += 0.1
    lines: list[str] = []
    file = folder / "model.torchscript"
    with pytest.raises(InputError, match="scores differ"):
        check_exported(other, file, CheckOptions(folder / "images"), lines.append)
    assert "model.torchscript" in lines[0]
    check_exported(other, file, CheckOptions(folder / "images", force=True), lines.append)


def test_without_images_other_precisions_are_said_to_be_unmeasured(detector: Any, tmp_path: Path) -> None:
    lines: list[str] = []
    for precision in ("fp32", "bf16"):
        file = tmp_path / f"{precision}.torchscript"
        export_detector(detector, file, "torchscript", size=SIZE, masks=None, precision=precision)
        check_exported(detector, file, CheckOptions(), lines.append)
    (line,) = lines
    assert "not measured" in line


def keypoint_detector() -> Any:
    sizes = {"num_keypoints": "5", "keypoint_head_convs": "1", "keypoint_head_channels": "16", "num_classes": "1"}
    made: Any = small_networks.detector("keypoint_rcnn_vovnet39_fpn", **sizes)
    made.categories = [{"id": 3, "name": "hand", "keypoints": list("abcde")}]
    made.recipe = ModelRecipe(detector="keypoint_rcnn", num_classes=1, num_keypoints=5, keypoint_sigmas=[0.1] * 5)
    made.preprocessing = {}
    return made


def test_keypoints_are_compared(folder: Path, tmp_path: Path) -> None:
    made, file = keypoint_detector(), tmp_path / "points.torchscript"
    export_detector(made, file, "torchscript", size=SIZE)
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": made.categories}
    for number, name in enumerate(NAMES, 1):
        truth["images"].append({"id": number, "file_name": Path(name).name, "height": SIZE[0], "width": SIZE[1]})
        pixels = np.array(Image.open(folder / name))
        for one in predict(made, [torch.from_numpy(pixels).permute(2, 0, 1)])[0][::2]:
            points = np.array(one["keypoints"]).reshape(5, 3)
            points[:, 2] = 2
            entry = {"id": len(truth["annotations"]) + 1, "image_id": number, "category_id": 3, "bbox": one["bbox"]}
            entry |= {"keypoints": points.ravel().tolist(), "num_keypoints": 5, "iscrowd": 0}
            truth["annotations"].append(entry | {"area": one["bbox"][2] * one["bbox"][3]})
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    parity = detector_parity(made, file, folder / "images", tmp_path / "truth.json")
    assert parity.agreement.keypoints == 5 * parity.agreement.count > 50
    assert parity.agreement.far_keypoints <= 0.01 * parity.agreement.keypoints
    assert set(parity.accuracy) == {"bbox", "keypoints"}
    before, after = parity.accuracy["keypoints"]
    assert before == pytest.approx(after, abs=0.01)
    assert 0.2 < before < 1
    assert "keypoint AP" in parity.table()
    with torch.no_grad():  # other keypoints in the same boxes
        made.roi_heads.keypoint_predictor.kps_score_lowres.weight.neg_()
    with pytest.raises(InputError, match=r"keypoints are off.*keypoint AP") as refused:
        check_exported(made, file, CheckOptions(folder / "images", tmp_path / "truth.json"), lambda line: None)
    assert "box" not in str(refused.value)


EQUAL = Agreement(20, 20, 0, 0.01, 1e-5, 0.995, 340, 3)
GOOD = DetectorParity(Path("model.onnx"), "fp32", 3, EQUAL, {"bbox": (0.51234, 0.51233), "segm": (0.4, 0.4)})


def test_the_table_has_every_number() -> None:
    rows = [line.split() for line in GOOD.table().splitlines()]
    assert rows[0] == ["detector", "model.onnx", "largest"]
    assert ["images", "3", "3"] in rows
    assert ["detections", "above", "0.05", "20", "20"] in rows
    assert ["least", "mask", "IoU", "0.9950", "0.99", "(least)"] in rows
    assert ["keypoints", "of", "340", "that", "are", "off", "by", "a", "pixel", "3", "1%"] in rows
    assert ["box", "AP", "in", "%", "51.23", "51.23", "51.23", "(both)"] in rows


@pytest.mark.parametrize(
    ("changes", "accuracy", "named"),
    [
        ({"unmatched": 1}, {}, "counterpart"),
        ({"box_distance": 0.06}, {}, "boxes"),
        ({"score_distance": 2e-4}, {}, "scores"),
        ({"mask_iou": 0.98}, {}, "masks"),
        ({"far_keypoints": 4}, {}, "keypoints"),
        ({}, {"keypoints": (0.5123, 0.5122)}, "keypoint AP"),
        ({}, {"bbox": (0.5123, 0.5122)}, "box AP"),
    ],
)
def test_fp32_must_agree(changes: dict[str, Any], accuracy: dict[str, tuple[float, float]], named: str) -> None:
    found = dataclasses.replace(GOOD, agreement=dataclasses.replace(EQUAL, **changes), accuracy=accuracy)
    with pytest.raises(InputError, match=named):
        found.require(1)


def test_other_precisions_may_lose_a_little_accuracy() -> None:
    far = dataclasses.replace(EQUAL, unmatched=9, box_distance=3.0)
    found = dataclasses.replace(GOOD, precision="int8", agreement=far, accuracy={"segm": (0.4, 0.385)})
    found.require(0.02)
    with pytest.raises(InputError, match=r"mask AP falls from 40\.00 to 38\.50 %"):
        found.require(0.01)
