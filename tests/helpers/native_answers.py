"""What tests of the compiled operators share: how whoever asks for them is answered."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from vovnet.ops.build import loader

Ask = Callable[[], bool]
"""Whether the operators are there."""


def forbid(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("this must not happen")


def one_warning(ask: Ask, *words: str) -> str:
    """Ask three times: False each time, and one warning in all, which holds ``words`` and how to silence it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [ask() for _ in range(3)] == [False] * 3
    assert len(caught) == 1, [str(entry.message) for entry in caught]
    text = str(caught[0].message)
    for word in (*words, "VOVNET_OPS=off"):
        assert word in text, text
    assert "\n" not in text
    return text


def required(monkeypatch: pytest.MonkeyPatch, ask: Ask, *words: str) -> None:
    """The same cause is an error where the operators are required."""
    monkeypatch.setenv("VOVNET_OPS", "require")
    monkeypatch.setattr(loader, "_failures", {})
    for _ in range(2):
        with pytest.raises(RuntimeError, match="VOVNET_OPS=require") as caught:
            ask()
        for word in words:
            assert word in str(caught.value)


class AsksInTheWorker(Dataset[Any]):
    def __init__(self, ask: Ask) -> None:
        self.ask = ask

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[bool, str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = self.ask()
        return found, " ".join(str(entry.message) for entry in caught)


def answers_of_a_worker(ask: Ask) -> list[tuple[bool, str]]:
    """What two questions in a DataLoader's forked worker get, and the warnings beside."""
    loader = DataLoader(AsksInTheWorker(ask), batch_size=None, num_workers=1, multiprocessing_context="fork")
    return [(found, text) for found, text in loader]
