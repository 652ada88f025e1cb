"""Writing a file: its name, what it says about itself, and that nothing is left if it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vovnet.errors import InputError
from vovnet.export import writing
from vovnet.export.metadata import KEY, ExportedInput, ExportMetadata, from_json
from vovnet.export.writing import SUFFIXES, Exportable, check_output, write_exported


class Doubled(nn.Module):
    """Something small to write."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return two outputs."""
        return image * 2, image.sum()


METADATA = ExportMetadata("classifier", "1.2.3", ExportedInput(1, "float32"), [{"id": 0, "name": "größer"}])


def exportable(dynamic: bool = True) -> Exportable:
    return Exportable(Doubled(), torch.zeros(1, 6, 7), dynamic, ["doubled", "sum"], METADATA)


def test_onnx(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session: Any = onnxruntime.InferenceSession(write_exported(exportable(), tmp_path / "m.onnx", "onnx"))
    assert from_json(session.get_modelmeta().custom_metadata_map[KEY], "m") == METADATA
    assert [one.name for one in session.get_inputs() + session.get_outputs()] == ["image", "doubled", "sum"]
    image = torch.rand(1, 5, 9)
    torch.testing.assert_close(torch.tensor(session.run(["doubled"], {"image": image.numpy()})[0]), image * 2)
    assert session.get_modelmeta().graph_name
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("dynamic", [True, False])
def test_openvino(tmp_path: Path, dynamic: bool) -> None:
    openvino: Any = pytest.importorskip("openvino")
    path = write_exported(exportable(dynamic), tmp_path / "m.xml", "openvino")
    model = openvino.Core().read_model(path)
    assert from_json(model.get_rt_info([KEY]).value, "m") == METADATA
    assert model.inputs[0].partial_shape.is_dynamic == dynamic
    image = torch.rand(1, 5, 9) if dynamic else torch.rand(1, 6, 7)
    found = openvino.compile_model(model, "CPU")({"image": image.numpy()})
    torch.testing.assert_close(torch.tensor(found["doubled"]), image * 2)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["m.bin", "m.xml"]


def test_torchscript(tmp_path: Path) -> None:
    files = {KEY: ""}
    path = write_exported(exportable(), tmp_path / "m.torchscript", "torchscript")
    opened: Any = torch.jit.load(path, _extra_files=files)
    assert from_json(files[KEY].decode() if isinstance(files[KEY], bytes) else files[KEY], "m") == METADATA  # type: ignore[attr-defined]
    image = torch.rand(1, 5, 9)
    torch.testing.assert_close(opened(image)[0], image * 2)


@pytest.mark.parametrize(("name", "format"), [("m.pt", "onnx"), ("m", "openvino"), ("m.onnx", "pt2"), (".", "onnx")])
def test_names_are_checked(tmp_path: Path, name: str, format: str) -> None:
    with pytest.raises(InputError, match="output"):
        check_output(tmp_path / name, format)


def test_formats_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="format"):
        check_output(tmp_path / "m.tflite", "tflite")


def test_a_file_is_only_replaced_if_one_says_so(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("mine")
    with pytest.raises(InputError, match="overwrite"):
        check_output(path, "onnx", overwrite=False)
    assert check_output(path, "onnx", overwrite=True) == path


class Branching(nn.Module):
    """Something that no exporter takes."""

    def forward(self, image: Tensor) -> Tensor:
        """Read a value."""
        return image if image.sum() > 0 else image.nonzero()


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_failed_export_leaves_what_was_there(tmp_path: Path, format: Any) -> None:
    path = tmp_path / f"m{SUFFIXES[format]}"
    path.write_text("mine")
    with pytest.raises(InputError, match=format):
        write_exported(Exportable(Branching(), torch.zeros(1, 4, 4), True, ["a"], METADATA), path, format)
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(writing, "import_module", missing)
    with pytest.raises(InputError, match=r"onnx.*export"):
        write_exported(exportable(), tmp_path / "m.onnx", "onnx")
    assert not list(tmp_path.iterdir())
