"""The checks of ``tests/vovnet/ops/test_gpu.py``, which need no pytest."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.gpu.setting import Setting
from benchmarks.gpu.steps import Result, Skipped, Step

HELPERS = Path(__file__).resolve().parents[2] / "tests" / "helpers"


def steps(setting: Setting) -> list[Step]:
    """Return a step per check."""
    sys.path.insert(0, str(HELPERS))  # as pytest does
    from gpu_checks import CHECKS, Check

    def run(check: Check) -> Result:
        if setting.cpu and (check.needs_gpu or check.way == "require"):
            raise Skipped("needs a GPU")
        check.run(setting.device)
        return Result()

    first = {(check.function, check.way): check for check in reversed(CHECKS)}
    chosen = setting.size(CHECKS, list(first.values()))
    return [Step(str(check), lambda check=check: run(check)) for check in chosen]  # type: ignore[misc]
