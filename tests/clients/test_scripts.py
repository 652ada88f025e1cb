"""The scripts of timm's and torchvision's repositories, run as their users run them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from client_models import Script, Sources, small

TIMM = "pytorch-image-models"
SMALL = ["--model", "vovnet27_slim", "--num-classes", "5", "--img-size", "64"]
HERE = ["-b", "4", "--device", "cpu", "-j", "0", "--no-prefetcher"]


def test_timm_trains_validates_and_exports(
    sources: Sources, script: Script, image_folder: Path, tmp_path: Path
) -> None:
    train, validate, export = (sources(f"{TIMM}/{name}.py") for name in ("train", "validate", "onnx_export"))
    output = ["--output", tmp_path / "out", "--experiment", "one"]
    schedule = ["--epochs", "1", "--warmup-epochs", "0", "--opt", "adamw"]
    data = ["--data-dir", image_folder]
    script(train, *data, *SMALL, *HERE, *schedule, *output, "--device-modules", "vovnet", first="")
    checkpoint = tmp_path / "out" / "one" / "last.pth.tar"
    assert '"param_count": 3.0' in script(validate, *data, *SMALL, *HERE, "--checkpoint", checkpoint)

    onnxruntime = pytest.importorskip("onnxruntime")
    script(export, *SMALL, "--checkpoint", checkpoint, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
    (found,) = session.run(None, {session.get_inputs()[0].name: x})
    model = small(num_classes=5).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=False)["state_dict"])
    np.testing.assert_allclose(found, model(torch.from_numpy(x)).detach().numpy(), rtol=1e-3, atol=1e-4)


def test_torchvision_trains_and_evaluates_a_detector(
    sources: Sources, script: Script, coco_folder: Path, tmp_path: Path
) -> None:
    path = sources("vision/references/detection/train.py")
    arguments = ["--data-path", coco_folder, "--model", "retinanet_vovnet27_slim_fpn", "--output-dir", tmp_path / "out"]
    short = ["--device", "cpu", "-b", "2", "-j", "0", "--epochs", "1", "--lr", "0.001"]
    assert "IoU metric: bbox" in script(path, *arguments, *short, first="import vovnet.detection")
    state = torch.load(tmp_path / "out" / "checkpoint.pth", weights_only=False)
    assert state["epoch"] == 0
    assert any(key.startswith("backbone.body.stem") for key in state["model"])


def test_torchvision_trains_a_classifier(sources: Sources, script: Script, image_folder: Path, tmp_path: Path) -> None:
    """torchvision knows a timm network by a function that its user registers."""
    path = sources("vision/references/classification/train.py")
    register = (
        "import timm, vovnet\nfrom torchvision.models._api import register_model\n"
        "@register_model()\ndef vovnet27_slim(weights=None, **arguments):\n"
        "    return timm.create_model('vovnet27_slim', **arguments)\n"
    )
    sizes = ["--val-resize-size", "72", "--val-crop-size", "64", "--train-crop-size", "64"]
    short = ["--device", "cpu", "-b", "5", "-j", "0", "--epochs", "1", "--output-dir", tmp_path]
    printed = script(path, "--data-path", image_folder, "--model", "vovnet27_slim", *short, *sizes, first=register)
    assert "Training time" in printed
