"""Outputs are found by the names of the contract, whatever else OpenVINO calls them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported_files import DETECTOR

from vovnet.export.metadata import KEY
from vovnet.export.runtime import open_exported


def test_an_output_that_is_also_an_inner_tensor(tmp_path: Path) -> None:
    openvino: Any = pytest.importorskip("openvino")
    op: Any = pytest.importorskip("openvino.opset14")
    image = op.parameter([3, 8, 8], openvino.Type.u8)
    image.output(0).set_names({"image"})
    mean = op.reduce_mean(op.convert(image, "f32"), op.constant([0, 1, 2]), keep_dims=False)
    inner = op.add(op.constant(np.full((4, 28, 28), 0.25, np.float32)), mean)
    inner.output(0).set_names({"1583", "where_20:0"})
    outputs = {
        "boxes": op.add(op.constant(np.zeros((4, 4), np.float32)), mean),
        "scores": op.add(op.constant(np.zeros(4, np.float32)), mean),
        "labels": op.convert(op.add(op.constant(np.zeros(4, np.float32)), mean), "i64"),
        "masks": op.squeeze(op.unsqueeze(inner, op.constant([0])), op.constant([0])),
        "count": op.convert(mean, "i64"),
    }
    for name, node in outputs.items():
        node.output(0).set_names({name})
    model = openvino.Model([op.result(node) for node in outputs.values()], [image], "detector")
    model.set_rt_info(DETECTOR.to_json(), [KEY])
    openvino.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    found = open_exported(tmp_path / "model.xml").run(np.ones((3, 8, 8), np.uint8))
    assert found["masks"].shape == (4, 28, 28)
    assert found["masks"] == pytest.approx(1.25)
    assert set(found) == set(outputs)
