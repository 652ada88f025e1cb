"""What tests of fused models share: each runs as plain PyTorch, and by the compiled kernels where they can be had."""

from __future__ import annotations

import warnings

import pytest

from vovnet.ops.build import loader


@pytest.fixture(params=["plain", "kernels"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How fused layers compute in the test."""
    if request.param == "plain":
        monkeypatch.setenv("VOVNET_OPS", "off")
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not loader.cpu_operators():
                pytest.skip("needs the compiled operators for the CPU")
    return str(request.param)
