"""The operators on a real GPU: every check of ``gpu_checks.py``, of the kernels only where they can be compiled.

``make gpu`` runs the same checks where there is no pytest. Without a GPU those run that need none, by plain PyTorch.
"""

from __future__ import annotations

import shutil

import pytest
import torch
from gpu_checks import CHECKS, Check

ELSEWHERE = [check for check in CHECKS if check.way == "off" and not check.needs_gpu]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and PyTorch sees none")
@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_on_a_gpu(check: Check) -> None:
    if check.way == "require" and shutil.which("nvcc") is None:
        pytest.skip("needs nvcc on PATH to compile the kernels")
    check.run(torch.device("cuda"))


@pytest.mark.parametrize("check", ELSEWHERE, ids=str)
def test_the_checks_themselves_on_the_cpu(check: Check) -> None:
    check.run(torch.device("cpu"))


def test_a_wrong_result_fails_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_checks

    right = gpu_checks.osa_aggregate
    monkeypatch.setattr(gpu_checks, "osa_aggregate", lambda *given, **more: right(*given, **more) * 1.5)
    # The values themselves, and those that hold whatever the values are.
    found = {check.function.__name__: check for check in ELSEWHERE}
    with pytest.raises(AssertionError):
        found["aggregation_is_as_exact_as_pytorchs"].run(torch.device("cpu"))
    found["equal_inputs_give_equal_bits"].run(torch.device("cpu"))
