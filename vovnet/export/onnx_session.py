"""Run ``.onnx`` files with ONNX Runtime, on the CPU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vovnet.export.metadata import KEY, ExportMetadata, from_json
from vovnet.export.sessions import INPUT, cannot_open, cannot_run, check_names, check_type, import_runtime

_RUNTIME = "ONNX Runtime"


class OnnxSession:
    """An ONNX file in ONNX Runtime."""

    survives_forks = False

    def __init__(self, path: Path, metadata: ExportMetadata, session: Any) -> None:
        self._path = path
        self._session = session
        outputs = [output.name for output in session.get_outputs()]
        check_names(path, metadata, [one.name for one in session.get_inputs()], outputs)
        check_type(path, metadata, session.get_inputs()[0].type, {"uint8": "tensor(uint8)", "float32": "tensor(float)"})
        self._outputs = outputs

    def run(self, image: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name."""
        try:
            return dict(zip(self._outputs, self._session.run(None, {INPUT: image}), strict=True))
        except Exception as error:  # of ONNX Runtime's own classes
            cannot_run(self._path, _RUNTIME, image, error)

    def native(self) -> Sequence[object]:
        """Return the session."""
        return [self._session, self._session._sess]


def no_telemetry() -> None:
    """Turn ONNX Runtime's telemetry off, unless the user has set its variable. Call it before the import.

    Version 1.32 starts a thread for it as soon as it is imported. For want of that thread, a child of ``fork`` hangs or
    aborts when it ends.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def open_onnx(path: Path, threads: int | None) -> tuple[ExportMetadata, OnnxSession]:
    """Open a file.

    Raises:
        InputError: ONNX Runtime is not installed or cannot open the file, or the file is not one of `vovnet export`.
    """
    no_telemetry()
    onnxruntime = import_runtime("onnxruntime", "onnx", path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; its warnings are about the graph, which the user did not write
    # By default threads wait for one another in loops, and take the time that other sessions and processes need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        text = session.get_modelmeta().custom_metadata_map.get(KEY)
    except Exception as error:  # of ONNX Runtime's own classes
        cannot_open(path, _RUNTIME, error)
    metadata = from_json(text, str(path))
    return metadata, OnnxSession(path, metadata, session)
