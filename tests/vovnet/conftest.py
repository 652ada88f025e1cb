"""Fixtures for tests of fused models."""

from __future__ import annotations

import warnings

import pytest

from vovnet.ops.build import loader


@pytest.fixture(params=["plain", "kernels"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test twice: with PyTorch's operators, and with the compiled kernels if they can be built."""
    if request.param == "plain":
        monkeypatch.setenv("VOVNET_OPS", "off")
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not loader.cpu_operators():
                pytest.skip("needs the compiled operators for the CPU")
    return str(request.param)
