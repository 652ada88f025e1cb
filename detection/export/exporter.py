"""Write a detector as a file for another runtime."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import vovnet
from vovnet.detection.export.graph import ExportableDetector, Masks
from vovnet.errors import InputError
from vovnet.export.metadata import ExportedInput, ExportMetadata, InputType, Precision
from vovnet.export.nms import onnx_translations, openvino_extension
from vovnet.export.precisions import graph_precision
from vovnet.export.writing import Exportable, Format, check_output, write_exported
from vovnet.fusion.base import refuse_fused

_EXAMPLE = (310, 423)
"""Height and width of the image that a graph for all sizes is traced with; no side divides the other."""


def export_detector(
    detector: nn.Module,
    output: str | os.PathLike[str],
    format: Format,
    *,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    masks: Masks | None = "box",
    input: InputType = "uint8",
    precision: Precision = "fp32",
    calibration: Sequence[NDArray[np.uint8]] | None = None,
) -> Path:
    """Write a detector, with its pre- and postprocessing, as a file for another runtime.

    The file takes ``image``, (C, H, W) pixels of the original size, and returns ``boxes`` (K, 4) in these pixels,
    ``scores`` (K,), ``labels`` (K,), ``masks`` if the detector has them, and ``count``: the first ``count`` rows are
    detections, the best first. With a batch, all of them have one more dimension in front.

    Args:
        detector: a detector of :func:`vovnet.hub.load_detector`.
        output: name of the file; its suffix must be that of the format: ``.onnx``, ``.xml`` (OpenVINO, which writes a
            ``.bin`` beside it), ``.pt2`` or ``.torchscript``.
        format: ``onnx``, ``openvino``, ``pt2`` (AOTInductor) or ``torchscript``.
        size: height and width in pixels of every image; None makes a file for images of all sizes.
        batch: number of images in a call; needs ``size``. None makes a file for one image without a batch dimension.
        masks: ``box`` returns (K, 28, 28) probabilities on a grid over each box, ``image`` (K, H, W) uint8, 0 or 1.
            None leaves masks out. A detector without masks ignores it.
        input: ``uint8`` takes pixels in 0..255, ``float32`` in 0..1.
        precision: the numbers that convolutions multiply; coordinates and scores are float32. An OpenVINO file of bf16
            holds float32 and asks the runtime for bf16; one of fp16 holds fp16 and is computed in float32.
        calibration: for int8: images (C, H, W) that are typical of what the file will see.

    Returns:
        The file.

    Raises:
        InputError: an argument cannot be used, an extra is missing, or the exporter refuses the detector.
    """
    check_output(output, format)
    own = graph_precision(format, precision)
    exportable = exportable_detector(detector, size=size, batch=batch, masks=masks, input=input, precision=own)
    return write_exported(exportable, output, format, precision=precision, calibration=calibration)


def exportable_detector(
    detector: nn.Module,
    *,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    masks: Masks | None = "box",
    input: InputType = "uint8",
    precision: Precision = "fp32",
) -> Exportable:
    """Return a detector as the writers take it; the arguments are those of :func:`export_detector`."""
    if batch is not None and size is None:
        raise InputError(f"batch {batch}: images of a batch have one size; give it, as in --size 800x1344")
    refuse_fused(detector, "detector")
    parts: Any = copy.deepcopy(detector).eval().cpu()
    has_masks = getattr(parts, "roi_heads", None) is not None and parts.roi_heads.has_mask()
    graph = ExportableDetector(parts, masks=masks if has_masks else None, batched=batch is not None, size=size)
    graph.set_precision({"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32))
    channels = len(parts.transform.image_mean)
    shape = (channels, *(size or _EXAMPLE))
    dtype = torch.uint8 if input == "uint8" else torch.float32
    metadata = _metadata(detector, graph, ExportedInput(channels, input, size, batch), precision)
    return Exportable(
        graph.eval().requires_grad_(False),
        torch.zeros(shape if batch is None else (batch, *shape), dtype=dtype),
        size is None,
        graph.output_names,
        metadata,
        onnx_translations,
        lambda: [openvino_extension()],
    )


def _metadata(detector: Any, graph: ExportableDetector, input: ExportedInput, precision: Precision) -> ExportMetadata:
    heads = getattr(detector, "roi_heads", detector)
    return ExportMetadata(
        kind="detector",
        version=vovnet.__version__,
        input=input,
        categories=list(detector.categories),
        masks=graph.masks,
        keypoints=detector.recipe.num_keypoints if graph.keypoints else None,
        box_format="xyxy_inclusive" if graph.rules.inclusive else "xyxy",
        preprocessing=detector.preprocessing,
        thresholds={"score": heads.score_thresh, "nms": heads.nms_thresh, "detections": heads.detections_per_img},
        model=dataclasses.asdict(detector.recipe),
        precision=precision,
    )
