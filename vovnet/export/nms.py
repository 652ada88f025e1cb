"""Non-maximum suppression with an output of fixed size: the operator of exported detectors.

``torchvision.ops.nms`` returns as many indices as it keeps, so every later shape would depend on data. Here the result
has a fixed length and is padded with -1. ``torch.export`` sees one operator of known shape; ONNX and OpenVINO get the
translations at the end of this file.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchvision.ops import nms

if TYPE_CHECKING:
    from collections.abc import Callable

_REJECTED = -0.5
"""Scores are probabilities or -1, so this lies between the boxes that count and those that do not."""


def padded_nms(boxes: Tensor, scores: Tensor, iou_threshold: float, limit: int) -> Tensor:
    """Suppress overlapping boxes within each group and return the best of all groups, padded to a fixed number.

    Args:
        boxes: (G, N, 4) XYXY. Boxes suppress each other only within a group (a level or a class).
        scores: (G, N), at least 0; a box with a negative score is no candidate.
        iou_threshold: a box is dropped if its IoU with a better one that is kept is greater.
        limit: the number of indices to return.

    Returns:
        (limit,) int64: indices into the flattened (G · N) boxes, by descending score, followed by -1.
    """
    if torch.jit.is_tracing():  # TorchScript records the parts, which it can run without this package
        return _padded_nms(boxes, scores, iou_threshold, limit)
    kept: Tensor = torch.ops.vovnet.padded_nms(boxes, scores, iou_threshold, limit)
    return kept


def _padded_nms(boxes: Tensor, scores: Tensor, iou_threshold: float, limit: int) -> Tensor:
    length = scores.shape[1]
    kept = []
    for group, (candidates, values) in enumerate(zip(boxes.unbind(), scores.unbind(), strict=True)):
        rows = torch.where(values >= 0)[0]
        rows = rows[nms(candidates[rows], values[rows], iou_threshold)]
        kept.append(rows + group * length)
    indices = torch.cat(kept)
    order = scores.reshape(-1)[indices].sort(descending=True, stable=True).indices
    padding = indices.new_full((limit,), -1)
    return torch.cat((indices[order], padding))[:limit]


@torch.library.custom_op("vovnet::padded_nms", mutates_args=())
def _operator(boxes: Tensor, scores: Tensor, iou_threshold: float, limit: int) -> Tensor:
    return _padded_nms(boxes, scores, iou_threshold, limit)


@_operator.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, limit: int) -> Tensor:
    return scores.new_empty((limit,), dtype=torch.int64)


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the translation of the operator for ``torch.onnx.export``: NonMaxSuppression, then TopK with padding."""
    op: Any = import_module("onnxscript").opset18

    def translate(boxes: Any, scores: Any, iou_threshold: float, limit: int) -> Any:
        selected = op.NonMaxSuppression(
            boxes,
            op.Unsqueeze(scores, op.Constant(value_ints=[1])),
            op.Constant(value_ints=[limit]),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[_REJECTED]),
        )  # (S, 3): group, 0, row
        group, _, row = op.Split(selected, num_outputs=3, axis=1)
        length = op.Shape(scores, start=1, end=2)
        indices = op.Squeeze(op.Add(op.Mul(group, length), row), op.Constant(value_ints=[1]))
        values = op.Gather(op.Reshape(scores, op.Constant(value_ints=[-1])), indices)
        padded = op.Concat(indices, op.Constant(value_ints=[-1] * limit), axis=0)
        padded_values = op.Concat(values, op.Constant(value_floats=[-1.0] * limit), axis=0)
        _, order = op.TopK(padded_values, op.Constant(value_ints=[limit]))
        return op.Gather(padded, order)

    return {torch.ops.vovnet.padded_nms.default: translate}


def openvino_extension() -> Any:
    """Return the translation of the operator for ``openvino.convert_model`` of a ``torch.export`` program."""
    ov: Any = import_module("openvino")
    op: Any = import_module("openvino.opset14")
    extension: Any = import_module("openvino.frontend.pytorch").ConversionExtension

    def translate(context: Any) -> Any:
        boxes, scores = context.get_input(0), context.get_input(1)
        iou_threshold = context.get_values_from_const_input(2)
        limit = context.get_values_from_const_input(3)
        selected = op.non_max_suppression(
            boxes,
            op.unsqueeze(scores, op.constant([1])),
            op.constant(limit),
            op.constant(iou_threshold, ov.Type.f32),
            op.constant(_REJECTED, ov.Type.f32),
            output_type="i64",
        )
        group, _, row = op.split(selected.output(0), op.constant(1), 3).outputs()
        length = op.gather(op.shape_of(scores), op.constant([1]), op.constant(0))
        indices = op.squeeze(op.add(op.multiply(group, length), row), op.constant([1]))
        values = op.gather(op.reshape(scores, op.constant([-1]), False), indices, op.constant(0))
        padded = op.concat([indices, op.constant([-1] * limit, ov.Type.i64)], 0)
        padded_values = op.concat([values, op.constant([-1.0] * limit, ov.Type.f32)], 0)
        order = op.topk(padded_values, op.constant(limit), 0, "max", "value", index_element_type="i64", stable=True)
        return op.gather(padded, order.output(1), op.constant(0)).outputs()

    return extension("vovnet.padded_nms.default", translate)
