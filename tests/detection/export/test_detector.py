"""An exported file in the place of its detector: called, evaluated, predicted with."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from exported_files import CLASSIFIER, changed, write_onnx
from small_networks import MODEL, detector
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from vovnet.detection import evaluate, load_recipe, predict
from vovnet.detection.checkpoints.folder import load_detector, save_detector
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.data.synthetic import CATEGORIES, generate_shapes
from vovnet.detection.evaluation.sources import evaluation_dataset, evaluation_sources
from vovnet.detection.export import ExportedDetector, export_detector, exported_detector
from vovnet.detection.export.exporter import exportable_detector
from vovnet.detection.masks import detect
from vovnet.errors import InputError
from vovnet.fusion import fuse
from vovnet.results.limits import LimitWarning

pytest.importorskip("onnxruntime")
ROOT = Path(__file__).parents[3]
RECIPES = {"torchvision": "mask_rcnn_vovnet39_fpn", "legacy": "mask_rcnn_V_39_FPN_1x"}


Outputs = dict[str, Tensor]


@pytest.fixture(scope="module", params=RECIPES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ExportedDetector]:
    """What computes the outputs of an exported file for an image (3, H, W), without the file, and the file."""
    folder = tmp_path_factory.mktemp("pair")
    recipe = RECIPES[request.param]
    overrides = [f"model.{key}={value}" for key, value in (MODEL | {"num_classes": "3"}).items()]
    model = load_recipe(recipe, overrides).model
    save_detector(folder / "run", detector(recipe, num_classes="3"), model, CATEGORIES)
    made = load_detector(folder / "run")
    exportable = exportable_detector(made)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = export_detector(made, folder / "d.torchscript", "torchscript")

    def outputs(image: Tensor) -> Outputs:
        with torch.no_grad():
            found = dict(zip(exportable.output_names, exportable.module((image * 255).round().byte()), strict=True))
        return {name: values[: int(found["count"])] for name, values in found.items() if name != "count"}

    return outputs, exported_detector(file)


def images() -> list[Tensor]:
    seed = torch.Generator().manual_seed(3)
    return [torch.randint(0, 256, (3, *size), generator=seed) / 255 for size in ((70, 90), (64, 150))]


def test_it_is_called_as_a_detector_is(pair: tuple[Any, ExportedDetector]) -> None:
    outputs, exported = pair
    assert exported.categories == CATEGORIES
    assert exported.recipe.detector == "mask_rcnn"
    for image, one, small in zip(images(), exported(images()), detect(exported, images()), strict=True):
        expected = outputs(image)
        assert set(one) == {"boxes", "labels", "scores", "masks"}
        assert len(one["boxes"]) > 0
        for name in ("boxes", "labels", "scores"):
            assert torch.allclose(one[name], expected[name], atol=1e-3), name
        whole = paste_masks_in_image(expected["masks"][:, None], one["boxes"], tuple(image.shape[1:]))
        assert torch.allclose(one["masks"], whole, atol=1e-3)
        assert set(small) == {"boxes", "labels", "scores", "box_masks"}
        assert torch.allclose(small["box_masks"], expected["masks"][:, None], atol=1e-3)


def xywh(exported: ExportedDetector, boxes: Tensor) -> Any:
    more = 1 if exported.exported.metadata.box_format == "xyxy_inclusive" else 0
    return torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2] + more), dim=1).tolist()


def test_it_is_evaluated_as_a_detector_is(pair: tuple[Any, ExportedDetector], tmp_path: Path) -> None:
    outputs, exported = pair
    data = generate_shapes(tmp_path / "data", train=1, val=2, size=(96, 96))["val"]
    dataset = evaluation_dataset(exported, evaluation_sources(None, data.images, data.annotations))
    with pytest.warns(LimitWarning, match="limit of 30 detections"):
        metrics = evaluate(exported, dataset, tmp_path / "out")
    assert set(metrics) > {"bbox", "segm", "per_class"}
    found = json.loads((tmp_path / "out" / "results_bbox.json").read_text())
    expected = []
    for index in range(len(dataset)):
        image, target = dataset[index]
        one = outputs(image / 255)
        for box, score, label in zip(xywh(exported, one["boxes"]), one["scores"], one["labels"], strict=True):
            expected.append((target["image_id"], int(label), float(score), box))
    assert len(found) == len(expected) > 0
    for result, (image_id, label, score, box) in zip(found, sorted(expected, key=lambda one: one[0]), strict=True):
        assert (result["image_id"], result["category_id"]) == (image_id, label)
        assert result["score"] == pytest.approx(score, abs=1e-4)
        assert result["bbox"] == pytest.approx(box, abs=1e-2)


@pytest.mark.filterwarnings("ignore::vovnet.results.limits.LimitWarning")
def test_it_predicts_as_a_detector_does(pair: tuple[Any, ExportedDetector]) -> None:
    outputs, exported = pair
    image = images()[0]
    (found,) = predict(exported, [image])
    expected = outputs(image)
    assert [one["score"] for one in found] == pytest.approx(expected["scores"].tolist(), abs=1e-4)
    assert {one["category"] for one in found} <= {one["name"] for one in CATEGORIES}
    assert all(one["segmentation"]["size"] == [70, 90] for one in found)


def with_recipe(**values: Any) -> Any:
    return changed(
        model=dataclasses.asdict(ModelRecipe(detector="mask_rcnn", backbone="vovnet39", num_classes=2)), **values
    )


def test_files_of_other_forms(tmp_path: Path) -> None:
    image = torch.full((3, 30, 50), 51 / 255)
    image[:, :, :20] = 1
    for values in ({"masks": "image", "dtype": "float32"}, {"masks": None, "size": (30, 50)}):
        found = exported_detector(write_onnx(tmp_path / "d.onnx", with_recipe(**values)))([image, image])
        assert [one["labels"].tolist() for one in found] == [[2, 1]] * 2
        assert found[0]["scores"][0] == pytest.approx(float(image.mean()), abs=1e-5)
        if values["masks"]:
            assert torch.equal(found[0]["masks"][0, 0] > 0.5, image[0] > 0.5)
        else:
            assert "masks" not in found[0]


def test_what_is_no_detector(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="classifier"):
        exported_detector(write_onnx(tmp_path / "c.onnx", CLASSIFIER))
    with pytest.raises(InputError, match="backbone"):
        exported_detector(write_onnx(tmp_path / "d.onnx", changed(model={"backbone": 3})))


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    fixed = exported_detector(write_onnx(tmp_path / "d.onnx", with_recipe(size=(30, 50))))
    with pytest.raises(InputError, match="image"):
        fixed([torch.zeros(3, 31, 50)])


def test_the_command(tmp_path: Path) -> None:
    data = generate_shapes(tmp_path / "data", train=1, val=2, size=(96, 96))["val"]
    categories: Any = CATEGORIES
    file = write_onnx(tmp_path / "d.onnx", with_recipe(categories=categories, masks="box"))
    start = [sys.executable, "-m", "vovnet.cli", "evaluate", "--weights", str(file)]
    start += ["--images", data.images, "--annotations", data.annotations, "--output", str(tmp_path / "out")]
    done = subprocess.run(start, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert set(json.loads((tmp_path / "out" / "metrics.json").read_text())) > {"bbox", "segm", "per_class"}
    assert len(json.loads((tmp_path / "out" / "results_bbox.json").read_text())) == 2 * 2


def test_a_fused_copy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="detector: a fused copy"):
        export_detector(fuse(detector()), tmp_path / "d.torchscript", "torchscript")
    assert not list(tmp_path.iterdir())
