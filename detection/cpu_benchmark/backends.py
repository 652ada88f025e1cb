"""The ways to run a network, each set up as its own documentation recommends for one caller."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import vovnet
from vovnet.detection.cpu_benchmark.cases import Case
from vovnet.errors import InputError, install_advice, reason
from vovnet.export.onnx_session import no_telemetry

Runner = Callable[[], Any]
"""Runs the network once and returns a backbone's list of maps or a detector's list of dictionaries. The next call may
overwrite the result."""

EXTRA = {"onnx", "onnxscript", "onnxruntime", "openvino"}


class UnavailableError(Exception):
    """A backend cannot take part; the message says why."""


@dataclass
class Task:
    """The network and the images that a backend runs.

    Attributes:
        case: the case that is measured.
        model: the network in float32 and evaluation mode; backends must not change it.
        images: (N, 3, H, W), float32, contiguous.
        folder: temporary folder for files.
    """

    case: Case
    model: nn.Module
    images: Tensor
    folder: Path

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the numbers that are multiplied."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[self.case.precision]

    @cached_property
    def onnx_file(self) -> Path:
        """The model as an ONNX file in float32 with fixed shapes; written on first use."""
        path = self.folder / f"{self.case.name}.onnx"
        torch.onnx.export(self.model, (self.images,), path, dynamo=True, verbose=False)
        return path


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
            if isinstance(error, ModuleNotFoundError) and error.name in EXTRA:
                raise UnavailableError(f"{error.name} is not installed: {install_advice('benchmark')}") from error
            raise UnavailableError(f"failed: {type(error).__name__}: {reason(error)}") from error


def run_torch(model: nn.Module, task: Task, layout: torch.memory_format, dtype: torch.dtype) -> Runner:
    """Return a runner for a model in a memory layout. A detector gets its images as a list."""
    images = task.images.to(dtype).contiguous(memory_format=layout)
    given: Any = list(images) if task.case.detector else images
    return lambda: model(given)


def _eager(task: Task) -> Runner:
    model = copy.deepcopy(task.model).to(task.dtype)
    return run_torch(model, task, torch.contiguous_format, task.dtype)


def _channels_last(task: Task) -> Runner:
    model: Any = copy.deepcopy(task.model).to(task.dtype)
    return run_torch(model.to(memory_format=torch.channels_last), task, torch.channels_last, task.dtype)


def _compiled(task: Task) -> Runner:
    from torch._inductor import config

    torch.compiler.reset()  # otherwise another case's size would make the sizes dynamic
    model: Any = copy.deepcopy(task.model).to(task.dtype)
    compiled: Any = torch.compile(model.to(memory_format=torch.channels_last), dynamic=False)
    run = run_torch(compiled, task, torch.channels_last, task.dtype)
    with config.patch(freezing=True):
        run()  # compiles
    return run


def _onnx_runtime(task: Task) -> Runner:
    if task.dtype is not torch.float32:
        raise UnavailableError(f"ONNX Runtime has no convolutions in {task.case.precision} on CPUs")
    no_telemetry()
    onnxruntime: Any = import_module("onnxruntime")

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")  # between calls, when others have their turn
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(task.onnx_file, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    image = onnxruntime.OrtValue.ortvalue_from_numpy(task.images.numpy())
    binding.bind_ortvalue_input(session.get_inputs()[0].name, image)
    maps = []
    for output in session.get_outputs():
        array = np.empty(output.shape, np.float32)
        binding.bind_output(output.name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        maps.append(torch.from_numpy(array))

    def run() -> list[Tensor]:
        session.run_with_iobinding(binding)
        return maps

    return run


def _openvino(task: Task) -> Runner:
    openvino: Any = import_module("openvino")

    core = openvino.Core()
    if task.dtype is torch.bfloat16 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UnavailableError("OpenVINO has no bf16 on this CPU")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[task.case.precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = core.compile_model(core.read_model(task.onnx_file), "CPU", settings)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(task.images.numpy(), shared_memory=True))
    maps = []
    for index, output in enumerate(compiled.outputs):
        array = np.empty(tuple(output.shape), np.float32)
        request.set_output_tensor(index, openvino.Tensor(array, shared_memory=True))
        maps.append(torch.from_numpy(array))

    def run() -> list[Tensor]:
        request.infer()
        return maps

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
        Backend("onnxruntime", "ONNX Runtime", _onnx_runtime, foreign=True),
        Backend("openvino", "OpenVINO", _openvino, foreign=True),
        Backend("fused", "vovnet.fuse", _fused, detectors=True, ours=True),
    )
}
