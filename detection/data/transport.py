"""Send batches from loader processes to the process that started them, without /dev/shm and without a second thread.

torch shares each tensor in a file in /dev/shm (64 MB in a Docker container) and pickles batches in a thread of the
worker. An error in that thread loses the batch, and the receiver waits for it forever. Here the worker packs a batch
before it hands it over: what can fail fails there, as an exception. The message itself is small and always picklable.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
import pickle
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vovnet.detection.data.failures import NO_WORKERS, LoaderError

PREFETCH = 2
"""Batches that a worker loads in advance (``prefetch_factor`` of torch's DataLoader)."""

_ALIGNMENT = 64
_SMALL = 4096


@dataclass(frozen=True)
class Parcel:
    """A packed batch.

    Its tensors lie behind one another in an anonymous file in memory, which is not limited by the size of /dev/shm. The
    receiver opens it under ``path``, and needs no answer from the worker, which may be stopped. Where there are no such
    files, ``content`` has the bytes.
    """

    rest: bytes
    """The batch without its tensors, pickled."""
    size: int
    """Bytes of all tensors."""
    path: str | None = None
    content: bytearray | None = None
    fallback: str | None = None
    """Why this system's files in memory could not be used."""
    block: Tensor | None = None
    """The tensors' bytes, after they were opened."""

    def pin_memory(self) -> Parcel | LoaderError:
        """Return the parcel with its tensors in pinned memory. torch calls this in its pinning thread."""
        try:
            return Parcel(self.rest, self.size, fallback=self.fallback, block=self.open().pin_memory())
        except LoaderError as error:
            return error  # as a value: torch would put a traceback into its message

    def open(self) -> Tensor:
        """Return the bytes of all tensors, uint8 (size,).

        Raises:
            LoaderError: the worker has ended, or this process has too many open files.
        """
        if self.block is not None:
            return self.block
        if self.content is not None:
            return torch.frombuffer(self.content, dtype=torch.uint8)
        try:
            descriptor = os.open(str(self.path), os.O_RDWR)
            try:
                return torch.frombuffer(mmap.mmap(descriptor, self.size), dtype=torch.uint8)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                message = f"too many open files to receive a batch; raise the limit (ulimit -n); {NO_WORKERS}"
            else:
                message = f"a batch cannot be received ({error.strerror}): its loader process has ended; {NO_WORKERS}"
            raise LoaderError(message) from error

    def unpack(self) -> Any:
        """Return the batch. Large tensors are views of one block of memory.

        Raises:
            LoaderError: see :meth:`open`.
        """
        return _Unpickler(self.rest, self.open()).load()


def pack(batch: Any) -> Parcel:
    """Pack a batch in a worker.

    Args:
        batch: Nested lists and dicts of tensors and of anything else that can be pickled. Subclasses of tensors arrive
            as plain tensors.

    Raises:
        Exception: A value cannot be pickled; its own methods decide the kind of error.
    """
    rest = io.BytesIO()
    pickler = _Pickler(rest)
    pickler.dump(batch)
    size = max(1, pickler.size)
    fallback = None
    if hasattr(os, "memfd_create"):
        try:
            return Parcel(rest.getvalue(), size, path=_to_memory_file(pickler.tensors))
        except OSError as error:
            fallback = error.strerror or str(error)
    content = io.BytesIO(bytes(size))
    _write(pickler.tensors, content)
    return Parcel(rest.getvalue(), size, content=bytearray(content.getbuffer()), fallback=fallback)


_kept: deque[int] = deque()
"""Descriptors of this worker's last files, oldest first. The receiver has not opened all of them yet."""


def _to_memory_file(tensors: Sequence[tuple[int, Tensor]]) -> str:
    # A process that has changed its user may not be allowed to look at its own children.
    if not os.access(f"/proc/{os.getppid()}/fd", os.R_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "no access to /proc")
    descriptor = os.memfd_create("vovnet-batch")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            _write(tensors, file)
            file.truncate(max(1, file.tell()))
    except BaseException:
        os.close(descriptor)
        raise
    _kept.append(descriptor)
    # The receiver asks a worker for a batch only after it has opened the one PREFETCH + 1 before.
    while len(_kept) > PREFETCH + 1:
        os.close(_kept.popleft())
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def _write(tensors: Sequence[tuple[int, Tensor]], file: Any) -> None:
    for offset, tensor in tensors:
        file.seek(offset)
        values = tensor.contiguous().reshape(-1)
        if values.stride(0) != 1:  # of one value: PyTorch calls it contiguous, whatever its stride is
            values = values.clone(memory_format=torch.contiguous_format)
        file.write(values.view(torch.uint8).numpy())


class _Pickler(pickle.Pickler):
    """Replace each tensor by its place in the block."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[tuple[int, Tensor]] = []
        self.size = 0

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.layout is not torch.strided or value.device.type != "cpu":
            return None
        plain = value.detach().as_subclass(Tensor)
        offset = -(-self.size // _ALIGNMENT) * _ALIGNMENT
        self.tensors.append((offset, plain))
        self.size = offset + plain.numel() * plain.element_size()
        return offset, tuple(plain.shape), plain.dtype


class _Unpickler(pickle.Unpickler):
    """Replace each tensor's place by the tensor. What this reads comes from this program's own workers."""

    def __init__(self, rest: bytes, block: Tensor) -> None:
        super().__init__(io.BytesIO(rest))
        self.block = block

    def persistent_load(self, place: Any) -> Tensor:
        offset, shape, dtype = place
        size = torch.Size(shape).numel() * dtype.itemsize
        tensor = self.block[offset : offset + size].view(dtype).view(shape)
        # A small tensor that someone keeps must not keep the whole batch.
        return tensor.clone() if size <= _SMALL else tensor
