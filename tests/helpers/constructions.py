"""Count how often networks are built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import nn


@contextmanager
def constructions(patch: pytest.MonkeyPatch, *classes: type[nn.Module]) -> Iterator[Counter[str]]:
    """Count the objects of each class that are made in the block, by the name of the class."""
    made: Counter[str] = Counter()

    def counting(cls: type[nn.Module]) -> Any:
        build = cls.__init__

        def counted(self: nn.Module, *args: Any, **kwargs: Any) -> None:
            made[cls.__name__] += 1
            build(self, *args, **kwargs)

        return counted

    with patch.context() as patched:
        for cls in classes:
            patched.setattr(cls, "__init__", counting(cls))
        yield made
