"""Helpers for tests of hostile input: files that would run code, a watch over memory, the one line of an error."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vovnet.errors import InputError


class RunsCode:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


class Memory(TorchDispatchMode):
    """The largest tensor that any operation makes, meta tensors aside, which take no memory."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, list | tuple) else [result]:
            if isinstance(value, torch.Tensor) and value.device.type != "meta":
                self.largest = max(self.largest, value.numel())
        return result


def refused(call: Callable[[], object], *words: str) -> str:
    """The one line of the InputError that a call ends in, which has these words."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message
