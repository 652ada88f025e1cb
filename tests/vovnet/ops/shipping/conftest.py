"""The tests compile operators: they need a PyTorch whose stable C++ interface has what these call."""

import pytest
import torch
from packaging.version import Version

from vovnet.ops.build.sources import OWN_MEMORY_TORCH


@pytest.fixture(autouse=True, scope="session")
def stable_interface() -> None:
    """Skip with an older PyTorch: there everything runs as plain PyTorch."""
    if Version(torch.__version__).release < OWN_MEMORY_TORCH:
        pytest.skip(f"needs PyTorch {'.'.join(map(str, OWN_MEMORY_TORCH))} or later, which operators are compiled with")
