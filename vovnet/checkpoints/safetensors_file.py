"""Read and write safetensors files, with a checksum of the tensors in the header."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from vovnet.errors import InputError, reason


class SafetensorsFile:
    """An open safetensors file, from :func:`open_safetensors`."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path = path
        self._file = file

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor, from the header alone."""
        return {key: tuple(self._file.get_slice(key).get_shape()) for key in self._file.keys()}  # noqa: SIM118

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors, as views of the file, after comparing them with the checksum in the header, if any.

        Raises:
            InputError: The checksum differs.
        """
        tensors = {key: self._file.get_tensor(key) for key in self._file.keys()}  # noqa: SIM118
        stored = (self._file.metadata() or {}).get("sha256")
        if stored is not None and stored != _checksum(tensors):
            raise InputError(
                f"{self.path}: the weights do not fit their checksum; the file is damaged, fetch or save it again"
            )
        return tensors


@contextmanager
def open_safetensors(path: Path) -> Iterator[SafetensorsFile]:
    """Open a safetensors file, to read its header first and then its tensors.

    Raises:
        InputError: The file cannot be read, is truncated or is not safetensors.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield SafetensorsFile(path, file)
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: truncated, damaged or not a safetensors file ({reason(error)}); fetch or save it again"
        ) from error


def safetensors_bytes(state: Mapping[str, Tensor]) -> bytes:
    """Return the content of a safetensors file with the tensors of a state dict and their checksum."""
    from safetensors.torch import save

    tensors = _separate(state)
    return save(tensors, metadata={"format": "pt", "sha256": _checksum(tensors)})


def _separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous CPU tensors of which no two share memory, as safetensors requires."""
    seen: set[int] = set()
    tensors = {}
    for key, value in state.items():
        tensor = value.detach().cpu().contiguous()
        if tensor.numel() and tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        tensors[key] = tensor
    return tensors


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
