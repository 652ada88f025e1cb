"""What a backend is given: the network, its images, and the network as a file for other runtimes."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import vovnet
from vovnet.detection.cpu_benchmark.cases import Case, quantization_inputs
from vovnet.detection.export.exporter import exportable_detector
from vovnet.export.metadata import ExportedInput, ExportMetadata
from vovnet.export.quantization import quantize_file
from vovnet.export.writing import SUFFIXES, Exportable, Format, write_exported

Runner = Callable[[], Any]
"""Runs the network once and returns a backbone's list of maps or a detector's list of dictionaries. The next call may
overwrite the result."""


class UnavailableError(Exception):
    """A backend cannot take part; the message says why."""


@dataclass
class Task:
    """The network and the images that a backend runs.

    Attributes:
        case: the case that is measured.
        model: the network in float32 and evaluation mode; backends must not change it.
        images: (N, 3, H, W), float32, contiguous.
        folder: temporary folder for files.
    """

    case: Case
    model: nn.Module
    images: Tensor
    folder: Path
    _files: set[Path] = field(default_factory=set)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the numbers that are multiplied."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[self.case.precision]

    @property
    def file_input(self) -> NDArray[np.float32]:
        """The input of the exported file: the batch of images, or for a detector its one image (3, H, W)."""
        return self._as_file_takes(self.images)

    @property
    def output_names(self) -> list[str]:
        """The names of the file's outputs."""
        return ["boxes", "scores", "labels", "count"] if self.case.detector else [f"map{i}" for i in range(4)]

    def file(self, format: Format, *, int8: bool = False) -> Path:
        """Return the network as a file of fixed shapes, in float32 or quantized; written on first use.

        It takes :attr:`file_input`. A backbone's outputs are its maps, a detector's those of
        :func:`vovnet.detection.export.export_detector`.
        """
        path = self.folder / f"{'int8' if int8 else 'float'}{SUFFIXES[format]}"
        if path not in self._files:
            if int8:
                self._quantize(self.file(format), path, format)
            else:
                write_exported(self._exportable(), path, format)
            self._files.add(path)
        return path

    def _exportable(self) -> Exportable:
        size = (self.case.height, self.case.width)
        if self.case.detector:
            if len(self.images) != 1:
                raise UnavailableError("takes one image at a time")
            return exportable_detector(self.model, size=size, masks=None, input="float32")
        metadata = ExportMetadata(
            kind="classifier",
            version=vovnet.__version__,
            input=ExportedInput(dtype="float32", size=size, batch=len(self.images)),
            categories=[{"id": 0, "name": "map"}],
        )
        module = _Tuple(copy.deepcopy(self.model)).eval().requires_grad_(False)
        return Exportable(module, self.images, False, self.output_names, metadata)

    def _quantize(self, file: Path, path: Path, format: Format) -> None:
        for suffix in {file.suffix, ".bin"}:  # OpenVINO keeps the weights in a second file
            if file.with_suffix(suffix).exists():
                shutil.copy(file.with_suffix(suffix), path.with_suffix(suffix))
        inputs: Any = [self._as_file_takes(images) for images in quantization_inputs(self.case)]
        # Described as uint8 of any size, inputs stay as they are; they are what the file takes already.
        quantize_file(path, format, inputs, ExportedInput(dtype="uint8"))

    def _as_file_takes(self, images: Tensor) -> NDArray[np.float32]:
        array: NDArray[np.float32] = (images[0] if self.case.detector else images).numpy()
        return array


class _Tuple(nn.Module):
    """Returns a backbone's list of maps as a tuple, which the writers expect."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model(images))
