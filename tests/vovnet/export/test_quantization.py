"""The images to calibrate with, and quantized files of both formats."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vovnet.errors import InputError
from vovnet.export.metadata import KEY, ExportedInput, ExportMetadata
from vovnet.export.quantization import CalibrationImages, quantize_file

METADATA = ExportMetadata("detector", "0.1.0", ExportedInput(), [{"id": 1, "name": "cell"}], precision="int8")
SIDE = 16


def folder_of(path: Path, count: int, mode: str = "RGB", side: int = SIDE) -> Path:
    path.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(path / f"{number:04}.png")
    return path


def test_images_of_a_folder_are_read_one_by_one(tmp_path: Path) -> None:
    images = CalibrationImages(folder_of(tmp_path / "some", 3), 3)
    assert len(images) == 3
    assert images[0].shape == (3, SIDE, SIDE)
    assert images[0].dtype == np.uint8
    assert [image.shape[0] for image in CalibrationImages(tmp_path / "some", 1)] == [1, 1, 1]
    assert len(images[1:]) == 2


def test_of_many_images_some_of_all_parts_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vovnet.export.quantization.MOST_IMAGES", 3)
    folder = folder_of(tmp_path / "many", 9)
    images = CalibrationImages(folder, 3)
    everything = [np.asarray(Image.open(path)).transpose(2, 0, 1) for path in sorted(folder.iterdir())]
    assert all(np.array_equal(images[one], everything[3 * one]) for one in range(3))
    assert len(images) == 3


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    tmp_path.joinpath("notes.txt").write_text("none here")
    with pytest.raises(InputError, match="no images"):
        CalibrationImages(tmp_path, 3)


def write_network(path: Path, takes: ExportedInput) -> None:
    """Write three convolutions, whose last's mean is decoded by an exponential, as an ONNX or OpenVINO file."""
    onnx = pytest.importorskip("onnx")
    helper, numbers = onnx.helper, np.random.default_rng(0)
    batch = [] if takes.batch is None else [takes.batch]
    kind = onnx.TensorProto.UINT8 if takes.dtype == "uint8" else onnx.TensorProto.FLOAT
    image = helper.make_tensor_value_info("image", kind, [*batch, 3, SIDE, SIDE])
    result = helper.make_tensor_value_info("boxes", onnx.TensorProto.FLOAT, [takes.batch or 1, 4, 1, 1])
    weights = {
        "first": numbers.normal(0, 0.1, (8, 3, 3, 3)).astype(np.float32),
        "second": numbers.normal(0, 0.1, (4, 8, 3, 3)).astype(np.float32),
        "third": numbers.normal(0, 0.3, (4, 4, 1, 1)).astype(np.float32),
        "scale": np.float32(1 / 255 if takes.dtype == "uint8" else 1),
        "shape": np.array([-1, 3, SIDE, SIDE]),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["numbers"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["numbers", "scale"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "shape"], ["batched"]),
        helper.make_node("Conv", ["batched", "first"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["c", "third"], ["last"]),
        helper.make_node("GlobalAveragePool", ["last"], ["d"]),
        helper.make_node("Exp", ["d"], ["boxes"]),
    ]
    constants = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "network", [image], [result], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.helper.set_model_props(model, {KEY: METADATA.to_json()})
    source = path.with_suffix(".onnx")
    onnx.save(model, source)
    if path.suffix == ".xml":
        openvino = pytest.importorskip("openvino")
        converted = openvino.Core().read_model(source)
        converted.set_rt_info(METADATA.to_json(), [KEY])
        openvino.save_model(converted, path, compress_to_fp16=False)


def run(path: Path, image: NDArray[Any]) -> tuple[NDArray[np.float32], str]:
    """Return the result and the metadata, of a runtime that is called directly."""
    if path.suffix == ".xml":
        openvino: Any = pytest.importorskip("openvino")

        model = openvino.Core().read_model(path)
        return openvino.compile_model(model, "CPU")(image)[0], model.get_rt_info([KEY]).astype(str)
    onnxruntime: Any = pytest.importorskip("onnxruntime")

    session = onnxruntime.InferenceSession(path)
    return session.run(None, {"image": image})[0], session.get_modelmeta().custom_metadata_map[KEY]


@pytest.mark.parametrize(
    ("name", "takes"),
    [
        ("model.onnx", ExportedInput()),
        ("model.xml", ExportedInput()),
        ("model.xml", ExportedInput(dtype="float32", size=(SIDE, SIDE), batch=2)),
    ],
)
def test_a_quantized_file_computes_nearly_the_same(tmp_path: Path, name: str, takes: ExportedInput) -> None:
    pytest.importorskip("nncf")
    path = tmp_path / name
    write_network(path, takes)
    images = CalibrationImages(folder_of(tmp_path / "images", 4), 3)
    given: NDArray[Any] = images[0] if takes.dtype == "uint8" else np.stack([images[0] / np.float32(255)] * 2)
    before, _ = run(path, given)
    quantize_file(path, "onnx" if path.suffix == ".onnx" else "openvino", images, takes)
    after, text = run(path, given)
    assert text == METADATA.to_json()
    assert after == pytest.approx(before, rel=0.02)
    assert np.abs(after - before).max() > 0  # integers cannot be exact


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    takes = ExportedInput(size=(SIDE, SIDE))
    write_network(tmp_path / "model.onnx", takes)
    content = (tmp_path / "model.onnx").read_bytes()
    images = CalibrationImages(folder_of(tmp_path / "images", 1, side=20), 3)
    with pytest.raises(InputError, match="20x20"):
        quantize_file(tmp_path / "model.onnx", "onnx", images, takes)
    assert (tmp_path / "model.onnx").read_bytes() == content


def test_without_nncf_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(InputError, match=r"\[int8\]"):
        quantize_file(tmp_path / "model.onnx", "onnx", [np.zeros((3, 8, 8), np.uint8)], ExportedInput())
