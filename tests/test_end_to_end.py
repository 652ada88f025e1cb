"""The whole way on generated and real data: the quickstart, COCO's images and the blood cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support import command

from vovnet.detection import load_recipe
from vovnet.detection.checkpoints.folder import save_detector
from vovnet.detection.data.synthetic import generate_shapes
from vovnet.detection.models.build import build_detector

TWELVE = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
RUN_FILES = ("recipe.yaml", "metrics.jsonl", "last.pt", "best.pt", "model.safetensors", "config.json", "curves.png")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quickstart_learns_shapes(tmp_path: Path) -> None:
    run = tmp_path / "quickstart"
    done = command("quickstart", "--output", run)
    assert done.code == 0, done.err
    printed = done.out
    assert read(run / "metrics.json")["bbox"]["AP50"] >= 0.80
    for name in (*RUN_FILES, "predictions.png"):
        assert (run / name).stat().st_size > 0, name
    with Image.open(run / "predictions.png") as drawing:
        drawing.load()
        assert min(drawing.size) >= 300
    for name in ("predictions.png", "curves.png", "model.safetensors"):
        assert str(run / name) in printed or str(run) in printed
    # What is left is a detector that predicts.
    image = next((run / "data" / "val").iterdir())
    done = command("predict", image, "--weights", run, "--output", tmp_path / "out")
    assert done.code == 0, done.err
    assert read(tmp_path / "out" / f"{image.stem}.json")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which docs/reference/detectors.md generates shapes."""
    folder = tmp_path_factory.mktemp("work")
    generate_shapes(folder / "shapes", train=400, val=60, size=(128, 128), max_shapes=3, keypoints=True)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("arguments", "goals"),
    [
        (("quickstart", "model.detector=faster_rcnn"), {"bbox": 0.80}),
        (("shapes_retinanet",), {"bbox": 0.80}),
        (("shapes_fcos",), {"bbox": 0.80}),
        (("shapes_keypoints",), {"bbox": 0.80, "keypoints": 0.70}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_every_kind_of_detector_learns_shapes(
    shapes: Path, tmp_path: Path, arguments: tuple[str, ...], goals: dict[str, float]
) -> None:
    sources = [
        f"data.{split}=[{{images: '{shapes}/shapes/{split}', "
        f"annotations: '{shapes}/shapes/annotations/instances_{split}.json'}}]"
        for split in ("train", "val")
    ]
    done = command("train", *arguments, *sources, "--device", "cpu", "--output", tmp_path / "run")
    assert done.code == 0, done.err
    best = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    names = {"bbox": "box_ap50", "keypoints": "keypoint_ap50"}
    for kind, goal in goals.items():
        assert max(line.get(names[kind], 0) for line in best) >= goal


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_mask_rcnn_learns_eight_real_images_by_heart(shared: Path, tmp_path: Path) -> None:
    coco = shared / "data" / "coco_tiny_cc"
    content = read(coco / "annotations" / "instances_train2017.json")
    with_objects = {entry["image_id"] for entry in content["annotations"] if not entry["iscrowd"]}
    content["images"] = [image for image in content["images"] if image["id"] in with_objects][:8]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in kept]
    assert len(kept) == 8
    (tmp_path / "eight.json").write_text(json.dumps(content))
    source = f"[{{images: '{coco / 'train2017'}', annotations: '{tmp_path / 'eight.json'}'}}]"
    run, output = tmp_path / "run", tmp_path / "out"
    done = command("train", "coco_tiny", f"data.train={source}", f"data.val={source}", "--output", run)
    assert done.code == 0, done.err
    data = ("--images", coco / "train2017", "--annotations", tmp_path / "eight.json")
    done = command("evaluate", "--weights", run, *data, "--output", output)
    assert done.code == 0, done.err
    metrics = read(output / "metrics.json")
    assert metrics["bbox"]["AP"] >= 0.6
    assert metrics["segm"]["AP"] >= 0.5


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_blood_cells_are_found(shared: Path, tmp_path: Path) -> None:
    cells = shared / "data" / "bccd"
    sources = {
        split: f"[{{images: '{cells / 'images'}', annotations: '{cells}/annotations/instances_{split}.json'}}]"
        for split in ("train", "val")
    }
    run, output = tmp_path / "run", tmp_path / "out"
    settings = (f"data.{split}={source}" for split, source in sources.items())
    done = command("train", "bccd", *settings, "--output", run)
    assert done.code == 0, done.err
    data = ("--images", cells / "images", "--annotations", cells / "annotations" / "instances_val.json")
    done = command("evaluate", "--weights", run, *data, "--output", output)
    assert done.code == 0, done.err
    assert read(output / "metrics.json")["bbox"]["AP50"] >= 0.90


def test_coco_is_evaluated_with_all_its_oddities(shared: Path, tmp_path: Path) -> None:
    """A random detector finds next to nothing, but polygons, crowds and empty images go the whole way."""
    coco = shared / "data" / "coco_tiny_cc"
    annotations = coco / "annotations" / "instances_val2017.json"
    truth = read(annotations)
    small = ["model.min_size=64", "model.max_size=96", "model.fpn_channels=16", "model.box_representation_size=32"]
    small += ["model.rpn_post_nms_top_n_test=20", "model.box_score_thresh=0.001", "model.num_classes=80"]
    small += ["model.mask_head_convs=1", "model.mask_head_channels=16", "model.box_detections_per_img=10"]
    recipe = load_recipe("coco_tiny", small).model
    torch.manual_seed(0)
    save_detector(tmp_path / "detector", build_detector(recipe), recipe, truth["categories"])
    data = ("--images", coco / "val2017", "--annotations", annotations, "--workers", 0)
    done = command("evaluate", "--weights", tmp_path / "detector", *data, "--output", tmp_path / "out")
    assert done.code == 0, done.err
    printed = done.out
    metrics = read(tmp_path / "out" / "metrics.json")
    for kind in ("bbox", "segm"):
        assert set(TWELVE) <= set(metrics[kind])
        assert all(0 <= metrics[kind][name] <= 1 for name in TWELVE)
    images = {image["id"] for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    for kind in ("bbox", "segm"):
        results = read(tmp_path / "out" / f"results_{kind}.json")
        assert {entry["image_id"] for entry in results} == images
        assert {entry["category_id"] for entry in results} <= categories
    assert "person" in printed


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_coco_passes_the_check_of_its_data(split: str, shared: Path) -> None:
    """Real data are never perfect; but every image is there, decodes and has its size, and crowds are sound."""
    coco = shared / "data" / "coco_tiny_cc"
    annotations = coco / "annotations" / f"instances_{split}.json"
    done = command("check-data", "--images", coco / split, "--annotations", annotations)
    assert done.code in (0, 1), done.err
    printed = done.out
    content = read(annotations)
    assert str(len(content["images"])) in printed
    assert str(len(content["annotations"])) in printed
    assert f"{sum(entry['iscrowd'] for entry in content['annotations'])} crowds" in printed
    for problem in ("missing image", "unreadable", "RLE", "width and height", "unknown", "not listed"):
        assert problem not in printed
