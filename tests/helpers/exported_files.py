"""Small files as `vovnet export` writes them, made by hand: a detector that finds two boxes in every image.

The first box is the left half of the image and has label 2; its score is the mean of the pixels. The second is the
whole image, with label 1 and a score of 0.25. Two rows of padding follow.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vovnet.export.metadata import KEY, ExportedInput, ExportMetadata

CATEGORIES: Any = [{"id": 7, "name": "cell"}, {"id": 3, "name": "disc"}]
ROWS = 4
FOUND = 2
GRID = 28

DETECTOR = ExportMetadata(
    kind="detector",
    version="0.1.0",
    input=ExportedInput(),
    categories=CATEGORIES,
    masks="box",
    preprocessing={"in_chans": 3, "min_size": 800, "max_size": 1333},
    thresholds={"score": 0.05, "nms": 0.5, "detections": 100},
    model={},
)
CLASSIFIER = ExportMetadata(
    kind="classifier",
    version="0.1.0",
    input=ExportedInput(),
    categories=[{"id": index, "name": name} for index, name in enumerate(("red", "green", "blue"))],
)


def grid() -> NDArray[np.float32]:
    """The masks (ROWS, 28, 28): probabilities that fall from left to right, from top to bottom, and two of padding."""
    slope = np.linspace(0.9, 0.1, GRID, dtype=np.float32)
    rows = np.broadcast_to(slope, (GRID, GRID))
    return np.stack([rows, rows.T, np.zeros_like(rows), np.zeros_like(rows)])


def expected(image: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """The outputs for an image (C, H, W), but the masks."""
    height, width = image.shape[1:]
    boxes = np.zeros((ROWS, 4), np.float32)
    boxes[:FOUND] = [[0, 0, width / 2, height], [0, 0, width, height]]
    scores = np.array([image.mean() / 255, 0.25, 0, 0], np.float32)
    return {"boxes": boxes, "scores": scores, "labels": np.array([2, 1, 0, 0]), "count": np.array(FOUND)}


def write_onnx(path: Path, metadata: ExportMetadata | str | None = DETECTOR) -> Path:
    """Write a detector, or a classifier whose probabilities are the means of the channels, as the metadata says."""
    import onnx
    from onnx import TensorProto, helper

    known = metadata if isinstance(metadata, ExportMetadata) else DETECTOR
    size: Any = known.input.size or ("height", "width")
    kind = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}[known.input.dtype]
    batch = [] if known.input.batch is None else [known.input.batch]
    image = helper.make_tensor_value_info("image", kind, [*batch, known.input.channels, *size])
    nodes, outputs = _classifier(known) if known.kind == "classifier" else _detector(known)
    graph = helper.make_graph(nodes, "made_by_hand", [image], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if metadata is not None:
        text = metadata if isinstance(metadata, str) else metadata.to_json()
        helper.set_model_props(model, {KEY: text})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def _constant(name: str, value: NDArray[Any]) -> Any:
    from onnx import helper, numpy_helper

    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value, name))


def _pixels(metadata: ExportMetadata) -> list[Any]:
    """Nodes that make ``pixels`` (C, H, W), float in 0..1, of the input."""
    from onnx import TensorProto, helper

    scale = 255 if metadata.input.dtype == "uint8" else 1
    return [
        helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.FLOAT),
        _constant("scale", np.float32(scale)),  # type: ignore[arg-type]
        helper.make_node("Div", ["numbers", "scale"], ["pixels"]),
    ]


def _classifier(metadata: ExportMetadata) -> tuple[list[Any], list[Any]]:
    from onnx import TensorProto, helper

    nodes = [
        *_pixels(metadata),
        _constant("sides", np.array([-2, -1])),
        helper.make_node("ReduceMean", ["pixels", "sides"], ["probabilities"], keepdims=0),
    ]
    return nodes, [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["classes"])]


def _detector(metadata: ExportMetadata) -> tuple[list[Any], list[Any]]:
    from onnx import TensorProto, helper

    # A convolution whose result hardly counts, so that the runtime's threads have work.
    kernel = np.full((16, metadata.input.channels, 3, 3), 1e-9, np.float32)
    halves = np.array([[0, 0, 0.5, 1], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]], np.float32)
    nodes = [
        *_pixels(metadata),
        _constant("axis", np.array([0])),
        helper.make_node("Unsqueeze", ["pixels", "axis"], ["batch"]),
        _constant("kernel", kernel),
        helper.make_node("Conv", ["batch", "kernel"], ["convolved"], pads=[1, 1, 1, 1]),
        _constant("one", np.array([1])),
        helper.make_node("ReduceMean", ["convolved"], ["little"], keepdims=0),
        helper.make_node("ReduceMean", ["pixels"], ["mean"], keepdims=0),
        helper.make_node("Add", ["mean", "little"], ["score"]),
        helper.make_node("Unsqueeze", ["score", "axis"], ["first"]),
        _constant("others", np.array([0.25, 0, 0], np.float32)),
        helper.make_node("Concat", ["first", "others"], ["scores"], axis=0),
        helper.make_node("Shape", ["image"], ["shape"]),
        _constant("turned", np.array([2, 1, 2, 1])),
        helper.make_node("Gather", ["shape", "turned"], ["corners"], axis=0),
        helper.make_node("Cast", ["corners"], ["sides"], to=TensorProto.FLOAT),
        _constant("halves", halves),
        helper.make_node("Mul", ["halves", "sides"], ["boxes"]),
        _constant("labels", np.array([2, 1, 0, 0])),
        _constant("count", np.array(FOUND)),
    ]
    outputs = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [ROWS, 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [ROWS]),
        helper.make_tensor_value_info("labels", TensorProto.INT64, [ROWS]),
        helper.make_tensor_value_info("count", TensorProto.INT64, []),
    ]
    if metadata.keypoints is not None:
        points = np.full((ROWS, metadata.keypoints, 3), 0.75, np.float32)
        nodes.append(_constant("keypoints", points))
        outputs.append(helper.make_tensor_value_info("keypoints", TensorProto.FLOAT, list(points.shape)))
    if metadata.masks == "box":
        nodes.append(_constant("masks", grid()))
        outputs.append(helper.make_tensor_value_info("masks", TensorProto.FLOAT, [ROWS, GRID, GRID]))
    if metadata.masks == "image":
        nodes += [
            _constant("zero", np.float32(0.5)),  # type: ignore[arg-type]
            helper.make_node("Slice", ["pixels", "axis", "one"], ["plane"]),
            helper.make_node("Greater", ["plane", "zero"], ["bright"]),
            helper.make_node("Cast", ["bright"], ["bits"], to=TensorProto.UINT8),
            _constant("times", np.array([ROWS, 1, 1])),
            helper.make_node("Tile", ["bits", "times"], ["masks"]),
        ]
        outputs.append(helper.make_tensor_value_info("masks", TensorProto.UINT8, [ROWS, "height", "width"]))
    return nodes, outputs


def write_openvino(path: Path, metadata: ExportMetadata | str | None = DETECTOR) -> Path:
    """Write the detector of :func:`write_onnx` as OpenVINO's ``.xml`` and ``.bin``."""
    import openvino

    source = write_onnx(path.with_suffix(".onnx"), metadata)
    model = openvino.Core().read_model(source)
    if metadata is not None:
        model.set_rt_info(metadata if isinstance(metadata, str) else metadata.to_json(), [KEY])
    for port in (*model.inputs, *model.outputs):  # as compilers of OpenVINO add names
        port.get_tensor().add_names({f"0_{port.get_any_name()}"})
    openvino.save_model(model, path, compress_to_fp16=False)
    source.unlink()
    return path


def changed(metadata: ExportMetadata = DETECTOR, **values: Any) -> ExportMetadata:
    """Metadata with other values; those of the input by their names."""
    inner = {key: values.pop(key) for key in ("channels", "dtype", "size", "batch") if key in values}
    return dataclasses.replace(metadata, input=dataclasses.replace(metadata.input, **inner), **values)
