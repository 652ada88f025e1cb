"""ONNX Runtime and OpenVINO: they run the network from a file, as ``vovnet export`` writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vovnet.detection.cpu_benchmark.task import Runner, Task, UnavailableError
from vovnet.export.onnx_session import no_telemetry
from vovnet.export.quantization import imported_nncf

_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


def onnx_runtime(task: Task) -> Runner:
    """Run the file in float32 by ONNX Runtime."""
    if task.dtype is not torch.float32:
        raise UnavailableError(f"ONNX Runtime has no convolutions in {task.case.precision} on CPUs")
    return _run_onnx(task.file("onnx"), task)


def onnx_runtime_int8(task: Task) -> Runner:
    """Run the quantized file by ONNX Runtime."""
    _check_int8(task)
    return _run_onnx(task.file("onnx", int8=True), task)


def openvino(task: Task) -> Runner:
    """Run the file by OpenVINO in the case's precision."""
    return _run_openvino(task.file("openvino"), task)


def openvino_int8(task: Task) -> Runner:
    """Run the quantized file by OpenVINO; what is not quantized computes in the case's precision."""
    _check_int8(task)
    return _run_openvino(task.file("openvino", int8=True), task)


def _check_int8(task: Task) -> None:
    if task.dtype is torch.float32:
        raise UnavailableError("int8 is compared with bf16")
    imported_nncf()  # before minutes of exporting


def _run_onnx(file: Path, task: Task) -> Runner:
    no_telemetry()
    onnxruntime: Any = import_module("onnxruntime")

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")  # between calls, when others have their turn
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    image = onnxruntime.OrtValue.ortvalue_from_numpy(task.file_input)
    binding.bind_ortvalue_input(session.get_inputs()[0].name, image)
    found: dict[str, Tensor] = {}
    for output in session.get_outputs():
        array = np.empty(output.shape, _TYPES[output.type])
        binding.bind_output(output.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        found[output.name] = torch.from_numpy(array)

    def run() -> Sequence[Any]:
        session.run_with_iobinding(binding)
        return _answer(found, task)

    return run


def _run_openvino(file: Path, task: Task) -> Runner:
    runtime: Any = import_module("openvino")

    core = runtime.Core()
    if task.dtype is torch.bfloat16 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UnavailableError("OpenVINO has no bf16 on this CPU")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[task.case.precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = core.compile_model(core.read_model(file), "CPU", settings)
    request = compiled.create_infer_request()
    request.set_input_tensor(runtime.Tensor(task.file_input, shared_memory=True))
    found: dict[str, Tensor] = {}
    for index, output in enumerate(compiled.outputs):
        array = np.empty(tuple(output.shape), output.element_type.to_dtype())
        request.set_output_tensor(index, runtime.Tensor(array, shared_memory=True))
        # An output may share its names with tensors inside.
        found[next(name for name in task.output_names if name in output.get_names())] = torch.from_numpy(array)

    def run() -> Sequence[Any]:
        request.infer()
        return _answer(found, task)

    return run


def _answer(found: Mapping[str, Tensor], task: Task) -> Sequence[Any]:
    if not task.case.detector:
        return [found[name] for name in task.output_names]
    count = int(found["count"])
    return [{name: found[name][:count] for name in ("boxes", "scores", "labels")}]
