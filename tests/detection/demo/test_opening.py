"""The detectors of a demo: what visitors call them, and what they find from any thread."""

import threading

import numpy as np
import pytest
import torch
from demo_cases import image_file
from hub_folders import RUN_RECIPE, write_run
from PIL import Image

from vovnet.detection.demo.opening import open_content, open_detectors, visible_name
from vovnet.detection.prediction.predictor import predict
from vovnet.errors import InputError
from vovnet.hub import load_detector

CATEGORIES = [{"id": 4, "name": "disc"}, {"id": 9, "name": "bar"}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("secret") / "first", CATEGORIES)


@pytest.mark.filterwarnings("ignore:.*reached the limit")
def test_a_detector_finds_what_predict_finds_also_in_another_thread(run):
    detectors = open_detectors([str(run)], device="cpu", score=0.0)
    (name, detector), image, answers = *detectors.items(), Image.new("RGB", (70, 50), (9, 80, 200)), []
    thread = threading.Thread(target=lambda: answers.extend(detector.detect([image], ["x"])))
    thread.start()
    thread.join()
    (expected,) = predict(load_detector(run), [image], score=0.0)
    assert name == "first"
    assert detector.categories == CATEGORIES
    found = answers[0].named(CATEGORIES)
    assert found
    assert [one["category"] for one in found] == [one["category"] for one in expected]
    np.testing.assert_allclose([one["bbox"] for one in found], [one["bbox"] for one in expected], rtol=1e-4)
    assert torch.is_grad_enabled()


def test_names_show_no_folder_and_are_distinct(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run)
    assert visible_name(".") == "first"
    assert visible_name(f"{run}/") == "first"
    file = tmp_path / "small.onnx"
    file.touch()
    assert visible_name(str(file)) == "small"
    assert visible_name("org/name@v1") == "org/name@v1"
    assert list(open_detectors([str(run), str(run)], device="cpu")) == ["first", "first-2"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"weights": []}, "--weights"),
        ({"weights": ["no/such/folder"]}, "no/such/folder"),
        ({"threshold": 2}, "--threshold"),
        ({"examples": "no-folder"}, "--examples"),
        ({"tile": 3}, "tile"),
    ],
)
def test_wrong_arguments_are_named(run, arguments, named):
    with pytest.raises(InputError, match=named):
        open_content(**{"weights": [str(run)], "device": "cpu", **arguments})


def test_examples_are_the_first_images_of_a_folder(run, tmp_path):
    with pytest.raises(InputError, match="no image"):
        open_content([str(run)], examples=tmp_path, device="cpu")
    for name in ("b.png", "a.png", "notes.txt"):
        (tmp_path / name).write_bytes(image_file())
    content = open_content([str(run)], examples=tmp_path, device="cpu")
    assert [name for name, _ in content.examples] == ["a.png", "b.png"]


def test_a_detector_of_shapes_comes_with_shapes_and_others_do_not(run, tmp_path):
    shapes = [{"id": number, "name": name} for number, name in enumerate(("circle", "rectangle", "triangle"), 1)]
    other = write_run(tmp_path / "shapes", shapes, RUN_RECIPE.replace("num_classes: 2", "num_classes: 3"))
    assert len(open_content([str(other)], device="cpu").examples) == 3
    assert open_content([str(run)], device="cpu").examples == []
