"""Bad input, item by item: one clear line on stderr, an exit code, nothing lost and nothing half-written."""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from support import Outcome, command, contents

from vovnet.detection.checkpoints.folder import save_detector
from vovnet.detection.config.loading import load_recipe
from vovnet.detection.models.build import build_detector

CATEGORIES = [{"id": 7, "name": "square"}, {"id": 90, "name": "bar"}]

RECIPE = """
model:
  backbone: vovnet27_slim
  fpn_channels: 8
  min_size: 64
  max_size: 64
  box_representation_size: 16
  box_score_thresh: 0.001
  box_detections_per_img: 10
  box_batch_size_per_image: 8
  rpn_pre_nms_top_n_train: 50
  rpn_post_nms_top_n_train: 20
  rpn_pre_nms_top_n_test: 50
  rpn_post_nms_top_n_test: 20
data:
  train: [{{images: '{root}/images', annotations: '{root}/instances.json'}}]
  val: [{{images: '{root}/images', annotations: '{root}/instances.json'}}]
  train_min_sizes: [64]
  train_max_size: 64
  workers: 0
solver:
  base_lr: 0.001
  batch_size: 2
  reference_batch_size: 2
  max_iterations: 2
  steps: []
  warmup_iterations: 1
log: {{log_every: 1, evaluate_every: 0, checkpoint_every: 100}}
"""


def write_data(root: Path, size: tuple[int, int] = (64, 64), count: int = 4) -> Path:
    """Squares and bars in ``root/images`` and ``root/instances.json``, and the recipe ``root/tiny.yaml``."""
    (root / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    width, height = size
    for number in range(count):
        drawn = Image.new("RGB", size, (30, 40 * number, 60))
        image = {"id": 500 + number, "file_name": f"image{number}.png", "width": width, "height": height}
        boxes = {7: [0, 0, width, height]} if min(size) < 8 else {7: [3, 3, 40, 40], 90: [4, 48, 50, 9]}
        for category, (x, y, w, h) in boxes.items():
            ImageDraw.Draw(drawn).rectangle((x, y, x + w - 1, y + h - 1), fill=(220, 2 * category, 40))
            annotation = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": category}
            annotations.append({**annotation, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0})
        drawn.save(root / "images" / str(image["file_name"]))
        images.append(image)
    write_instances(root, images=images, annotations=annotations, categories=CATEGORIES)
    (root / "tiny.yaml").write_text(RECIPE.format(root=root))
    return root


def write_instances(root: Path, **content: Any) -> None:
    (root / "instances.json").write_text(json.dumps(content))


def change_instances(root: Path, **changes: Any) -> None:
    write_instances(root, **{**json.loads((root / "instances.json").read_text()), **changes})


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("workplace") / "data")


@pytest.fixture(scope="module")
def finished(workplace: Path) -> Path:
    """A short run; tests work on copies of it."""
    outcome = command("train", workplace / "tiny.yaml", "--output", workplace / "run")
    assert outcome.code == 0, outcome.err
    return workplace / "run"


@pytest.fixture(scope="module")
def detector(workplace: Path) -> Path:
    """A detector folder with random weights, which finds something on any image."""
    torch.manual_seed(0)
    recipe = load_recipe(workplace / "tiny.yaml", ["model.num_classes=2"])
    save_detector(workplace / "detector", build_detector(recipe.model).eval(), recipe.model, CATEGORIES)
    return workplace / "detector"


@pytest.fixture
def run_copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def detector_copy(detector: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(detector, tmp_path / "detector"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A dataset of this test alone, to spoil."""
    return write_data(tmp_path / "data")


def evaluate(weights: Path, root: Path, output: Path, *more: object) -> Outcome:
    where = ("--images", root / "images", "--annotations", root / "instances.json")
    return command("evaluate", "--weights", weights, *where, "--output", output, "--workers", 0, *more)


def untouched(output: Path) -> bool:
    """Whether a refused command left its output folder absent or empty."""
    return not output.exists() or not any(output.rglob("*"))


# Recipes: unknown recipe or key, wrong type


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bcdd"], ["'bcdd'", "bccd"]),
        (["absent.yaml"], ["absent.yaml"]),
        (["TINY", "solver.base_learning_rate=0.1"], ["solver.base_learning_rate"]),
        (["TINY", "solver.max_iteration=3"], ["solver.max_iteration", "'max_iterations'"]),
        (["TINY", "optimizer.lr=0.1"], ["optimizer"]),
        (["TINY", "solver.max_iterations=many"], ["solver.max_iterations", "many"]),
        (["TINY", "solver.base_lr=[1, 2]"], ["solver.base_lr"]),
        (["TINY", "data.train=5"], ["data.train"]),
        (["TINY", "data.train=[{image: a, annotations: b}]"], ["image"]),
        (["TINY", "solver.base_lr=nan"], ["solver.base_lr"]),
        (["TINY", "solver.batch_size=-2"], ["solver.batch_size", "-2"]),
        (["TINY", "solver.schedule=linear"], ["solver.schedule", "linear", "cosine"]),
        (["TINY", "solver.seed=???"], ["solver.seed"]),
        (["TINY", "model.backbone=vovnet93"], ["vovnet93", "vovnet39"]),
        (["TINY", "model.detector=retina"], ["model.detector", "retina", "mask_rcnn"]),
        (["TINY", "model.norm=batch"], ["norm", "batch"]),
        (["TINY", "model.min_size=${oc.env:HOME}"], ["model.min_size"]),
        (["TINY", "solver.base_lr"], ["solver.base_lr", "key=value"]),
        (["TINY", "solver.base_lr=[1"], ["solver.base_lr"]),
    ],
)
def test_a_recipe_that_cannot_be_used(arguments: list[str], words: list[str], workplace: Path, tmp_path: Path) -> None:
    recipe = workplace / "tiny.yaml" if arguments[0] == "TINY" else arguments[0]
    outcome = command("train", recipe, *arguments[1:], "--output", tmp_path / "run")
    outcome.refused(*words)
    assert untouched(tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("solver: {base_lr: 0.1", "YAML"),
        ("- a\n- b\n", "mapping"),
        ("solver: {base_lr: 0.1}\nsolver: {base_lr: 0.2}\n", "solver"),
        ("solver: 3\n", "solver"),
        ("model: {colour: red}\n", "model.colour"),
    ],
)
def test_a_recipe_file_that_is_no_recipe(text: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    outcome = command("train", tmp_path / "mine.yaml", "--output", tmp_path / "run")
    outcome.refused("mine.yaml", word)
    assert untouched(tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["predict", "a.png", "--weights", "run", "--threshold", "high"], "threshold"),
        (["predict", "a.png", "--weights", "run", "--threshold", "1.5"], "threshold"),
        (["evaluate", "--weights", "run"], "--output"),
        (["train", "bccd", "--outptu", "run"], "--outptu"),
        (["trian", "bccd"], "trian"),
    ],
)
def test_a_command_line_that_is_mistyped(arguments: list[str], word: str) -> None:
    command(*arguments).refused(word)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--transforms", "no_such_module_here:augment"], "no_such_module_here"),
        (["--transforms", "json:loads"], "raised TypeError"),
        (["--show-batch", "sheet.txt"], "--show-batch"),
    ],
)
def test_transforms_and_sheets_that_are_none(arguments: list[str], word: str, workplace: Path, tmp_path: Path) -> None:
    command("train", workplace / "tiny.yaml", "--output", tmp_path / "run", *arguments).refused(word)
    assert untouched(tmp_path / "run")


def test_a_device_that_is_none(workplace: Path, detector: Path, tmp_path: Path) -> None:
    command("train", workplace / "tiny.yaml", "--output", tmp_path / "run", "--device", "gpu").refused("gpu")
    evaluate(detector, workplace, tmp_path / "out", "--device", "gpu").refused("gpu")
    assert untouched(tmp_path / "run")
    assert untouched(tmp_path / "out")


# Missing files and empty datasets


def test_a_missing_annotation_file_or_image_folder(workplace: Path, detector: Path, data: Path, tmp_path: Path) -> None:
    recipe, output = workplace / "tiny.yaml", tmp_path / "run"
    for images, file in (("images", "absent.json"), ("absent", "instances.json")):
        source = f"[{{images: '{data}/{images}', annotations: '{data}/{file}'}}]"
        command("train", recipe, f"data.train={source}", "--output", output).refused(f"{data}/absent")
        command("train", recipe, f"data.val={source}", "--output", output).refused(f"{data}/absent")
        where = ("--images", data / images, "--annotations", data / file)
        command("evaluate", "--weights", detector, *where, "--output", output).refused(data / "absent")
        command("check-data", *where).refused(data / "absent")
    assert untouched(output)


def test_missing_images(finished: Path, detector: Path, data: Path, tmp_path: Path) -> None:
    (data / "images" / "image2.png").unlink()
    evaluate(detector, data, tmp_path / "out").refused("image2.png")
    assert untouched(tmp_path / "out")
    command("predict", data / "images" / "image2.png", "--weights", detector, "--output", tmp_path / "out").refused(
        "image2.png"
    )
    assert untouched(tmp_path / "out")
    # Training leaves it out and says so.
    trained = command("train", data / "tiny.yaml", "data.val=[]", "--output", tmp_path / "run")
    assert trained.code == 0, trained.err
    assert "1 of 4 images" in trained.err + trained.out


def test_missing_weights(data: Path, tmp_path: Path) -> None:
    image_path, absent = data / "images" / "image0.png", tmp_path / "absent"
    command("predict", image_path, "--weights", absent, "--output", tmp_path / "out").refused(absent)
    evaluate(absent, data, tmp_path / "out").refused(absent)
    command("train", data / "tiny.yaml", f"init={absent}", "--output", tmp_path / "out").refused(absent)
    (tmp_path / "empty").mkdir()
    command("predict", image_path, "--weights", tmp_path / "empty", "--output", tmp_path / "out").refused(
        tmp_path / "empty", "config.json"
    )
    command("train", data / "tiny.yaml", "--resume", "--output", tmp_path / "empty").refused("last.pt", "--resume")
    assert untouched(tmp_path / "out")
    assert untouched(tmp_path / "empty")


@pytest.mark.parametrize("empty", ["images", "annotations", "categories"])
def test_an_empty_dataset(empty: str, workplace: Path, detector: Path, data: Path, tmp_path: Path) -> None:
    change_instances(data, **{empty: []})
    command("train", data / "tiny.yaml", "--output", tmp_path / "run").refused(data / "instances.json")
    assert untouched(tmp_path / "run")
    evaluate(detector, data, tmp_path / "out").refused(data / "instances.json")
    assert untouched(tmp_path / "out")


def test_no_images_at_all(detector: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    command("predict", "--folder", tmp_path / "nothing", "--weights", detector, "--output", tmp_path / "out").refused(
        tmp_path / "nothing"
    )
    assert untouched(tmp_path / "out")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"images": []}', '{"images": 1, "annotations": 2, "categories": 3}', "\x00"]
)
def test_annotations_that_are_not_coco_json(text: str, detector: Path, data: Path, tmp_path: Path) -> None:
    (data / "instances.json").write_text(text)
    command("train", data / "tiny.yaml", "--output", tmp_path / "run").refused(data / "instances.json")
    evaluate(detector, data, tmp_path / "out").refused(data / "instances.json")
    command("check-data", "--images", data / "images", "--annotations", data / "instances.json").refused(
        data / "instances.json"
    )
    assert untouched(tmp_path / "run")
    assert untouched(tmp_path / "out")


def test_file_names_that_leave_the_folder_of_images(detector: Path, data: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (64, 64)).save(secret)
    images = json.loads((data / "instances.json").read_text())["images"]
    for name in ("../../secret.png", str(secret)):
        images[0]["file_name"] = name
        change_instances(data, images=images)
        evaluate(detector, data, tmp_path / "out").refused("secret.png")
        checked = command("check-data", "--images", data / "images", "--annotations", data / "instances.json")
        assert checked.code == 1
        assert "leaves the folder" in checked.out
    assert untouched(tmp_path / "out")


# Categories and checkpoints


@pytest.mark.parametrize(
    ("categories", "word"),
    [
        ([{"id": 7, "name": "square"}, {"id": 90, "name": "circle"}], "circle"),
        ([{"id": 7, "name": "square"}, {"id": 90, "name": "bar"}, {"id": 91, "name": "cone"}], "cone"),
        ([{"id": 90, "name": "square"}, {"id": 7, "name": "bar"}], "square"),
    ],
)
def test_categories_that_are_not_the_detectors(
    categories: list[dict[str, Any]], word: str, detector: Path, data: Path, tmp_path: Path
) -> None:
    change_instances(data, categories=categories)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.json").write_text("of yesterday")
    evaluate(detector, data, tmp_path / "out", "--overwrite").refused("categories", word)
    assert contents(tmp_path / "out") == {"metrics.json": b"of yesterday"}


def test_weights_of_another_model(detector_copy: Path, workplace: Path, data: Path, tmp_path: Path) -> None:
    other = load_recipe(workplace / "tiny.yaml", ["model.num_classes=2", "model.fpn_channels=16"]).model
    save_detector(tmp_path / "other", build_detector(other), other, CATEGORIES)
    shutil.copy(tmp_path / "other" / "model.safetensors", detector_copy)
    image_path, output = data / "images" / "image0.png", tmp_path / "out"
    weights = detector_copy / "model.safetensors"
    command("predict", image_path, "--weights", detector_copy, "--output", output).refused(weights, "another model")
    evaluate(detector_copy, data, output).refused(weights, "another model")
    command("train", data / "tiny.yaml", f"init={detector_copy}", "--output", output).refused(weights, "another model")
    assert untouched(output)


def test_resuming_the_run_of_another_model(run_copy: Path, workplace: Path) -> None:
    before = contents(run_copy)
    for change in ("model.fpn_channels=16", "model.backbone=vovnet39", "model.detector=mask_rcnn"):
        outcome = command("train", workplace / "tiny.yaml", change, "--resume", "--output", run_copy)
        outcome.refused(change.partition("=")[0])
        assert contents(run_copy) == before


def test_what_is_no_detector(finished: Path, data: Path, tmp_path: Path) -> None:
    image_path, output = data / "images" / "image0.png", tmp_path / "out"
    command("predict", image_path, "--weights", finished / "last.pt", "--output", output).refused(finished / "last.pt")
    folder = tmp_path / "later"
    folder.mkdir()
    shutil.copy(finished / "model.safetensors", folder)
    config = json.loads((finished / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format_version": 2}))
    command("predict", image_path, "--weights", folder, "--output", output).refused(folder, "version", "2")
    (folder / "config.json").write_text(json.dumps({**config, "format": "something"}))
    command("predict", image_path, "--weights", folder, "--output", output).refused(folder, "something")
    assert untouched(output)


class _Exploit:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def spoil(path: Path, how: str) -> None:
    """Damage a file: ``truncated``, ``emptied``, one bit ``flipped`` in the middle, or ``garbage``."""
    good = path.read_bytes()
    middle = len(good) // 2
    spoiled = {
        "truncated": good[: 2 * middle - 1000],
        "emptied": b"",
        "flipped": good[:middle] + bytes([good[middle] ^ 0x40]) + good[middle + 1 :],
        "garbage": b"\x93" * 5000,
        "header": struct.pack("<Q", 1 << 60) + good[8:],
    }
    path.write_bytes(spoiled[how])


@pytest.mark.parametrize("how", ["truncated", "emptied", "flipped", "garbage", "header"])
def test_damaged_weights(how: str, detector_copy: Path, data: Path, tmp_path: Path) -> None:
    spoil(detector_copy / "model.safetensors", how)
    image_path, output = data / "images" / "image0.png", tmp_path / "out"
    for outcome in (
        command("predict", image_path, "--weights", detector_copy, "--output", output),
        evaluate(detector_copy, data, output),
        command("train", data / "tiny.yaml", f"init={detector_copy}", "--output", output),
    ):
        outcome.refused(detector_copy / "model.safetensors")
    assert untouched(output)


def test_a_damaged_config(detector_copy: Path, data: Path, tmp_path: Path) -> None:
    config = detector_copy / "config.json"
    good = json.loads(config.read_text())
    image_path, output = data / "images" / "image0.png", tmp_path / "out"
    for text in (
        config.read_text()[:200],
        "",
        "[]",
        json.dumps({**good, "surprise": 1}),
        json.dumps({**good, "categories": CATEGORIES[:1]}),
        json.dumps({**good, "model": {**good["model"], "num_classes": 10**9}}),
        json.dumps({**good, "model": {**good["model"], "fpn_channels": "8"}, "preprocessing": None}),
    ):
        config.write_text(text)
        command("predict", image_path, "--weights", detector_copy, "--output", output).refused(
            detector_copy, "config.json"
        )
        evaluate(detector_copy, data, output).refused(config)
    assert untouched(output)


@pytest.mark.parametrize("how", ["truncated", "emptied", "flipped", "garbage", "code", "foreign"])
def test_a_damaged_checkpoint(how: str, run_copy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    if how == "code":
        torch.save(_Exploit(marker), run_copy / "last.pt")
    elif how == "foreign":
        torch.save({"weight": torch.ones(2)}, run_copy / "last.pt")
    else:
        spoil(run_copy / "last.pt", how)
    before = contents(run_copy)
    outcome = command("train", run_copy / "recipe.yaml", "solver.max_iterations=3", "--resume", "--output", run_copy)
    outcome.refused(run_copy / "last.pt")
    assert contents(run_copy) == before
    assert not marker.exists()


# Images


def image_that_is_none(path: Path, kind: str) -> Path:
    if kind == "text":
        path.write_text("this is no image")
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    else:
        Image.effect_noise((64, 64), 50).save(path, format="JPEG")
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    return path


@pytest.mark.parametrize("kind", ["text", "empty", "folder", "truncated"])
def test_a_file_that_is_no_image(kind: str, detector: Path, data: Path, tmp_path: Path) -> None:
    good, output = data / "images" / "image0.png", tmp_path / "out"
    bad = image_that_is_none(tmp_path / "bad.jpg", kind)
    command("predict", bad, "--weights", detector, "--output", output).refused("bad.jpg")
    assert untouched(output)
    # The other images are done all the same.
    command("predict", bad, good, "--weights", detector, "--output", output).refused("bad.jpg")
    done = set(contents(output))
    if kind == "folder":  # a folder stands for its images, and all arguments are resolved first
        assert not done
    else:
        assert {"image0.png", "image0.json"} <= done
    assert not [name for name in done if "bad" in name]


@pytest.mark.parametrize("kind", ["text", "truncated"])
def test_a_file_among_the_data_that_is_no_image(kind: str, detector: Path, data: Path, tmp_path: Path) -> None:
    (data / "images" / "image1.png").unlink()
    image_that_is_none(data / "images" / "image1.png", kind)
    evaluate(detector, data, tmp_path / "out").refused("image1.png")
    assert untouched(tmp_path / "out")
    with pytest.warns(RuntimeWarning, match=r"image1\.png"):
        trained = command("train", data / "tiny.yaml", "data.val=[]", "--output", tmp_path / "run")
    assert trained.code == 0, trained.err


def predicted(detector: Path, image_path: Path, output: Path) -> list[dict[str, Any]]:
    """The detections of one image; the drawing must have its upright size."""
    outcome = command("predict", image_path, "--weights", detector, "--output", output, "--overwrite")
    assert outcome.code == 0, outcome.err
    assert not [line for line in outcome.err.splitlines() if line.startswith("error")]
    found: list[dict[str, Any]] = json.loads((output / f"{image_path.stem}.json").read_text())
    return found


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    """An image, wider than high, whose turned and mirrored versions all differ; its colours are greys."""
    drawn = Image.new("L", (80, 48), 40)
    draw = ImageDraw.Draw(drawn)
    draw.rectangle((6, 5, 40, 30), fill=230)
    draw.ellipse((50, 20, 74, 44), fill=140)
    return drawn.convert("RGB")


def grey(scene: Image.Image, path: Path) -> None:
    scene.convert("L").save(path)


def transparent(scene: Image.Image, path: Path) -> None:
    scene.convert("RGBA").save(path)


def palette(scene: Image.Image, path: Path) -> None:
    scene.convert("P", palette=Image.Palette.ADAPTIVE).save(path)


def sixteen_bits(scene: Image.Image, path: Path) -> None:
    # The low byte is noise: values must be scaled, not clipped and not taken modulo 256.
    low = np.random.default_rng(0).integers(0, 256, (48, 80), dtype=np.uint16)
    Image.fromarray(np.asarray(scene.convert("L"), dtype=np.uint16) * 256 + low).save(path)


def turned(scene: Image.Image, path: Path) -> None:
    """As a camera held upright stores it: the sensor's rows are the scene's columns, and EXIF says 6."""
    exif = Image.Exif()
    exif[0x0112] = 6
    scene.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


@pytest.mark.parametrize("save", [grey, transparent, palette, sixteen_bits, turned])
def test_unusual_images_are_seen_as_what_they_show(
    save: Callable[[Image.Image, Path], None], scene: Image.Image, detector: Path, tmp_path: Path
) -> None:
    scene.save(tmp_path / "plain.png")
    save(scene, tmp_path / "unusual.png")
    with Image.open(tmp_path / "unusual.png") as stored:
        assert (stored.mode, stored.size) != ("RGB", scene.size)
    plain = predicted(detector, tmp_path / "plain.png", tmp_path / "a")
    unusual = predicted(detector, tmp_path / "unusual.png", tmp_path / "b")
    assert len(plain) > 0
    assert unusual == plain
    for entry in unusual:
        left, top, width, height = entry["bbox"]
        assert left + width <= 80.001
        assert top + height <= 48.001
    with Image.open(tmp_path / "b" / "unusual.png") as drawn:
        assert drawn.size == scene.size
        assert not drawn.getexif()


def test_the_turned_image_really_lies_on_its_side(scene: Image.Image, detector: Path, tmp_path: Path) -> None:
    """Without its EXIF data the image of the test above gives other boxes: the comparison there says something."""
    scene.save(tmp_path / "plain.png")
    scene.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "side.png")
    plain = predicted(detector, tmp_path / "plain.png", tmp_path / "a")
    assert predicted(detector, tmp_path / "side.png", tmp_path / "b") != plain


def test_a_image_of_one_pixel(detector: Path, tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", size=(1, 1), count=2)
    for entry in predicted(detector, root / "images" / "image0.png", tmp_path / "predicted"):
        left, top, width, height = entry["bbox"]
        assert 0 <= left <= left + width <= 1
        assert 0 <= top <= top + height <= 1
    with Image.open(tmp_path / "predicted" / "image0.png") as drawn:
        assert drawn.size == (1, 1)
    evaluated = evaluate(detector, root, tmp_path / "evaluated")
    assert evaluated.code == 0, evaluated.err
    trained = command("train", root / "tiny.yaml", "--output", tmp_path / "run")
    assert trained.code == 0, trained.err
    checked = command("check-data", "--images", root / "images", "--annotations", root / "instances.json")
    assert checked.code == 0, checked.out


def test_a_image_that_is_too_narrow(detector: Path, tmp_path: Path) -> None:
    Image.new("RGB", (1, 900)).save(tmp_path / "line.png")
    outcome = command("predict", tmp_path / "line.png", "--weights", detector, "--output", tmp_path / "out")
    outcome.refused("line.png", "1x900")
    assert untouched(tmp_path / "out")


# No write permission


@contextmanager
def without_the_powers_of_root() -> Iterator[None]:
    """Permission bits do not bind root: take CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH from this thread for a while."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3 and this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; the lower 32 bits, then the upper
    if libc.capget(header, sets):
        pytest.skip("needs capget, to test permissions as root")
    effective = sets[0]
    sets[0] = effective & ~0b110
    if libc.capset(header, sets):
        pytest.skip("needs capset, to test permissions as root")
    try:
        yield
    finally:
        sets[0] = effective
        assert libc.capset(header, sets) == 0


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Take all write permissions from a folder and what is in it."""
    modes = {each: each.stat().st_mode for each in (path, *path.rglob("*"))}
    for each, mode in modes.items():
        each.chmod(mode & 0o555)
    try:
        with without_the_powers_of_root():
            with pytest.raises(PermissionError):
                (path / "probe").touch()
            yield
    finally:
        for each, mode in modes.items():
            each.chmod(mode)


@pytest.mark.parametrize("place", ["below", "itself"])
@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "quickstart"])
def test_a_folder_without_write_permission(
    name: str, place: str, workplace: Path, detector: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    (folder / "metrics.json").write_text("of yesterday")
    output = folder / "new" if place == "below" else folder
    arguments: dict[str, tuple[object, ...]] = {
        "train": (workplace / "tiny.yaml",),
        "evaluate": (
            *("--weights", detector, "--images", workplace / "images"),
            *("--annotations", workplace / "instances.json", "--workers", 0),
        ),
        "predict": (workplace / "images" / "image0.png", "--weights", detector),
        "quickstart": (),
    }
    with locked(folder):
        outcome = command(name, *arguments[name], "--output", output, "--overwrite")
    outcome.refused(output, "another folder")
    assert contents(folder) == {"metrics.json": b"of yesterday"}


def test_a_run_that_lost_its_write_permission(run_copy: Path) -> None:
    before = contents(run_copy)
    with locked(run_copy):
        outcome = command(
            *("train", run_copy / "recipe.yaml", "solver.max_iterations=3", "--resume", "--output", run_copy)
        )
    outcome.refused(run_copy)
    assert contents(run_copy) == before


@pytest.mark.parametrize("path", ["/proc/vovnet/run", "/dev/null/run"])
def test_a_place_where_no_folder_can_be(path: str, workplace: Path) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("needs Linux's /proc")
    command("train", workplace / "tiny.yaml", "--output", path).refused(path)


def test_files_without_read_permission(detector_copy: Path, data: Path, tmp_path: Path) -> None:
    image_path, output = data / "images" / "image0.png", tmp_path / "out"
    for path, run in (
        (image_path, lambda: command("predict", image_path, "--weights", detector_copy, "--output", output)),
        (data / "instances.json", lambda: evaluate(detector_copy, data, output)),
        (data / "tiny.yaml", lambda: command("train", data / "tiny.yaml", "--output", output)),
        (detector_copy / "config.json", lambda: evaluate(detector_copy, data, output)),
        (detector_copy / "model.safetensors", lambda: evaluate(detector_copy, data, output)),
    ):
        path.chmod(0)
        with without_the_powers_of_root():
            outcome = run()
        path.chmod(0o644)
        outcome.refused(path)
        assert untouched(output)


# Full disk


def says_how_to_mend(line: str) -> bool:
    return re.search(r"\b(free|full|make room|another folder)\b", line) is not None


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """The kernel refuses to write any file beyond ``size`` bytes, in the middle of a write, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_while_training_goes_on(run_copy: Path) -> None:
    before = contents(run_copy)
    with files_end_at(1_000_000):
        outcome = command(
            *("train", run_copy / "recipe.yaml", "solver.max_iterations=3", "--resume", "--output", run_copy)
        )
    assert says_how_to_mend(outcome.refused(run_copy / "last.pt"))
    after = contents(run_copy)
    for name in ("last.pt", "best.pt", "model.safetensors", "config.json"):
        assert after[name] == before[name], name
    assert not [name for name in after if ".tmp-" in name]
    # Nothing is lost: with room on the disk the run goes on from there.
    resumed = command("train", run_copy / "recipe.yaml", "solver.max_iterations=3", "--resume", "--output", run_copy)
    assert resumed.code == 0, resumed.err
    lines = [json.loads(line) for line in (run_copy / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "loss" in line] == [1, 2, 3]


def test_a_disk_that_fills_up_in_a_new_run(workplace: Path, tmp_path: Path) -> None:
    with files_end_at(1_000_000):
        outcome = command("train", workplace / "tiny.yaml", "--output", tmp_path / "run")
    assert says_how_to_mend(outcome.refused(tmp_path / "run"))
    left = contents(tmp_path / "run")
    assert not {"last.pt", "best.pt", "model.safetensors"} & set(left)
    assert not [name for name in left if ".tmp-" in name]


@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_a_disk_that_fills_up_with_results(name: str, workplace: Path, detector: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    image_path = workplace / "images" / "image0.png"

    def run() -> Outcome:
        if name == "evaluate":
            return evaluate(detector, workplace, output, "--overwrite")
        return command("predict", image_path, "--weights", detector, "--output", output, "--overwrite")

    assert run().code == 0
    before = contents(output)
    with files_end_at(100):
        outcome = run()
    assert says_how_to_mend(outcome.refused(output))
    assert contents(output) == before


def test_a_file_system_without_space_left(workplace: Path, finished: Path, tmp_path: Path) -> None:
    """A real one: a small memory disk, mounted for one process where the system lets us."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(len(data) for data in contents(finished).values()) + 3_000_000  # no room for a second last.pt
    script = (
        'mount -t tmpfs -o size="$1" tmpfs "$2" && cp -r "$3" "$2/run" || exit 77; shift 3;'
        '"$@"; echo "code $?"; ls -A "$DISK/run"; cmp "$DISK/run/last.pt" "$WHOLE/last.pt" && echo same'
    )
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    train = [sys.executable, "-m", "vovnet.cli", "train", str(finished / "recipe.yaml"), "solver.max_iterations=3"]
    train += ["--resume", "--output", str(disk / "run")]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(size), str(disk), str(finished), *train],
        env={**os.environ, "DISK": str(disk), "WHOLE": str(finished)},
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    if "code " not in done.stdout:
        pytest.skip(f"needs the right to mount a memory disk ({done.stderr.strip()})")
    code = int(done.stdout.partition("code ")[2].splitlines()[0])
    assert says_how_to_mend(Outcome(code, done.stdout, done.stderr).refused(disk / "run"))
    assert "same" in done.stdout.splitlines()
    assert ".tmp-" not in done.stdout
