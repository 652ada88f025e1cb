"""A detector that `vovnet export` wrote finds in ONNX Runtime Web what it finds in ONNX Runtime."""

from pathlib import Path

import numpy as np
import pytest
from browser import onnxruntime_web, run_in_browser
from evaluation_images import as_pixels, random_image
from small_networks import MODEL, detector
from support import command

from vovnet.detection import load_recipe
from vovnet.detection.checkpoints.folder import save_detector


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mask_rcnn", "retinanet", "fcos"])
def test_a_page_detects_objects(kind: str, tmp_path: Path) -> None:
    onnxruntime_web()
    runtime = pytest.importorskip("onnxruntime")
    # FCOS's last level is one pixel here, so that its group norms need more than one channel a group.
    name, sizes = f"{kind}_vovnet39_fpn", MODEL | ({"fpn_channels": "64"} if kind == "fcos" else {})
    recipe = load_recipe(name, [f"model.{key}={value}" for key, value in sizes.items()])
    categories = [{"id": number, "name": f"thing {number}"} for number in range(1, 5)]
    save_detector(tmp_path / "run", detector(name, **sizes), recipe.model, categories)
    path = tmp_path / "model.onnx"
    done = command("export", tmp_path / "run", "--format", "onnx", "--size", "96x128", "--output", path)
    assert done.code == 0, done.err
    pixels = as_pixels(random_image(96, 128))
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    expected = dict(zip(names, session.run(None, {"image": pixels}), strict=True))
    found = run_in_browser(path, pixels, tmp_path / "page")
    assert found.keys() == expected.keys()
    assert expected["count"] > 5
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert np.allclose(found[name], value, rtol=1e-4, atol=1e-3), name
