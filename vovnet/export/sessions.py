"""What a file that is open in a runtime offers, and what runtimes have in common."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

from numpy.typing import NDArray

from vovnet.errors import InputError, install_advice, reason
from vovnet.export.metadata import ExportMetadata

INPUT = "image"


class Session(Protocol):
    """A file that is open in its runtime. Several threads may call it at the same time."""

    survives_forks: bool
    """Whether a child of ``fork`` can use it; otherwise the child opens the file anew."""

    def run(self, image: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name for ``image``, of exactly the shape and type that the file takes."""

    def native(self) -> Sequence[object]:
        """Return the runtime's own objects, whose destructors wait for threads that a child of ``fork`` lacks."""


def output_names(metadata: ExportMetadata) -> tuple[str, ...]:
    """Return the names of the outputs, in the order in which a file without names returns them."""
    if metadata.kind == "classifier":
        return ("probabilities",)
    others = [name for name in ("masks", "keypoints") if getattr(metadata, name)]
    return ("boxes", "scores", "labels", *others, "count")


def import_runtime(name: str, extra: str, path: Path) -> Any:
    """Return a runtime's module.

    Raises:
        InputError: it is not installed, or its import fails.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != name.split(".")[0]:
            raise
        raise InputError(f"{path}: needs '{name}', which is not installed: {install_advice(extra)}") from error
    except ImportError as error:  # a library of the system is absent, or the wheel is for another machine
        raise InputError(f"{path}: needs '{name}', whose import fails ({reason(error)}); install it anew") from error


def cannot_open(path: Path, runtime: str, error: Exception) -> NoReturn:
    """Raise the error for a file that a runtime does not open."""
    raise InputError(
        f"{path}: {runtime} cannot open it ({_short(error)}); it is truncated or damaged, or of a newer {runtime}: "
        "export the model again"
    ) from error


def cannot_run(path: Path, runtime: str, image: NDArray[Any], error: Exception) -> NoReturn:
    """Raise the error for an image on which a runtime fails."""
    raise InputError(
        f"{path}: {runtime} failed on an input of shape {list(image.shape)} ({_short(error)}); a smaller image may pass"
    ) from error


def check_names(path: Path, metadata: ExportMetadata, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Refuse a graph that has other inputs and outputs than its metadata says.

    Raises:
        InputError: an input or output is missing, or an input is unknown.
    """
    if list(inputs) != [INPUT]:
        raise InputError(f"{path}: expected one input '{INPUT}', got {', '.join(map(repr, inputs)) or 'none'}")
    if missing := [name for name in output_names(metadata) if name not in outputs]:
        raise InputError(
            f"{path}: expected an output '{missing[0]}' of a {metadata.kind}, got {', '.join(map(repr, outputs))}"
        )


def check_type(path: Path, metadata: ExportMetadata, found: str, known: Mapping[str, str]) -> None:
    """Refuse a graph whose input has another type than its metadata says.

    Args:
        path: the file, for the message.
        metadata: the file's.
        found: the runtime's name of the type.
        known: the runtime's names of the types of :data:`~vovnet.export.metadata.InputType`.

    Raises:
        InputError: the types differ.
    """
    if known[metadata.input.dtype] != found:
        raise InputError(f"{path}: its metadata says that '{INPUT}' is {metadata.input.dtype}, but it is {found}")


def _short(error: Exception) -> str:
    return reason(error)[:200]
