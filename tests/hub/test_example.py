"""The drawn example of a card shows the detections, and nothing else that the image's file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vovnet.errors import InputError
from vovnet.hub import example as module
from vovnet.hub import load_detector
from vovnet.hub.example import draw_example


@pytest.fixture(scope="module")
def detector(run: Path) -> Any:
    return load_detector(run)


def test_it_is_turned_and_shrunk_and_loses_its_exif_data(detector: Any, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (3000, 1500), "grey").save(tmp_path / "a.jpg", exif=exif)
    draw_example(detector, tmp_path / "a.jpg", tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as drawn:
        assert (drawn.format, drawn.mode, drawn.size) == ("JPEG", "RGB", (640, 1280))
        assert not dict(drawn.getexif())


def test_detections_are_drawn_and_counted(detector: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (90, 60), "grey").save(tmp_path / "a.png")
    box = {"bbox": [10, 10, 40, 30], "category_id": 4, "category": "cat"}
    found = [box | {"score": 0.9}, box | {"score": 0.1, "bbox": [60, 10, 20, 40]}]
    monkeypatch.setattr(module, "predict", lambda detector, images: [found])
    assert draw_example(detector, tmp_path / "a.png", tmp_path / "out.jpg") == 1
    with Image.open(tmp_path / "out.jpg") as drawn:
        pixels = np.asarray(drawn).astype(int)
    assert np.abs(pixels[10:40, 10:50] - 128).max() > 60
    assert np.abs(pixels[30:, 60:] - 128).max() < 20
    monkeypatch.setattr(module, "predict", lambda detector, images: [[]])
    assert draw_example(detector, tmp_path / "a.png", tmp_path / "out.jpg") == 0


def test_what_is_no_image(detector: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    for name in ("a.jpg", "absent.jpg"):
        with pytest.raises(InputError, match=name):
            draw_example(detector, tmp_path / name, tmp_path / "out.jpg")
    assert not (tmp_path / "out.jpg").exists()
