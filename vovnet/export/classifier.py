"""Write a classifier as a file for another runtime."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import vovnet
from vovnet.classification import class_labels, evaluation_config
from vovnet.errors import InputError
from vovnet.export.evaluation_transform import EvaluationTransform
from vovnet.export.metadata import ExportedInput, ExportMetadata, InputType, Precision
from vovnet.export.precisions import graph_precision
from vovnet.export.writing import Exportable, Format, check_output, write_exported
from vovnet.fusion.base import refuse_fused

_EXAMPLE = (310, 423)
"""Height and width of the image that a graph for all sizes is traced with; no side divides the other."""

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class ExportableClassifier(nn.Module):
    """A classifier with timm's evaluation transform before it and softmax behind it.

    Args:
        model: a timm classifier in evaluation mode.
        size: height and width of every image; None for images of all sizes.
        batched: images are (N, C, H, W), and probabilities (N, classes).
        dtype: of the numbers that the network multiplies; its weights are converted in place.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        size: tuple[int, int] | None = None,
        batched: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.transform = EvaluationTransform(evaluation_config(model), size)
        self.model = model.to(dtype)
        self.batched, self.dtype = batched, dtype

    def forward(self, image: Tensor) -> Tensor:
        """Return probabilities, float32 (classes,) or, if ``batched``, (N, classes).

        Args:
            image: (C, H, W), or (N, C, H, W) if ``batched``; RGB or grey, uint8 in 0..255 or float in 0..1.
        """
        images = image if self.batched else image[None]
        pixels = images.float() if images.dtype == torch.uint8 else (images * 255).round()
        logits: Tensor = self.model(self.transform(pixels).to(self.dtype))
        probabilities = logits.float().softmax(1)
        return probabilities if self.batched else probabilities[0]


def export_classifier(
    model: nn.Module,
    output: str | os.PathLike[str],
    format: Format,
    *,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    input: InputType = "uint8",
    precision: Precision = "fp32",
    calibration: Sequence[NDArray[np.uint8]] | None = None,
) -> Path:
    """Write a classifier, with its preprocessing, as a file for another runtime.

    The file takes ``image``, (C, H, W) pixels of the original size, and returns ``probabilities`` (classes,), float32.
    With a batch, both have one more dimension in front. What :func:`vovnet.classification.classify` does to an image
    (timm's resize, crop and normalisation) is inside.

    Args:
        model: a timm classifier, as of :func:`vovnet.classification.load_classifier`.
        output: name of the file; its suffix must be that of the format: ``.onnx``, ``.xml`` (OpenVINO, which writes a
            ``.bin`` beside it), ``.pt2`` or ``.torchscript``.
        format: ``onnx``, ``openvino``, ``pt2`` (AOTInductor) or ``torchscript``.
        size: height and width in pixels of every image; None makes a file for images of all sizes. It is the size of
            the images that are given, not the network's.
        batch: number of images in a call; needs ``size``. None makes a file for one image without a batch dimension.
        input: ``uint8`` takes pixels in 0..255, ``float32`` in 0..1.
        precision: the numbers that the network multiplies. An OpenVINO file of bf16 holds float32 and asks the runtime
            for bf16; one of fp16 holds fp16 and is computed in float32.
        calibration: for int8: images (C, H, W) that are typical of what the file will see.

    Returns:
        The file.

    Raises:
        InputError: an argument cannot be used, the model is no classifier of images or resizes in a way that cannot be
            exported, an extra is missing, or the exporter refuses the model.
    """
    check_output(output, format)
    own = graph_precision(format, precision)
    exportable = exportable_classifier(model, size=size, batch=batch, input=input, precision=own)
    return write_exported(exportable, output, format, precision=precision, calibration=calibration)


def exportable_classifier(
    model: nn.Module,
    *,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    input: InputType = "uint8",
    precision: Precision = "fp32",
) -> Exportable:
    """Return a classifier as the writers take it; the arguments are those of :func:`export_classifier`."""
    _check(model, size, batch)
    config = evaluation_config(model)
    channels = int(config["input_size"][0])
    graph = ExportableClassifier(
        copy.deepcopy(model).eval().cpu(),
        size=size,
        batched=batch is not None,
        dtype=_DTYPES.get(precision, torch.float32),
    )
    shape = (channels, *(size or _EXAMPLE))
    dtype = torch.uint8 if input == "uint8" else torch.float32
    return Exportable(
        graph.eval().requires_grad_(False),
        torch.zeros(shape if batch is None else (batch, *shape), dtype=dtype),
        size is None,
        ["probabilities"],
        _metadata(model, config, ExportedInput(channels, input, size, batch), precision),
    )


def _check(model: nn.Module, size: tuple[int, int] | None, batch: int | None) -> None:
    if batch is not None and size is None:
        raise InputError(f"batch {batch}: images of a batch have one size; give it, as in --size 480x640")
    if not isinstance(getattr(model, "pretrained_cfg", None), dict) or not getattr(model, "num_classes", 0):
        raise InputError(
            f"model: expected a timm classifier, which has a pretrained_cfg and num_classes, got {type(model).__name__}"
        )
    refuse_fused(model, "model")


def _metadata(model: Any, config: dict[str, Any], input: ExportedInput, precision: Precision) -> ExportMetadata:
    return ExportMetadata(
        kind="classifier",
        version=vovnet.__version__,
        input=input,
        categories=[{"id": number, "name": name} for number, name in enumerate(class_labels(model))],
        preprocessing=config,
        model={
            "architecture": str(model.pretrained_cfg.get("architecture", type(model).__name__)),
            "arguments": {"num_classes": int(model.num_classes), "in_chans": input.channels},
        },
        precision=precision,
    )
