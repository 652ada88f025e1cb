"""Run ``.xml`` files, with their weights in a ``.bin`` beside them, with OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vovnet.errors import InputError
from vovnet.export.metadata import KEY, ExportMetadata, from_json
from vovnet.export.sessions import INPUT, cannot_open, cannot_run, check_names, check_type, import_runtime, output_names

_RUNTIME = "OpenVINO"


class OpenVinoSession:
    """An OpenVINO model, compiled for the CPU."""

    survives_forks = False

    def __init__(self, path: Path, metadata: ExportMetadata, core: Any, compiled: Any) -> None:
        self._path = path
        self._core = core
        self._compiled = compiled
        # A request computes one image at a time, so that each thread needs its own.
        self._idle: list[Any] = []
        known = output_names(metadata)
        self._outputs = [_name(output, known) for output in compiled.outputs]
        check_names(path, metadata, [_name(one, (INPUT,)) for one in compiled.inputs], self._outputs)
        check_type(path, metadata, compiled.inputs[0].element_type.get_type_name(), {"uint8": "u8", "float32": "f32"})

    def run(self, image: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            found = request.infer({INPUT: image})
            return {name: found[position] for position, name in enumerate(self._outputs)}
        except RuntimeError as error:
            cannot_run(self._path, _RUNTIME, image, error)
        finally:
            self._idle.append(request)

    def native(self) -> Sequence[object]:
        """Return the requests, the compiled model and the core."""
        return [self._idle, *self._idle, self._compiled, self._core]


def _name(port: Any, known: Sequence[str]) -> str:
    """Return the name of an input or output. One that is also an inner tensor has several."""
    names = sorted(port.get_names())
    return next((name for name in names if name in known), names[0] if names else "")


def open_openvino(path: Path, threads: int | None) -> tuple[ExportMetadata, OpenVinoSession]:
    """Open a file.

    Raises:
        InputError: OpenVINO is not installed or cannot open the file, its weights are missing, or it is not a file of
            `vovnet export`.
    """
    openvino = import_runtime("openvino", "openvino", path)
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise InputError(f"{path}: its weights '{weights}' are missing; put both files into one folder")
    core = openvino.Core()
    try:
        model = core.read_model(str(path))
        text = model.get_rt_info([KEY]).value if model.has_rt_info([KEY]) else None
    except Exception as error:  # RuntimeError, and others of its readers
        cannot_open(path, _RUNTIME, error)
    metadata = from_json(text, str(path))
    # Without the hint OpenVINO computes in bfloat16 where the processor has it, and loses detections.
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": _precision(core, metadata)}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    try:
        compiled = core.compile_model(model, "CPU", settings)
    except Exception as error:
        cannot_open(path, _RUNTIME, error)
    return metadata, OpenVinoSession(path, metadata, core, compiled)


def _precision(core: Any, metadata: ExportMetadata) -> str:
    """Return the type to compute in: bf16 if the file asks for it and the processor has it, otherwise float32.

    The weights of an fp16 file are small in the file; an int8 file says itself which layers compute in integers.
    """
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if metadata.precision == "bf16" and has_bf16 else "f32"
