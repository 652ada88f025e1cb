"""timm's evaluation transform in a graph, against timm's own on Pillow images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_images import as_pixels, random_image
from PIL import Image
from timm.data import create_transform
from torch import nn

from vovnet.errors import InputError
from vovnet.export.evaluation_transform import EvaluationTransform
from vovnet.export.metadata import ExportedInput, ExportMetadata
from vovnet.export.resampling import pillow_version, resizes_vertically_first
from vovnet.export.writing import Exportable, write_exported

CONFIG: dict[str, Any] = {
    "input_size": (3, 96, 96),
    "interpolation": "bilinear",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 0.875,
    "crop_mode": "center",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "center": {},
    "bicubic": {"interpolation": "bicubic"},
    "no crop": {"crop_pct": 1.0},
    "larger than the image": {"crop_pct": 1.1},
    "not square": {"input_size": (3, 80, 112)},
    "squash": {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bicubic"},
    "squash and crop": {"crop_mode": "squash", "crop_pct": 0.9, "input_size": (3, 80, 112)},
    "border": {"crop_mode": "border", "crop_pct": 1.0, "interpolation": "bicubic"},
    "border and crop": {"crop_mode": "border", "crop_pct": 0.9},
    "border, not square": {"crop_mode": "border", "input_size": (3, 113, 81)},
    "grey": {"input_size": (1, 96, 96), "mean": (0.45,), "std": (0.25,)},
    "no mode": {"crop_mode": None},
}
SIZES = [(240, 320), (320, 240), (50, 37), (96, 96), (110, 333), (333, 110), (1, 1), (2, 250), (129, 128), (245, 320)]


class _OneImage(nn.Module):
    """Takes an image without a batch dimension, as exported files do."""

    def __init__(self, transform: EvaluationTransform) -> None:
        super().__init__()
        self.transform = transform.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pixels: torch.Tensor = self.transform(image[None].float())
        return pixels[0]


def other_order(timms: Any, image: Image.Image) -> bool:
    """True where the installed Pillow begins with the columns."""
    resized = timms.transforms[0](image)
    return bool(resizes_vertically_first((image.height, image.width), resized.size[::-1]))


@pytest.mark.parametrize("fixed", [False, True], ids=["any size", "one size"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_pixels_are_timms(variant: str, fixed: bool) -> None:
    config = CONFIG | VARIANTS[variant]
    timms: Any = create_transform(**config, is_training=False)
    channels = config["input_size"][0]
    levels = 255 * torch.tensor(config["std"])[:, None, None]  # one byte, in normalised values
    for height, width in SIZES:
        image = random_image(height, width, channels)
        ours = EvaluationTransform(config, (height, width) if fixed else None)
        found = ours(torch.from_numpy(as_pixels(image))[None].float())[0]
        different = (found - timms(image)).abs() * levels
        assert found.shape == (channels, *config["input_size"][1:])
        assert different.max() < 0.001, (height, width)


@pytest.mark.parametrize("size", [None, (900, 240)], ids=["any size", "one size"])
def test_a_tall_image_is_resized_in_pillows_order(size: tuple[int, int] | None) -> None:
    """In bicubic resizing the order shows more: what leaves 0..255 after one direction is lost for the other."""
    timms: Any = create_transform(**CONFIG | {"interpolation": "bicubic"}, is_training=False)
    image = random_image(900, 240)
    assert other_order(timms, image) or pillow_version() < 13
    pixels = torch.from_numpy(as_pixels(image))[None].float()
    found = EvaluationTransform(CONFIG | {"interpolation": "bicubic"}, size)(pixels)[0]
    assert found.numpy() == pytest.approx(timms(image).numpy(), abs=1e-5)


@pytest.mark.parametrize(
    ("key", "value"), [("interpolation", "lanczos"), ("interpolation", "random"), ("crop_mode", "x")]
)
def test_what_cannot_be_expressed_is_refused(key: str, value: str) -> None:
    with pytest.raises(InputError, match=key):
        EvaluationTransform(CONFIG | {key: value})


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["center", "larger than the image", "squash", "border, not square", "grey"])
def test_onnx_runtime_and_openvino_compute_the_same(variant: str, tmp_path: Path) -> None:
    """What their translations could miss: sizes as tensors, in every mode."""
    onnxruntime, openvino = (pytest.importorskip(name) for name in ("onnxruntime", "openvino"))
    config = CONFIG | VARIANTS[variant]
    module = _OneImage(EvaluationTransform(config))
    channels = config["input_size"][0]
    example = torch.zeros((channels, 310, 423), dtype=torch.uint8)
    metadata = ExportMetadata("classifier", "1", ExportedInput(channels), [{"id": 0, "name": "a"}])
    exportable = Exportable(module, example, True, ["pixels"], metadata)
    session = onnxruntime.InferenceSession(
        write_exported(exportable, tmp_path / "t.onnx", "onnx"), providers=["CPUExecutionProvider"]
    )
    compiled = openvino.Core().compile_model(
        write_exported(exportable, tmp_path / "t.xml", "openvino"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    for height, width in SIZES:
        pixels = as_pixels(random_image(height, width, channels))
        expected = module(torch.from_numpy(pixels)).numpy()
        assert session.run(None, {"image": pixels})[0] == pytest.approx(expected, abs=1e-5)
        # OpenVINO computes bicubic weights in float32, so that a byte may be off by 1.
        different = np.abs(compiled(pixels)[0] - expected)
        assert different.max() < 0.02
        assert (different > 1e-5).mean() < 0.001
