"""An exported classifier in ONNX Runtime Web computes what ONNX Runtime computes."""

from pathlib import Path

import numpy as np
import pytest
from browser import onnxruntime_web, run_in_browser
from evaluation_images import as_pixels, random_image
from small_networks import network
from torch import nn

from vovnet.classification import classify
from vovnet.export.classifier import export_classifier


@pytest.mark.slow
def test_a_page_classifies_an_image_of_any_size(tmp_path: Path) -> None:
    onnxruntime_web()
    model: nn.Module = network()
    nn.init.normal_(model.get_parameter("head.fc.weight"), std=3.0)
    path = export_classifier(model, tmp_path / "model.onnx", "onnx")
    image = random_image(333, 200)
    found = run_in_browser(path, as_pixels(image), tmp_path / "page")
    expected = {one["index"]: one["score"] for one in classify(model, [image])[0]}
    assert found.keys() == {"probabilities"}
    assert found["probabilities"].dtype == np.float32
    assert found["probabilities"] == pytest.approx([expected[i] for i in range(5)], abs=1e-4)
