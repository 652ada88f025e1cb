"""Which precisions a format takes, and what int8 needs before anything is written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vovnet.errors import InputError
from vovnet.export.metadata import ExportedInput, ExportMetadata
from vovnet.export.precisions import check_precision, graph_precision
from vovnet.export.writing import Exportable, staged, write_exported

METADATA = ExportMetadata("classifier", "0.1.0", ExportedInput(), [{"id": 0, "name": "red"}])


@pytest.mark.parametrize(
    ("format", "precision"), [("onnx", "bf16"), ("pt2", "int8"), ("torchscript", "int8"), ("onnx", "fp8")]
)
def test_a_precision_that_a_format_lacks(format: Any, precision: Any) -> None:
    with pytest.raises(InputError, match=f"precision {precision}.*format {format} takes fp32"):
        check_precision(format, precision)


def test_openvino_and_nncf_take_a_graph_of_float32() -> None:
    given = [("onnx", "fp16"), ("onnx", "int8"), ("openvino", "bf16"), ("openvino", "fp16"), ("pt2", "bf16")]
    assert [graph_precision(*one) for one in given] == ["fp16", "fp32", "fp32", "fp32", "bf16"]  # type: ignore[arg-type]


def test_int8_needs_images_and_nncf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exportable = Exportable(nn.Identity(), torch.zeros(3, 8, 8), False, ["probabilities"], METADATA)
    pytest.importorskip("nncf")
    with pytest.raises(InputError, match="--calibrate"):
        write_exported(exportable, tmp_path / "model.onnx", "onnx", precision="int8")
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(InputError, match=r"\[int8\]"):
        write_exported(exportable, tmp_path / "model.onnx", "onnx", precision="int8", calibration=[])
    assert not list(tmp_path.iterdir())


def write(path: Path, error: Exception | None = None) -> None:
    with staged(path) as file:
        file.write_text("graph")
        file.with_suffix(".bin").write_text("weights")
        assert not path.exists()
        if error is not None:
            raise error


def test_a_file_that_fails_its_check_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.xml"
    with pytest.raises(InputError):
        write(path, InputError("accuracy fell"))
    assert not list(path.parent.iterdir())
    write(path)
    assert sorted(one.name for one in path.parent.iterdir()) == ["model.bin", "model.xml"]
