"""Open an exported file in the runtime of its format, and run it on images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vovnet.errors import InputError
from vovnet.export.metadata import ExportMetadata

FORMATS: Mapping[str, str] = {
    ".onnx": "onnx",
    ".xml": "openvino",
    ".pt2": "pt2",
    ".torchscript": "torchscript",
    ".pt": "torchscript",
}
"""The format of an exported file by its suffix."""


class Session(Protocol):
    """A file that is open in its runtime."""

    def run(self, image: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name, for the input as the file takes it."""


@dataclass
class ExportedModel:
    """An exported file that is open."""

    path: Path
    metadata: ExportMetadata
    session: Session

    def run(self, image: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name.

        Args:
            image: (C, H, W); with a batch (N, C, H, W).
        """
        return self.session.run(image)


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Return True if a name of weights is that of an exported file: it has the suffix of one, and is no folder."""
    return Path(path).suffix.lower() in FORMATS and not os.path.isdir(path)


def open_exported(path: str | os.PathLike[str], *, threads: int | None = None) -> ExportedModel:
    """Open an exported file.

    Args:
        path: ``.onnx``, ``.xml`` (OpenVINO, with its ``.bin`` beside it), ``.pt2``, ``.torchscript`` or ``.pt``.
        threads: how many threads compute; None lets the runtime choose.

    Raises:
        InputError: it is no such file, is damaged, or has no metadata of vovnet; or the runtime is not installed.
    """
    raise InputError(f"{path}: this version does not run exported files yet")
