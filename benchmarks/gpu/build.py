"""Compile the kernels: for the GPU's architecture, or for the CPU's instruction sets."""

from __future__ import annotations

import os
from unittest.mock import patch

import torch

from benchmarks.gpu.setting import Setting
from benchmarks.gpu.steps import Result, Step
from vovnet.ops.build import loader
from vovnet.ops.build.cache import build_once
from vovnet.ops.build.report import kernel_reports
from vovnet.ops.build.sources import CUDA, Targets, targets_for


def steps(setting: Setting) -> list[Step]:
    """Return the steps: compile, then load as the operators do."""
    return [Step("compile", lambda: _compile(_targets(setting))), Step("load", lambda: _load(setting))]


def _targets(setting: Setting) -> Targets:
    # Compiling needs no GPU; the oldest architecture stands for them all.
    return targets_for({(7, 5) if setting.cpu else torch.cuda.get_device_capability()})


def _compile(targets: Targets) -> Result:
    build = build_once(CUDA, targets)
    rows = [
        (entry.name, str(entry.registers), str(entry.spill_bytes), str(entry.shared_bytes), f"{entry.occupancy:.3f}")
        for entry in kernel_reports(build)
    ]
    took = f"compiled for {build.targets.words} in {build.seconds:.0f} s, {len(build.warnings)} warnings"
    return Result([*rows, (took, "", "", "", "")])


def _load(setting: Setting) -> Result:
    if setting.cpu:
        torch.ops.load_library(str(build_once(CUDA, _targets(setting)).path))
    else:
        with patch.dict(os.environ, VOVNET_OPS="require"):  # the error then has the cause
            loader.available(setting.device)
    operator = torch.ops.vovnet._cuda_supported  # raises if the library has not defined it
    which = dict(loader.state())["CUDA operators"]
    return Result([(f"loaded: {operator} is there; {which}", "", "", "", "")])
