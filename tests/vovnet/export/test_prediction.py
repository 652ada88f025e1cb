"""`vovnet predict` with exported files, with and without PyTorch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported_files import CLASSIFIER, DETECTOR, FOUND, changed, grid, write_onnx, write_openvino
from PIL import Image

from vovnet.errors import InputError, install_advice
from vovnet.export.prediction import classify_exported, exported_detections, exported_limits, predict_exported
from vovnet.export.runtime import open_exported
from vovnet.results.limits import Limits, LimitWarning
from vovnet.results.rle import decode

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

ROOT = Path(__file__).parents[3]
PIXELS = np.random.default_rng(1).integers(0, 256, (30, 50, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "a.png"
    Image.fromarray(PIXELS).save(path)
    return path


def quiet(line: str) -> None:
    pass


def predicted(file: Path, images: list[Path], output: Path) -> list[dict[str, Any]]:
    (written, *_) = predict_exported(open_exported(file), images, output, report=quiet)
    found: list[dict[str, Any]] = json.loads(written.read_text())
    return found


def test_form_of_the_answer(tmp_path: Path, image: Path) -> None:
    best, other = predicted(write_onnx(tmp_path / "d.onnx"), [image], tmp_path / "out")
    assert set(best) == {"bbox", "score", "category_id", "category", "segmentation"}
    assert (best["bbox"], best["category_id"], best["category"]) == ([0, 0, 25, 30], 3, "disc")
    assert (other["bbox"], other["category_id"], other["category"]) == ([0, 0, 50, 30], 7, "cell")
    assert best["score"] == pytest.approx(PIXELS.mean() / 255, abs=1e-5)
    assert other["score"] == 0.25
    columns = decode(best["segmentation"]).sum(axis=0)
    assert columns[1:11].all()  # probabilities above 0.5 in the left half of the box, which is 25 pixels wide
    assert not columns[14:].any()
    assert Image.open(tmp_path / "out" / "a.png").size == (50, 30)


def test_inclusive_boxes_and_masks_of_the_image(tmp_path: Path, image: Path) -> None:
    metadata = changed(box_format="xyxy_inclusive", masks="image", dtype="float32", size=(30, 50))
    best, other = predicted(write_onnx(tmp_path / "d.onnx", metadata), [image], tmp_path / "out")
    assert (best["bbox"], other["bbox"]) == ([0, 0, 26, 31], [0, 0, 51, 31])
    assert np.array_equal(decode(best["segmentation"]), PIXELS[:, :, 0] / np.float32(255) > 0.5)


def test_a_detector_without_masks_and_with_a_batch(tmp_path: Path, image: Path) -> None:
    found = predicted(write_onnx(tmp_path / "d.onnx", changed(masks=None)), [image], tmp_path / "out")
    assert all("segmentation" not in one for one in found)


def test_a_detector_of_keypoints(tmp_path: Path, image: Path) -> None:
    named = [{**one, "keypoints": ["head", "tail"], "skeleton": [[1, 2]]} for one in DETECTOR.categories]
    metadata = changed(masks=None, keypoints=2, categories=named)
    model = open_exported(write_onnx(tmp_path / "d.onnx", metadata))
    assert model.metadata.categories == named
    (written, *_) = predict_exported(model, [image], tmp_path / "out", report=quiet)
    assert [one["keypoints"] for one in json.loads(written.read_text())] == [[0.75] * 6] * FOUND
    outputs = {"boxes": np.zeros((4, 4), np.float32), "scores": np.zeros(4, np.float32)}
    outputs |= {"labels": np.array([1, 1, 0, 0]), "count": np.array(2), "keypoints": np.zeros((4, 3, 3), np.float32)}
    with pytest.raises(InputError, match="keypoints"):
        exported_detections(metadata, outputs, (30, 50), "d.onnx")


@pytest.mark.parametrize("wrong", [{"keypoints": "head"}, {"keypoints": []}, {"skeleton": [[1, 3]]}, {"skeleton": [1]}])
def test_wrong_keypoints_of_a_category_are_refused(wrong: dict[str, Any]) -> None:
    category = {"id": 1, "name": "person", "keypoints": ["head", "tail"], "skeleton": [[1, 2]], **wrong}
    with pytest.raises(InputError, match="keypoints"):
        changed(categories=[category]).to_json()


def test_grey_files_take_grey_images(tmp_path: Path, image: Path) -> None:
    grey = Image.open(image).convert("L")
    found = predicted(write_onnx(tmp_path / "d.onnx", changed(channels=1)), [image], tmp_path / "out")
    assert max(one["score"] for one in found) == pytest.approx(np.asarray(grey).mean() / 255, abs=1e-5)
    with pytest.raises(InputError, match="5 channels"):
        predicted(write_onnx(tmp_path / "d.onnx", changed(channels=5)), [image], tmp_path / "two")


def test_another_size_is_refused_and_the_others_are_predicted(tmp_path: Path, image: Path) -> None:
    small = tmp_path / "small.png"
    Image.new("RGB", (20, 10)).save(small)
    model = open_exported(write_onnx(tmp_path / "d.onnx", changed(size=(10, 20))))
    with pytest.raises(InputError, match=r"a\.png.*50x30.*20x10"):
        predict_exported(model, [image, small], tmp_path / "out", report=quiet)
    of_images = {"small.json", "small.png"}
    of_all = {"counts.csv", "detections.csv", "summary.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == of_images | of_all


def test_a_classifier(tmp_path: Path, image: Path) -> None:
    for write, name in ((write_onnx, "c.onnx"), (write_openvino, "c.xml")):
        model = open_exported(write(tmp_path / name, CLASSIFIER))
        ((path, classes),) = classify_exported(model, [image], top=2)
        means = PIXELS.mean(axis=(0, 1)) / 255
        order = np.argsort(-means)[:2]
        assert path == image
        assert [one["index"] for one in classes] == order.tolist()
        assert [one["label"] for one in classes] == [("red", "green", "blue")[index] for index in order]
        assert [one["score"] for one in classes] == pytest.approx(means[order], abs=1e-5)


def test_the_other_kind_of_file_is_refused(tmp_path: Path, image: Path) -> None:
    detector, classifier = write_onnx(tmp_path / "d.onnx"), write_onnx(tmp_path / "c.onnx", CLASSIFIER)
    with pytest.raises(InputError, match="classifier"):
        predict_exported(open_exported(classifier), [image], tmp_path / "out")
    with pytest.raises(InputError, match="detector"):
        classify_exported(open_exported(detector), [image])
    assert not (tmp_path / "out").exists()


def test_classes_that_the_metadata_does_not_name(tmp_path: Path, image: Path) -> None:
    model = open_exported(write_onnx(tmp_path / "c.onnx", changed(CLASSIFIER, categories=CLASSIFIER.categories[:2])))
    with pytest.raises(InputError, match="2 probabilities"):
        list(classify_exported(model, [image]))


OUTPUTS = {
    "boxes": np.zeros((4, 4), np.float32),
    "scores": np.full(4, 0.5, np.float32),
    "labels": np.array([2, 1, 0, 0]),
    "masks": grid(),
    "count": np.array(FOUND),
}


@pytest.mark.parametrize(
    ("output", "value"),
    [
        ("boxes", np.zeros((3, 4), np.float32)),
        ("boxes", np.full((4, 4), np.nan, np.float32)),
        ("scores", np.zeros((4, 1), np.float32)),
        ("labels", np.array([2, 3, 0, 0])),
        ("count", np.array(5)),
        ("count", np.array(-1)),
        ("count", np.array([1, 2])),
        ("masks", np.zeros((1, 28, 28), np.float32)),
        ("masks", np.zeros((4, 28), np.float32)),
    ],
)
def test_outputs_that_do_not_fit_are_refused(output: str, value: Any) -> None:
    assert len(exported_detections(DETECTOR, OUTPUTS, (30, 50), "d.onnx").scores) == FOUND
    with pytest.raises(InputError):
        exported_detections(DETECTOR, {**OUTPUTS, output: value}, (30, 50), "d.onnx")


def test_limits_come_from_the_metadata(tmp_path: Path, image: Path) -> None:
    assert exported_limits(DETECTOR) == Limits(100, 800, 1333, None, built_in=True)
    strange = {"min_size": [600, "a"], "max_size": True, "median_object": -1}
    assert exported_limits(changed(preprocessing=strange, thresholds={})) == Limits(built_in=True)
    with pytest.warns(LimitWarning, match="limit of 2 detections"):
        predicted(write_onnx(tmp_path / "d.onnx", changed(thresholds={"detections": 2})), [image], tmp_path / "out")
    narrow = changed(preprocessing={"max_size": 1})
    with pytest.raises(InputError, match="narrow"):
        predicted(write_onnx(tmp_path / "d.onnx", narrow), [image], tmp_path / "narrow")


def command(*arguments: str | Path, hidden: bool = True) -> subprocess.CompletedProcess[str]:
    start = [str(ROOT / "tests" / "helpers" / "without_torch.py")] if hidden else ["-m", "vovnet.cli"]
    return subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        cwd=ROOT,
        env=None,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(("write", "name"), [(write_onnx, "d.onnx"), (write_openvino, "d.xml")])
def test_the_same_files_with_and_without_torch(tmp_path: Path, image: Path, write: Any, name: str) -> None:
    file = write(tmp_path / name)
    done = command("predict", image, "--weights", file, "--output", tmp_path / "hidden")
    assert done.returncode == 0, done.stderr
    predict_exported(open_exported(file), [image], tmp_path / "here", report=quiet)
    assert (tmp_path / "hidden" / "a.json").read_bytes() == (tmp_path / "here" / "a.json").read_bytes()
    # Only the letters differ, because the font is Matplotlib's.
    drawn = [np.asarray(Image.open(tmp_path / folder / "a.png")) for folder in ("hidden", "here")]
    assert (drawn[0] != drawn[1]).any(axis=2).mean() < 0.5
    assert np.array_equal(drawn[0][-5:], drawn[1][-5:])


def test_commands_without_torch(tmp_path: Path, image: Path) -> None:
    shown = command("--help")
    assert shown.returncode == 0
    assert "predict" in shown.stdout
    report = command("env")
    assert report.returncode == 0, report.stderr
    assert "failed" not in report.stdout
    classes = command("predict", image, "--weights", write_onnx(tmp_path / "c.onnx", CLASSIFIER))
    assert classes.stdout.count("0.") == 3, classes.stderr
    for arguments in (
        ("predict", image, "--weights", "runs/mine"),
        ("train", "quickstart", "--output", tmp_path / "o"),
    ):
        refused = command(*arguments)
        assert refused.returncode == 1
        assert re.match("error: this needs '(torch|timm)'", refused.stderr), refused.stderr
        assert refused.stderr.count("\n") == 1


def test_names_without_torch_say_what_to_install() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests/helpers'); from without_torch import Hider\n"
        "sys.meta_path.insert(0, Hider)\n"
        "import vovnet\n"
        "for name in ('VoVNet', 'fuse', 'memory_efficient'):\n"
        "    try: getattr(vovnet, name)\n"
        "    except ModuleNotFoundError as error: print(name in str(error), error.name, error)\n"
        "print(hasattr(vovnet, 'nothing'), bool(vovnet.__version__))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    assert all(line.startswith("True torch ") and install_advice() in line for line in lines[:3])
    assert lines[3] == "False True"


@pytest.mark.parametrize("option", [["--fuse"], ["--device", "cuda"]])
def test_options_that_an_exported_file_does_not_have(tmp_path: Path, image: Path, option: list[str]) -> None:
    refused = command("predict", image, "--weights", write_onnx(tmp_path / "d.onnx"), *option)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: {option[0]}")


def test_nothing_is_left_of_a_file_that_does_not_open(tmp_path: Path, image: Path) -> None:
    (tmp_path / "d.onnx").write_bytes(b"no model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused = command("predict", image, "--weights", tmp_path / "d.onnx", "--output", tmp_path / "out")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
