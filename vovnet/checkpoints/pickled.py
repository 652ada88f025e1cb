"""Read the tensors of a published ``.pth`` file, also from a zip archive that holds it alone.

Only tensors and plain values are unpickled, so no code can run.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vovnet.checkpoints.archives import is_archive, member_blocks
from vovnet.checkpoints.safetensors_file import open_safetensors
from vovnet.errors import InputError, reason

WRAPPERS = ("model", "state_dict")
"""Keys under which a file may hold its weights, beside an optimizer and the like."""

_COUNTER = ".num_batches_tracked"
_PREFIX = "module."
_SHOWN = 5


@dataclass(frozen=True)
class CheckpointFile:
    """The contents of a checkpoint file."""

    tensors: dict[str, Tensor]
    """The weights on the CPU, by the file's keys without ``module.``."""
    beside: tuple[str, ...]
    """Names of the other entries, such as ``optimizer``, which are not used."""


def read_checkpoint_file(path: str | os.PathLike[str]) -> CheckpointFile:
    """Read a checkpoint in any of torch's formats: ``{"model": weights, …}``, ``{"state_dict": …}`` or weights alone.

    Args:
        path: The file, or a zip archive that holds it alone.

    Raises:
        InputError: The file is absent, truncated, not a checkpoint or would run code; or the weights are not all
            tensors, or only some of their keys begin with ``module.``.
    """
    values = _load(Path(path))
    beside: tuple[str, ...] = ()
    if isinstance(values, Mapping):
        wrappers = [name for name in WRAPPERS if isinstance(values.get(name), Mapping)]
        if len(wrappers) > 1:
            raise InputError(f"{path}: both {' and '.join(wrappers)} hold weights; save the ones that you mean alone")
        if wrappers:
            beside = tuple(str(key) for key in values if key != wrappers[0])
            values = values[wrappers[0]]
    if not isinstance(values, Mapping) or not values:
        what = "nothing" if isinstance(values, Mapping) else f"a {type(values).__name__}"
        raise InputError(f"{path}: expected tensors by name, or {{'model': tensors by name}}, got {what}")
    wrong = [f"{key!r} is a {type(value).__name__}" for key, value in values.items() if not _is_weight(key, value)]
    if wrong:
        raise InputError(f"{path}: expected tensors by name, but {_some(wrong)}; this is no checkpoint of weights")
    return CheckpointFile(_without_prefix({key: value.detach() for key, value in values.items()}, path), beside)


def refuse_unreadable(path: Path) -> None:
    """Read a checkpoint or the header of a safetensors file, and raise an error that says what is wrong with it.

    Raises:
        InputError: The file cannot be read.
    """
    if path.suffix != ".safetensors":
        read_checkpoint_file(path)
        return
    with open_safetensors(path):
        pass


def to_float32(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return weights as float32 and counters as int64, and a line for each type that was converted.

    Raises:
        InputError: Weights are not floating-point numbers or not finite; the message names the keys.
    """
    converted: dict[str, list[str]] = {}
    result = {}
    for key, tensor in tensors.items():
        counter = key.endswith(_COUNTER)
        if tensor.is_floating_point() == counter:
            kind = "an integer" if counter else "floating-point numbers"
            raise InputError(f"{key} is {tensor.dtype}, expected {kind}")
        wanted = torch.int64 if counter else torch.float32
        if tensor.dtype != wanted:
            converted.setdefault(f"{tensor.dtype} → {wanted}".replace("torch.", ""), []).append(key)
        result[key] = tensor.to(wanted).contiguous()
    broken = [key for key, tensor in result.items() if not tensor.isfinite().all()]
    if broken:
        raise InputError(f"NaN or infinity in {', '.join(broken)}; the file is of a training that diverged")
    return result, [f"{types}: {len(keys)} tensors" for types, keys in converted.items()]


def _load(path: Path) -> Any:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path}: {what}; expected a checkpoint file (.pth)")
    try:
        file = io.BytesIO(b"".join(member_blocks(path))) if is_archive(path) else path
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about pickle protocols; the error below says more
            return torch.load(file, map_location="cpu", weights_only=True)
    except (PermissionError, InputError):
        raise
    except Exception as error:  # an unpickler may raise anything on a damaged or hostile file
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if foreign:
            raise InputError(
                f"{path}: refused: it holds '{foreign[1]}' and not tensors and plain values alone, so reading it could "
                "run code; take a file of the weights alone"
            ) from error
        if "weights_only" in str(error):
            raise InputError(f"{path}: not a PyTorch checkpoint; expected a file that torch.save wrote") from error
        cause = f"truncated or damaged: {reason(error)}" if path.stat().st_size else "it is empty"
        raise InputError(f"{path}: cannot be read as a checkpoint ({cause}); fetch it again") from error


def _is_weight(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor) and value.layout == torch.strided and _plain(value)


def _plain(value: Tensor) -> bool:
    return not value.is_quantized and value.device.type == "cpu"


def _without_prefix(tensors: dict[str, Tensor], path: object) -> dict[str, Tensor]:
    """Remove the ``module.`` of a model that was trained on several GPUs (utils/model_serialization.py:60-67)."""
    bare = [key for key in tensors if not key.startswith(_PREFIX)]
    if len(bare) == len(tensors):
        return tensors
    if bare:
        raise InputError(
            f"{path}: {len(tensors) - len(bare)} keys begin with '{_PREFIX}' and {len(bare)} do not ({_some(bare)}); "
            "expected all or none"
        )
    return {key.removeprefix(_PREFIX): value for key, value in tensors.items()}


def _some(texts: list[str]) -> str:
    return ", ".join(texts[:_SHOWN]) + (f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else "")
