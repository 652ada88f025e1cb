"""Write a module as a file of another runtime. What is specific to detectors or classifiers comes with the module."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import operator
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vovnet.errors import InputError, install_advice, reason
from vovnet.export.float32_marks import save_for_bf16
from vovnet.export.metadata import KEY, ExportMetadata, Precision
from vovnet.export.precisions import Format as Format
from vovnet.export.precisions import check_precision
from vovnet.export.quantization import imported_nncf, quantize_file
from vovnet.files import flush_to_disk
from vovnet.folders.temporary import scratch_folder

OPSET = 18
"""ONNX's operators: the first version whose Resize and Split the exporter writes without conversions."""

SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2", "torchscript": ".torchscript"}
"""The suffix that a file of each format must have, by which it is recognised when it is opened."""


@dataclass(frozen=True)
class Exportable:
    """A module with what the writers need to know.

    Attributes:
        module: in evaluation mode; takes one tensor and returns a tensor or a tuple of tensors of fixed shapes, except
            for the image's height and width.
        example: an input.
        dynamic: the last two dimensions of the input vary between calls.
        output_names: the names of the outputs, in order.
        metadata: what the file says about itself.
        onnx_translations: ``custom_translation_table`` of ``torch.onnx.export`` for the module's own operators.
        openvino_extensions: returns OpenVINO's translations of them.
    """

    module: nn.Module
    example: Tensor
    dynamic: bool
    output_names: list[str]
    metadata: ExportMetadata
    onnx_translations: Callable[[], Mapping[Callable[..., Any], Callable[..., Any]]] = field(default=dict)
    openvino_extensions: Callable[[], list[Any]] = field(default=list)

    def program(self) -> torch.export.ExportedProgram:
        """Return the module as ``torch.export`` sees it."""
        return torch.export.export(self.module, (self.example,), dynamic_shapes=self.dynamic_shapes, strict=False)

    @property
    def dynamic_shapes(self) -> tuple[dict[int, Any]] | None:
        """Which dimensions of the input vary, as ``torch.export`` takes it."""
        last = self.example.ndim - 1
        return ({last - 1: torch.export.Dim.DYNAMIC, last: torch.export.Dim.DYNAMIC},) if self.dynamic else None


def check_output(output: str | os.PathLike[str], format: str, *, overwrite: bool = True) -> Path:
    """Return the path of the file to write.

    Raises:
        InputError: the format is unknown, or the path has another suffix or is a folder; or there is a file, and
            ``overwrite`` is false.
    """
    if format not in SUFFIXES:
        raise InputError(f"format: expected one of {', '.join(SUFFIXES)}, got {format!r}")
    path, suffix = Path(output), SUFFIXES[format]
    if path.is_dir():
        raise InputError(f"output {path}: is a folder; expected a file's name, such as {path / f'model{suffix}'}")
    if path.suffix != suffix:
        raise InputError(
            f"output {path}: format {format} is recognised by the suffix {suffix}; write {path.stem or 'model'}{suffix}"
        )
    if path.exists() and not overwrite:
        raise InputError(f"output {path}: there is a file of this name; name another one, or add --overwrite")
    return path


def write_exported(
    exportable: Exportable,
    output: str | os.PathLike[str],
    format: Format,
    *,
    precision: Precision | None = None,
    calibration: Sequence[NDArray[np.uint8]] | None = None,
) -> Path:
    """Write a file; if anything fails, nothing is left and a file that was there is unchanged.

    Args:
        exportable: the module.
        output: the file's name, with the suffix of its format. OpenVINO writes a second file, ``.bin``, beside it.
        format: one of :data:`SUFFIXES`.
        precision: the file's, if it is not the graph's: see :func:`vovnet.export.precisions.graph_precision`.
        calibration: for precision int8: images (C, H, W) that are typical of what the file will see.

    Raises:
        InputError: the name or the precision does not fit the format; an extra is missing; or the exporter refuses the
            module.
        OSError: the file cannot be written.
    """
    path = check_output(output, format)
    precision = precision or exportable.metadata.precision
    check_precision(format, precision)
    if precision == "int8":
        imported_nncf()  # before minutes of work
        if calibration is None:
            raise InputError("precision int8: needs images to calibrate with; name a folder, --calibrate FOLDER")
    exportable = dataclasses.replace(exportable, metadata=dataclasses.replace(exportable.metadata, precision=precision))
    with staged(path) as written:
        with torch.inference_mode(mode=format == "torchscript"), _one_line_failures(format), _quiet():
            _WRITERS[format](exportable, written)
        if precision == "int8":
            quantize_file(written, format, calibration or (), exportable.metadata.input)
    return path


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield a name of the same last part in a folder beside ``path``; an error in the block leaves nothing.

    After the block, the files written there take their places. Other files of these names are replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(path.parent) as scratch:
        folder = scratch / "files"
        folder.mkdir()
        yield folder / path.name
        for file in sorted(folder.iterdir()):  # OpenVINO's .bin before its .xml, which is recognised
            flush_to_disk(file)
            os.replace(file, path.parent / file.name)


def _write_onnx(exportable: Exportable, path: Path) -> None:
    _required("onnx", "onnxscript")
    program: Any = torch.onnx.export(
        exportable.module,
        (exportable.example,),
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        dynamic_shapes=exportable.dynamic_shapes,
        input_names=["image"],
        output_names=exportable.output_names,
        custom_translation_table=dict(exportable.onnx_translations()),
    )
    program.model.metadata_props[KEY] = exportable.metadata.to_json()
    program.save(path, external_data=False)


def _write_openvino(exportable: Exportable, path: Path) -> None:
    openvino = _required("openvino")
    model, precision = openvino_model(exportable), exportable.metadata.precision
    if precision == "bf16":
        save_for_bf16(model, path)
    else:
        openvino.save_model(model, path, compress_to_fp16=precision == "fp16")


def openvino_model(exportable: Exportable) -> Any:
    """Return the module as an ``openvino.Model`` with names and metadata."""
    openvino = _required("openvino")
    model = openvino.convert_model(
        exportable.program(), extension=[*_size_extensions(), *exportable.openvino_extensions()]
    )
    model.inputs[0].get_tensor().set_names({"image"})
    # The conversion forgets the shape, which lets OpenVINO choose faster kernels.
    shape = list(exportable.example.shape)
    model.reshape([*shape[:-2], -1, -1] if exportable.dynamic else shape)
    for output, name in zip(model.outputs, exportable.output_names, strict=True):
        output.get_tensor().set_names({name})
    model.set_rt_info(exportable.metadata.to_json(), [KEY])
    return model


def _size_extensions() -> list[Any]:
    """Return translations of arithmetic with sizes that OpenVINO lacks; it knows these functions by their texts."""
    operators = import_module("openvino.opset14")
    extension = import_module("openvino.frontend.pytorch").ConversionExtension
    table = {torch.sym_max: "maximum", torch.sym_min: "minimum", operator.mod: "floor_mod"}

    def translation(name: str) -> Callable[[Any], Any]:
        return lambda context: getattr(operators, name)(context.get_input(0), context.get_input(1)).outputs()

    return [extension(str(function), translation(name)) for function, name in table.items()]


def _write_pt2(exportable: Exportable, path: Path) -> None:
    import torch._inductor as inductor

    with scratch_folder() as cache, _environment("TORCHINDUCTOR_CACHE_DIR", str(cache)):
        inductor.aoti_compile_and_package(
            exportable.program(),
            package_path=str(path),
            inductor_configs={"aot_inductor.metadata": {KEY: exportable.metadata.to_json()}},
        )


def _write_torchscript(exportable: Exportable, path: Path) -> None:
    traced: Any = torch.jit.trace(exportable.module, exportable.example, check_trace=False, strict=False)
    torch.jit.save(traced, path, _extra_files={KEY: exportable.metadata.to_json()})


_WRITERS: dict[Format, Callable[[Exportable, Path], None]] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "pt2": _write_pt2,
    "torchscript": _write_torchscript,
}


def _required(*names: str) -> Any:
    """Import libraries of the extra and return the first."""
    try:
        return next(iter([import_module(name) for name in names]))
    except ModuleNotFoundError as error:
        raise InputError(f"this format needs {error.name}: {install_advice('export')}") from error


@contextlib.contextmanager
def _one_line_failures(format: str) -> Iterator[None]:
    """Turn the errors of exporters, which are of many classes, into one line."""
    try:
        yield
    except (InputError, OSError, MemoryError):
        raise
    except Exception as error:
        if os.environ.get("VOVNET_DEBUG") == "1":
            raise
        raise InputError(
            f"format {format}: the exporter failed ({type(error).__name__}: {reason(error)}); VOVNET_DEBUG=1 shows it"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' progress and advice, which are for their developers, from the terminal."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
