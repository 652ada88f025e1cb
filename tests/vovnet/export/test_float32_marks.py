"""What prepares an image keeps its digits in a file for bfloat16, and the network does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported_files import CLASSIFIER

from vovnet.export.float32_marks import save_for_bf16
from vovnet.export.metadata import KEY
from vovnet.export.operations import openvino_operations

openvino: Any = pytest.importorskip("openvino")
op: Any = pytest.importorskip("openvino.opset14")
LARGE = 1000.0  # far more than the 256 steps of bfloat16 above the pixels


def apart(value: Any) -> Any:
    """Turn rows round, so that what comes before and after is not computed at once."""
    return op.gather(value, op.constant([7, 6, 5, 4, 3, 2, 1, 0]), op.constant(3))


def model() -> Any:
    """Convolutions of the image's pixels, to which numbers that the image gives are added and then taken away."""
    image = op.parameter([1, 3, 8, 8], openvino.Type.f32)
    image.output(0).set_names({"image"})
    large = op.multiply(
        op.reduce_mean(image, op.constant([0, 1, 2, 3]), keep_dims=True), op.constant(np.float32(LARGE))
    )
    pixels = op.subtract(apart(op.add(image, large)), large)
    scaled = op.multiply(apart(op.divide(pixels, large)), large)
    weights = np.random.default_rng(0).normal(0, 0.1, (3, 3, 1, 1)).astype(np.float32)
    network = scaled
    for _ in range(2):  # the last layer of a network is computed in float32
        network = op.convolution(network, op.constant(weights), [1, 1], [0, 0], [0, 0], [1, 1])
    made = openvino.Model([op.result(network)], [image], "network")
    made.outputs[0].get_tensor().set_names({"probabilities"})
    made.set_rt_info(CLASSIFIER.to_json(), [KEY])
    return made


def run(path: Path, precision: str) -> Any:
    pixels = np.random.default_rng(1).random((1, 3, 8, 8), dtype=np.float32) + 0.5
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return compiled({"image": pixels})[0]


def test_the_digits_that_bfloat16_would_lose_are_kept(tmp_path: Path) -> None:
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor computes in float32 anyway")
    if int(openvino.__version__.split(".")[0]) < 2026:
        pytest.skip("OpenVINO 2025.0 forgets more marks")
    openvino.save_model(model(), tmp_path / "plain.xml", compress_to_fp16=False)
    save_for_bf16(model(), tmp_path / "marked.xml")
    expected = run(tmp_path / "plain.xml", "f32")
    plain, marked = (run(tmp_path / f"{name}.xml", "bf16") for name in ("plain", "marked"))
    step = 2**-8 * np.abs(expected).max()
    assert np.abs(plain - expected).max() > 20 * step
    assert 0 < np.abs(marked - expected).max() < 4 * step


def test_the_file_keeps_its_names_and_metadata(tmp_path: Path) -> None:
    save_for_bf16(model(), tmp_path / "model.xml")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    read = openvino.Core().read_model(tmp_path / "model.xml")
    assert read.get_rt_info([KEY]).astype(str) == CLASSIFIER.to_json()
    assert [value.get_any_name() for value in (*read.inputs, *read.outputs)] == ["image", "probabilities"]
    assert not {"Subtract", "Divide"} & {one.type for one in openvino_operations(read).values()}
