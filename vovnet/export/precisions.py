"""Which precisions the files of each format can have."""

from __future__ import annotations

from typing import Literal

from vovnet.errors import InputError
from vovnet.export.metadata import Precision

Format = Literal["onnx", "openvino", "pt2", "torchscript"]

PRECISIONS: dict[Format, tuple[Precision, ...]] = {
    "onnx": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "fp16", "bf16", "int8"),
    "pt2": ("fp32", "fp16", "bf16"),
    "torchscript": ("fp32", "fp16", "bf16"),
}
"""The precisions that a file of each format can have."""

_NO_PRECISION: dict[tuple[str, str], str] = {
    ("onnx", "bf16"): "ONNX Runtime has no convolutions of bf16 on CPUs",
    ("pt2", "int8"): "int8 is made by NNCF, which changes files of ONNX and OpenVINO",
    ("torchscript", "int8"): "int8 is made by NNCF, which changes files of ONNX and OpenVINO",
}


def check_precision(format: Format, precision: Precision) -> None:
    """Check that a format has files of a precision.

    Raises:
        InputError: it has none.
    """
    if precision not in PRECISIONS[format]:
        raise InputError(
            f"precision {precision}: {_NO_PRECISION.get((format, precision), f'format {format} has no such files')}; "
            f"format {format} takes {', '.join(PRECISIONS[format])}"
        )


def graph_precision(format: Format, precision: Precision) -> Precision:
    """Return the precision of the graph to write for a file of a precision.

    OpenVINO converts what it computes with itself, and NNCF takes a graph of float32.

    Raises:
        InputError: the format has no files of this precision.
    """
    check_precision(format, precision)
    return "fp32" if format == "openvino" or precision == "int8" else precision
