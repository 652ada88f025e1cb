"""Helpers for the tests of building and loading the compiled operators."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from vovnet.ops.build import loader

Ask = Callable[[], bool]
"""Returns True if the operators are available."""


def forbid(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("this must not happen")


def one_warning(ask: Ask, *words: str) -> str:
    """Check that three calls return False, and that they warn once, with ``words`` and how to silence the warning."""
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
    """Check that the same cause is an error if the operators are required."""
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
    """Return the results and warnings of two calls in a DataLoader's forked worker."""
    loader = DataLoader(AsksInTheWorker(ask), batch_size=None, num_workers=1, multiprocessing_context="fork")
    return [(found, text) for found, text in loader]
