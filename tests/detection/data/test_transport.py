"""A packed batch arrives whole, without /dev/shm; what cannot be sent is an error in the worker."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import tv_tensors

from vovnet.detection.data import transport
from vovnet.detection.data.failures import LoaderError
from vovnet.detection.data.transport import PREFETCH, Parcel, pack

needs_memory_files = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no files in memory on this system")

DTYPES = [torch.uint8, torch.bool, torch.int64, torch.float32, torch.float64, torch.bfloat16, torch.complex64]


def sent(batch: Any) -> Any:
    """Return what the receiver gets. The message takes the way of a queue."""
    return pickle.loads(pickle.dumps(pack(batch))).unpack()


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    values = torch.arange(torch.Size(shape).numel()).reshape(shape) * draw(st.sampled_from([1, 7]))
    tensor = values.to(draw(st.sampled_from(DTYPES)))
    return tensor.transpose(0, -1) if shape and draw(st.booleans()) else tensor


@given(st.lists(tensors(), max_size=5), st.booleans())
def test_every_tensor_arrives(values: list[torch.Tensor], large: bool) -> None:
    image = torch.arange(3 * 100 * 90, dtype=torch.uint8).view(3, 100, 90)
    batch = [*values, *([image] if large else [])]
    arrived = sent(batch)
    assert len(arrived) == len(batch)
    for one, other in zip(batch, arrived, strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype


def test_a_single_value_of_any_stride_arrives() -> None:
    (arrived,) = sent([torch.tensor(3).expand(1)])  # of stride 0, and yet contiguous
    assert arrived.tolist() == [3]


def test_anything_else_arrives() -> None:
    target = {"image_id": 3, "names": ["a", "ж"], "nested": {"boxes": torch.ones(2, 4, requires_grad=True)}}
    arrived = sent(([tv_tensors.Image(torch.zeros(3, 4, 5))], [target]))
    assert type(arrived[0][0]) is torch.Tensor
    assert arrived[1][0]["names"] == ["a", "ж"]
    assert torch.equal(arrived[1][0]["nested"]["boxes"], torch.ones(2, 4))
    assert sent([]) == []
    sparse = torch.eye(3).to_sparse()
    assert torch.equal(sent([sparse])[0].to_dense(), torch.eye(3))


def test_tensors_can_be_written_to_and_small_ones_own_their_memory() -> None:
    image, boxes = sent([torch.zeros(3, 50, 50), torch.zeros(1, 4)])
    image += 1
    boxes += 1
    assert boxes.untyped_storage().nbytes() == 16


@needs_memory_files
def test_tensors_are_in_files_in_memory_of_which_few_stay_open() -> None:
    before = set(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else set()
    parcels = [pack([torch.full((10_000,), number)]) for number in range(PREFETCH + 4)]
    assert all(parcel.path is not None and parcel.content is None for parcel in parcels)
    assert max(len(pickle.dumps(parcel)) for parcel in parcels) < 1000
    assert len(transport._kept) == PREFETCH + 1
    for number, parcel in enumerate(parcels[-PREFETCH - 1 :], start=3):
        assert torch.equal(parcel.unpack()[0], torch.full((10_000,), number))
    if before:
        assert set(os.listdir("/dev/shm")) <= before


@pytest.mark.parametrize("number", [errno.EPERM, errno.EMFILE, errno.ENOSPC, errno.ENOMEM])
@needs_memory_files
def test_without_files_in_memory_tensors_are_in_the_message(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(name: str) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "memfd_create", refuse)
    parcel = pickle.loads(pickle.dumps(pack([torch.arange(5000), torch.ones(3).bfloat16()])))
    assert parcel.fallback == os.strerror(number)
    first, second = parcel.unpack()
    assert torch.equal(first, torch.arange(5000))
    assert torch.equal(second, torch.ones(3).bfloat16())


def test_a_system_without_them_is_served_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    parcel = pack([torch.arange(5000)])
    assert parcel.fallback is None
    assert torch.equal(parcel.unpack()[0], torch.arange(5000))


@needs_memory_files
def test_a_process_that_may_not_look_at_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    parcel = pack([torch.arange(5000)])
    assert parcel.fallback
    assert torch.equal(parcel.unpack()[0], torch.arange(5000))


class Unpicklable:
    def __reduce__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize("value", [Unpicklable(), lambda: None, open(os.devnull)], ids=["own", "function", "file"])  # noqa: SIM115
def test_what_cannot_be_pickled_is_an_error_here(value: object) -> None:
    with pytest.raises((ZeroDivisionError, AttributeError, TypeError, pickle.PicklingError)):
        pack([torch.zeros(3), value])


@pytest.mark.parametrize(("number", "word"), [(errno.ENOENT, "ended"), (errno.EMFILE, "ulimit")])
@pytest.mark.parametrize("pinned", [False, True])
def test_a_batch_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch, number: int, word: str, pinned: bool) -> None:
    def refuse(path: str, flags: int) -> int:
        raise OSError(number, os.strerror(number), path)

    parcel = Parcel(b"", 10, path="/proc/1/fd/99")
    monkeypatch.setattr(os, "open", refuse)
    if pinned:
        error = parcel.pin_memory()
        assert isinstance(error, LoaderError)
        assert word in str(error)
    else:
        with pytest.raises(LoaderError, match=word):
            parcel.unpack()
