"""Run ``.pt2`` (AOTInductor) and TorchScript files with PyTorch, on the CPU. Both hold programs: trust is needed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision  # noqa: F401 (its operators may be in the file)
from numpy.typing import NDArray

from vovnet.errors import InputError
from vovnet.export import nms  # noqa: F401 (registers the operator of exported detectors)
from vovnet.export.archives import stored_text
from vovnet.export.metadata import ExportMetadata, from_json
from vovnet.export.sessions import cannot_open, cannot_run, output_names

_RUNTIME = "PyTorch"


class TorchSession:
    """A compiled or scripted function of one tensor."""

    survives_forks = True  # vovnet.processes.forks sees to it

    def __init__(self, path: Path, metadata: ExportMetadata, function: Callable[[torch.Tensor], Any]) -> None:
        self._path = path
        self._function = function
        self._names = output_names(metadata)

    def run(self, image: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name."""
        try:
            with torch.inference_mode():
                found = self._function(torch.from_numpy(image))
        except RuntimeError as error:
            cannot_run(self._path, _RUNTIME, image, error)
        listed = found if isinstance(found, dict | tuple | list) else [found]
        named: dict[str, Any] = listed if isinstance(listed, dict) else dict(zip(self._names, listed, strict=False))
        if missing := [name for name in self._names if not isinstance(named.get(name), torch.Tensor)]:
            raise InputError(f"{self._path}: expected an output '{missing[0]}', got {len(named)} others")
        return {name: named[name].numpy() for name in self._names}

    def native(self) -> Sequence[object]:
        """Return nothing: no destructor waits for a thread."""
        return []


def open_torch(path: Path, threads: int | None) -> tuple[ExportMetadata, TorchSession]:
    """Open a file. ``threads`` is set for all of PyTorch.

    Raises:
        InputError: PyTorch cannot open the file, or it is not one of `vovnet export`.
    """
    metadata = from_json(stored_text(path), str(path))  # first, so that no foreign program is loaded
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        return metadata, TorchSession(path, metadata, _loaded(path))
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        cannot_open(path, _RUNTIME, error)


def _loaded(path: Path) -> Callable[[torch.Tensor], Any]:
    if path.suffix.lower() == ".pt2":
        from torch._inductor import aoti_load_package

        return aoti_load_package(str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, and stays for what cannot move on
        return torch.jit.load(str(path), map_location="cpu")
