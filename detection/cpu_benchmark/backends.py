"""Who competes: each way to run a network, set up as its own documentation says is fastest for one caller."""

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
from vovnet.errors import InputError, reason

Run = Callable[[], Any]
"""Runs the network once: a backbone's maps as a list, or a detector's list of dictionaries. What it gives may be
overwritten by its next call."""


EXTRA = {"onnx", "onnxscript", "onnxruntime", "openvino"}


class UnavailableError(Exception):
    """A contestant that cannot take part; the message says why."""


@dataclass
class Task:
    """What a contestant is given.

    Attributes:
        case: which it is.
        model: float32, evaluation mode; not to be changed.
        images: (N, 3, H, W), float32, contiguous.
        folder: for files, gone afterwards.
    """

    case: Case
    model: nn.Module
    images: Tensor
    folder: Path

    @property
    def dtype(self) -> torch.dtype:
        """Of the products."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[self.case.precision]

    @cached_property
    def onnx_file(self) -> Path:
        """The model in float32 as ONNX with fixed shapes, written when it is first asked for."""
        path = self.folder / f"{self.case.name}.onnx"
        torch.onnx.export(self.model, (self.images,), path, dynamo=True, verbose=False)
        return path


@dataclass(frozen=True)
class Contestant:
    """A way to run a network.

    Attributes:
        name: what ``--contestant`` calls it.
        title: in tables.
        prepare: makes a :data:`Run`.
        foreign: another project's compiler or runtime: where it fails, the others go on without it.
        detectors: whether it can run whole detectors.
        ours: what the others are compared with.
    """

    name: str
    title: str
    prepare: Callable[[Task], Run]
    foreign: bool = False
    detectors: bool = False
    ours: bool = False

    def set_up(self, task: Task) -> Run:
        """Prepare to run.

        Raises:
            UnavailableError: it cannot take part.
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
                raise UnavailableError(f"{error.name} is not installed: pip install 'vovnet[benchmark]'") from error
            raise UnavailableError(f"failed: {type(error).__name__}: {reason(error)}") from error


def run_torch(model: nn.Module, task: Task, layout: torch.memory_format, dtype: torch.dtype) -> Run:
    """Call a model in a memory layout; a detector is given its images as a list."""
    images = task.images.to(dtype).contiguous(memory_format=layout)
    given: Any = list(images) if task.case.detector else images
    return lambda: model(given)


def _eager(task: Task) -> Run:
    model = copy.deepcopy(task.model).to(task.dtype)
    return run_torch(model, task, torch.contiguous_format, task.dtype)


def _channels_last(task: Task) -> Run:
    model: Any = copy.deepcopy(task.model).to(task.dtype)
    return run_torch(model.to(memory_format=torch.channels_last), task, torch.channels_last, task.dtype)


def _compiled(task: Task) -> Run:
    from torch._inductor import config

    torch.compiler.reset()  # or it would take another case's size for a reason to allow any
    model: Any = copy.deepcopy(task.model).to(task.dtype)
    compiled: Any = torch.compile(model.to(memory_format=torch.channels_last), dynamic=False)
    run = run_torch(compiled, task, torch.channels_last, task.dtype)
    with config.patch(freezing=True):
        run()  # compiles
    return run


def _onnx_runtime(task: Task) -> Run:
    if task.dtype is not torch.float32:
        raise UnavailableError(f"ONNX Runtime has no convolutions in {task.case.precision} on CPUs")
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


def _openvino(task: Task) -> Run:
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


def _fused(task: Task) -> Run:
    try:
        model = vovnet.fuse(task.model, precision=task.case.precision)
    except InputError as error:
        raise UnavailableError(str(error)) from error
    return run_torch(model, task, torch.contiguous_format, torch.float32)


CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant("eager", "PyTorch, eager", _eager, detectors=True),
        Contestant("channels-last", "PyTorch, eager, channels-last", _channels_last, detectors=True),
        Contestant("compile", "torch.compile, freezing, channels-last", _compiled, foreign=True),
        Contestant("onnxruntime", "ONNX Runtime", _onnx_runtime, foreign=True),
        Contestant("openvino", "OpenVINO", _openvino, foreign=True),
        Contestant("fused", "vovnet.fuse", _fused, detectors=True, ours=True),
    )
}
