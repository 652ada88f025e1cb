"""The ways to run a network, each set up as its own documentation recommends for one caller."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import vovnet
from vovnet.detection.cpu_benchmark import runtimes
from vovnet.detection.cpu_benchmark.task import Runner, Task, UnavailableError
from vovnet.errors import InputError, causes, install_advice, reason

EXTRAS = {**dict.fromkeys(("onnx", "onnxscript", "onnxruntime", "openvino"), "benchmark"), "nncf": "int8"}
"""The extra that installs each library."""


@dataclass(frozen=True)
class Backend:
    """A way to run a network.

    Attributes:
        name: its name for ``--backend``.
        title: its name in tables.
        prepare: makes a :data:`Runner`.
        foreign: another project's compiler or runtime. If it fails, the benchmark goes on without it.
        detectors: it can run whole detectors.
        ours: the backend that the others are compared with.
    """

    name: str
    title: str
    prepare: Callable[[Task], Runner]
    foreign: bool = False
    detectors: bool = False
    ours: bool = False

    def set_up(self, task: Task) -> Runner:
        """Prepare the backend.

        Raises:
            UnavailableError: the backend cannot take part.
        """
        if task.case.detector and not self.detectors:
            raise UnavailableError("compared on backbones only")
        try:
            return self.prepare(task)
        except UnavailableError:
            raise
        except Exception as error:
            if not self.foreign:
                raise
            missing = missing_library(error)
            if missing is not None:
                raise UnavailableError(f"{missing} is not installed: {install_advice(EXTRAS[missing])}") from error
            raise UnavailableError(f"failed: {type(error).__name__}: {reason(error)}") from error


def missing_library(error: BaseException) -> str | None:
    """Return the library of :data:`EXTRAS` whose absence caused an error, or None."""
    for cause in causes(error):
        if isinstance(cause, ModuleNotFoundError) and cause.name in EXTRAS:
            return cause.name
    return None


def run_torch(model: nn.Module, task: Task, layout: torch.memory_format, dtype: torch.dtype) -> Runner:
    """Return a runner for a model in a memory layout. A detector gets its images as a list."""
    images = task.images.to(dtype).contiguous(memory_format=layout)
    given: Any = list(images) if task.case.detector else images
    return lambda: model(given)


def _run_in_precision(model: nn.Module, task: Task, layout: torch.memory_format) -> Runner:
    """Return a runner in the case's precision; a detector gets it by autocast, because boxes need float32."""
    if not task.case.detector or task.dtype is torch.float32:
        return run_torch(model.to(task.dtype), task, layout, task.dtype)
    run = run_torch(model, task, layout, torch.float32)

    def run_autocast() -> Any:
        with torch.autocast("cpu", task.dtype):
            return run()

    return run_autocast


def _eager(task: Task) -> Runner:
    return _run_in_precision(copy.deepcopy(task.model), task, torch.contiguous_format)


def _channels_last(task: Task) -> Runner:
    model: Any = copy.deepcopy(task.model)
    return _run_in_precision(model.to(memory_format=torch.channels_last), task, torch.channels_last)


def _compiled(task: Task) -> Runner:
    from torch._inductor import config

    torch.compiler.reset()  # otherwise another case's size would make the sizes dynamic
    model: Any = copy.deepcopy(task.model).to(task.dtype)
    compiled: Any = torch.compile(model.to(memory_format=torch.channels_last), dynamic=False)
    run = run_torch(compiled, task, torch.channels_last, task.dtype)
    with config.patch(freezing=True):
        run()  # compiles
    return run


def _fused(task: Task) -> Runner:
    try:
        model = vovnet.fuse(task.model, precision=task.case.precision)
    except InputError as error:
        raise UnavailableError(str(error)) from error
    return run_torch(model, task, torch.contiguous_format, torch.float32)


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("eager", "PyTorch, eager", _eager, detectors=True),
        Backend("channels-last", "PyTorch, eager, channels-last", _channels_last, detectors=True),
        Backend("compile", "torch.compile, freezing, channels-last", _compiled, foreign=True),
        Backend("onnxruntime", "ONNX Runtime", runtimes.onnx_runtime, foreign=True, detectors=True),
        Backend("onnxruntime-int8", "ONNX Runtime, int8", runtimes.onnx_runtime_int8, foreign=True, detectors=True),
        Backend("openvino", "OpenVINO", runtimes.openvino, foreign=True, detectors=True),
        Backend("openvino-int8", "OpenVINO, int8", runtimes.openvino_int8, foreign=True, detectors=True),
        Backend("fused", "vovnet.fuse", _fused, detectors=True, ours=True),
    )
}
