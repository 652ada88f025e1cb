"""int8 by NNCF: an exported file of floating point becomes one whose network computes in integers."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from vovnet.errors import InputError, install_advice, reason
from vovnet.export.metadata import KEY, ExportedInput
from vovnet.export.operations import Operation, float_operations, onnx_operations, openvino_operations
from vovnet.images.folder import list_images
from vovnet.images.reading import read_image

FORMATS = ("onnx", "openvino")
"""The formats of files that NNCF quantizes."""
MOST_IMAGES = 300
"""Of a folder for calibration, as many images are used; more change the ranges little and take time."""


class CalibrationImages(Sequence[NDArray[np.uint8]]):
    """Images of a folder, at most :data:`MOST_IMAGES`, evenly spaced by name: each (C, H, W), read when it is needed.

    Args:
        folder: the folder.
        channels: 3 for RGB, 1 for grey.

    Raises:
        InputError: there are no images in the folder; or, later, one of them cannot be read.
    """

    def __init__(self, folder: str | os.PathLike[str], channels: int) -> None:
        paths = list_images(Path(folder))
        count = min(len(paths), MOST_IMAGES)
        self._paths = [paths[number * len(paths) // count] for number in range(count)]
        self._channels = channels

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...

    @overload
    def __getitem__(self, index: slice) -> list[NDArray[np.uint8]]: ...

    def __getitem__(self, index: int | slice) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        pixels = np.asarray(read_image(self._paths[index], self._channels))
        return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def quantize_file(path: Path, format: str, images: Sequence[NDArray[np.uint8]], takes: ExportedInput) -> None:
    """Replace a file of precision fp32 by one whose network computes in int8.

    Args:
        path: the file; its metadata stays as it is.
        format: one of :data:`FORMATS`.
        images: (C, H, W), typical of what the file will see.
        takes: the file's input.

    Raises:
        InputError: NNCF is not installed or fails, there are no images, or one has another size than the file takes.
    """
    nncf = imported_nncf()
    if not len(images):
        raise InputError("calibrate: no images; int8 needs some that are typical of what the model will see")
    samples = nncf.Dataset(images, lambda image: {"image": _as_input(image, takes)})
    try:
        with _quiet():
            (_quantize_openvino if format == "openvino" else _quantize_onnx)(nncf, path, samples, len(images))
    except (InputError, OSError, MemoryError):
        raise
    except Exception as error:  # of many classes
        if os.environ.get("VOVNET_DEBUG") == "1":
            raise
        raise InputError(f"precision int8: NNCF failed ({type(error).__name__}: {reason(error)})") from error


def _as_input(image: NDArray[np.uint8], takes: ExportedInput) -> NDArray[Any]:
    """Return an image as a file takes it; with a batch, it fills one."""
    size = (int(image.shape[1]), int(image.shape[2]))
    if takes.size is not None and size != takes.size:
        raise InputError(
            f"calibrate: an image has {size[0]}x{size[1]} pixels (height x width), and the file takes only "
            f"{takes.size[0]}x{takes.size[1]}; use images of this size, or export without --size"
        )
    values: NDArray[Any] = image if takes.dtype == "uint8" else image.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(values if takes.batch is None else np.stack([values] * takes.batch))


def _quantize_openvino(nncf: Any, path: Path, samples: Any, count: int) -> None:
    openvino: Any = import_module("openvino")
    model = openvino.Core().read_model(path)
    text = model.get_rt_info([KEY]).astype(str)
    quantized = _quantized(nncf, model, samples, count, openvino_operations(model))
    quantized.set_rt_info(text, [KEY])
    del model  # it maps the file that is written now
    openvino.save_model(quantized, path.with_name(f"int8-{path.name}"), compress_to_fp16=False)
    for suffix in (".bin", path.suffix):
        os.replace(path.with_name(f"int8-{path.stem}{suffix}"), path.with_suffix(suffix))


def _quantize_onnx(nncf: Any, path: Path, samples: Any, count: int) -> None:
    onnx: Any = import_module("onnx")
    model = onnx.load(path)
    quantized = _quantized(nncf, model, samples, count, onnx_operations(model))
    onnx.helper.set_model_props(quantized, {one.key: one.value for one in model.metadata_props})
    onnx.save(quantized, path)


def _quantized(nncf: Any, model: Any, samples: Any, count: int, graph: Mapping[str, Operation]) -> Any:
    return nncf.quantize(
        model,
        samples,
        preset=nncf.QuantizationPreset.MIXED,  # activations may be negative: networks without ReLU, and the FPN
        subset_size=count,
        ignored_scope=nncf.IgnoredScope(names=float_operations(graph), validate=False),
    )


def imported_nncf() -> Any:
    """Return NNCF.

    Raises:
        InputError: it is not installed.
    """
    # Otherwise it would offer its statistics to a server on the network.
    os.environ.setdefault("NNCF_CI", "1")
    try:
        return import_module("nncf")
    except ModuleNotFoundError as error:
        raise InputError(f"precision int8 needs {error.name}: {install_advice('int8')}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep NNCF's log and progress bars, which are for its developers, from the terminal."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
