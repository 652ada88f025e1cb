"""Open an exported file in the runtime of its format, and run it on images."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vovnet.errors import InputError, absent_package, install_advice
from vovnet.export.archives import is_torchscript
from vovnet.export.metadata import ExportMetadata
from vovnet.export.sessions import Session
from vovnet.folders.home import expand_home
from vovnet.processes import ForkSafeLock

FORMATS: Mapping[str, str] = {
    ".onnx": "onnx",
    ".xml": "openvino",
    ".pt2": "pt2",
    ".torchscript": "torchscript",
    ".pt": "torchscript",
}
"""The format of an exported file by its suffix."""

_Opener = Callable[[Path, "int | None"], tuple[ExportMetadata, Session]]

_reopening = ForkSafeLock()
_open_models: weakref.WeakSet[ExportedModel] = weakref.WeakSet()
_registered = False


class ExportedModel:
    """An exported file that is open. Several threads may use it, and children of ``fork``, which open it again.

    Attributes:
        path: the file.
        metadata: what it says about itself.
    """

    def __init__(self, path: Path, metadata: ExportMetadata, session: Session, opener: Callable[[], Session]) -> None:
        self.path = path
        self.metadata = metadata
        self._session: Session | None = session
        self._opener = opener
        self._process = os.getpid()
        _open_models.add(self)
        _handle_forks()

    def run(self, image: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name.

        Args:
            image: (C, H, W), RGB or grey; with a batch (N, C, H, W). uint8 in 0..255 for every file; a file of
                float32 input also takes that, in 0..1.

        Raises:
            InputError: the image has another shape or type than the file takes, or the runtime fails.
        """
        return self._own_session().run(self._checked(image))

    def run_each(self, images: Sequence[NDArray[Any]]) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the outputs of each image (C, H, W), without a batch dimension.

        A file with batches of N takes N images at a time, and the last of them to fill a batch; all have one size.
        """
        batch = self.metadata.input.batch
        if batch is None:
            yield from map(self.run, images)
            return
        for start in range(0, len(images), batch):
            chunk = list(images[start : start + batch])
            found = self.run(np.stack(chunk + chunk[-1:] * (batch - len(chunk))))
            yield from ({name: values[position] for name, values in found.items()} for position in range(len(chunk)))

    def _checked(self, image: NDArray[Any]) -> NDArray[Any]:
        given = self.metadata.input
        batch = () if given.batch is None else (given.batch,)
        size = image.shape[-2:] if given.size is None else given.size
        if image.shape != (*batch, given.channels, *size) or min(image.shape) < 1:
            expected = [*batch, given.channels, *("HW" if given.size is None else given.size)]
            raise InputError(f"image: {self.path} takes the shape {expected}, got {list(image.shape)}")
        if image.dtype == np.uint8 and given.dtype == "float32":
            image = image.astype(np.float32) / np.float32(255)
        if image.dtype != np.dtype(given.dtype):
            raise InputError(f"image: {self.path} takes {given.dtype}, got {image.dtype}")
        return np.ascontiguousarray(image)

    def _own_session(self) -> Session:
        session = self._session
        if session is None or (self._process != os.getpid() and not session.survives_forks):
            with _reopening:
                if self._process != os.getpid() or self._session is None:
                    self._abandon()  # a program of C forked without Python's handlers
                    self._session = self._opener()
                    self._process = os.getpid()
                session = self._session
        return session

    def _abandon(self) -> None:
        """In a child: forget the parent's session without running its destructors, which would wait forever."""
        if self._session is not None and not self._session.survives_forks:
            for one in self._session.native():
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))
            self._session = None


def _handle_forks() -> None:
    global _registered
    if not _registered and hasattr(os, "register_at_fork"):
        _registered = True
        os.register_at_fork(after_in_child=_abandon_all)


def _abandon_all() -> None:
    for model in list(_open_models):
        model._abandon()


def is_exported(weights: str | os.PathLike[str]) -> bool:
    """Return True if weights are those of an exported file: by its suffix; ``.pt`` only if the file is TorchScript."""
    path = expand_home(weights)
    suffix = path.suffix.lower()
    if suffix not in FORMATS or path.is_dir():
        return False
    return suffix != ".pt" or is_torchscript(path)


def open_exported(path: str | os.PathLike[str], *, threads: int | None = None) -> ExportedModel:
    """Open an exported file.

    ``.pt2`` and TorchScript files hold programs, which can do anything: open only files that you trust.

    Args:
        path: ``.onnx``, ``.xml`` (OpenVINO, with its ``.bin`` beside it), ``.pt2``, ``.torchscript`` or ``.pt``.
        threads: how many threads compute; None lets the runtime choose.

    Raises:
        InputError: it is no such file, is damaged, or has no metadata of vovnet; or the runtime is not installed.
    """
    file = expand_home(path)
    kind = FORMATS.get(file.suffix.lower())
    if kind is None:
        raise InputError(f"{file}: expected an exported file, with the suffix {', '.join(FORMATS)}")
    if threads is not None and (isinstance(threads, bool) or threads < 1):
        raise InputError(f"threads: expected a number of at least 1, got {threads}")
    if not file.is_file():
        raise InputError(f"{file}: {'is not a file' if file.exists() else 'no such file'}; expected an exported file")
    opener = _opener(kind, file)
    metadata, session = opener(file, threads)
    return ExportedModel(file, metadata, session, lambda: opener(file, threads)[1])


def _opener(kind: str, path: Path) -> _Opener:
    """Return what opens files of a format. Each runtime is imported when a file needs it."""
    if kind == "onnx":
        from vovnet.export.onnx_session import open_onnx

        return open_onnx
    if kind == "openvino":
        from vovnet.export.openvino_session import open_openvino

        return open_openvino
    if missing := absent_package("torch", "torchvision"):
        raise InputError(f"{path}: needs '{missing}', which is not installed: {install_advice()}")
    from vovnet.export.torch_session import open_torch

    return open_torch
