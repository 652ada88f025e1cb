"""Fused copies of the published detectors, on the reference's images, beside the detectors themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vovnet
from vovnet.hub import load_detector
from vovnet.images.reading import read_image
from vovnet.images.tensors import to_tensor
from vovnet.ops.build import loader

TESTED = [("frcn_v39", "synth"), ("frcn_v39", "coffee"), ("mrcn_v57", "synth")]


@pytest.mark.parametrize(("config", "image"), TESTED)
def test_detections(config: str, image: str, golden: Path, converted: Callable[[str], Path]) -> None:
    if not loader.cpu_operators():
        pytest.skip("needs the compiled operators for the CPU")
    detector: Any = load_detector(converted(config)).eval()
    input_ = to_tensor(read_image(golden / "images" / f"{image}.png")).float() / 255
    with torch.inference_mode():
        (expected,) = detector([input_])
        (got,) = vovnet.fuse(detector)([input_])
    assert len(expected["labels"]) > 0
    assert torch.equal(got["labels"], expected["labels"])
    torch.testing.assert_close(got["boxes"], expected["boxes"], atol=0.1, rtol=0)
    torch.testing.assert_close(got["scores"], expected["scores"], atol=1e-3, rtol=0)
    if "masks" in expected:
        torch.testing.assert_close(got["masks"], expected["masks"], atol=5e-3, rtol=0)  # of boxes that lie apart
