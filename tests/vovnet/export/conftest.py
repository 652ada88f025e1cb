"""Exported files of every format, made by hand and by PyTorch."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
from exported_files import write_onnx, write_openvino


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same detector in each format that is at hand, by suffix; ``.pt2`` needs a compiler."""
    folder = tmp_path_factory.mktemp("exported")
    found = {".onnx": write_onnx(folder / "d.onnx"), ".xml": write_openvino(folder / "x.xml")}
    from exported_torch import write_pt2, write_torchscript

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found[".torchscript"] = write_torchscript(folder / "d.torchscript")
        found[".pt"] = write_torchscript(folder / "d.pt")
        if shutil.which("g++"):
            found[".pt2"] = write_pt2(folder / "d.pt2")
    return found


@pytest.fixture(params=[".onnx", ".xml", ".torchscript", ".pt", ".pt2"])
def file(request: pytest.FixtureRequest, files: dict[str, Path]) -> Path:
    """A detector in one of the formats."""
    if request.param not in files:
        pytest.skip("needs a C++ compiler")
    return files[request.param]
