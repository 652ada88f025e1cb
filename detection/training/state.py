"""What a training run needs to go on as if it had never stopped: ``last.pt``, read with ``weights_only=True``."""

from __future__ import annotations

import pickle
import random
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vovnet.errors import InputError, reason
from vovnet.files import atomic_path

FORMAT = "vovnet-run"
FORMAT_VERSION = 1


def random_state() -> dict[str, Any]:
    """The state of every global random number generator of this process, as plain numbers and tensors."""
    legacy = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        # numpy's arrays and its own classes are refused by weights_only=True; tensors and numbers are not.
        "numpy": {**legacy, "state": {**legacy["state"], "key": legacy["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """The inverse of :func:`random_state`."""
    random.setstate(_as_tuple(state["python"]))
    key = np.asarray(state["numpy"]["state"]["key"], dtype=np.uint32)
    np.random.set_state({**state["numpy"], "state": {**state["numpy"]["state"], "key": key}})
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically: a crash or a full disk leaves the former file as it was."""
    # Through a file of Python's: torch's own writer hides the system's error, and keeps the file open after it.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save({"format": FORMAT, "format_version": FORMAT_VERSION, **state}, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch raises its own while it closes after the failed write
                raise error.__context__ from None
            raise


def load_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint that :func:`save_state` wrote.

    Raises:
        InputError: the file is missing, truncated, tampered with, would run code, or is of another format or version.
    """
    if not path.is_file():
        raise InputError(f"checkpoint '{path}': there is no such file; start without --resume")
    try:
        _check_sums(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError, ValueError, KeyError, OSError) as error:
        raise InputError(
            f"checkpoint '{path}': cannot be read, it is truncated, tampered with or no checkpoint of ours "
            f"({reason(error)[:200]}); use a copy, or start anew with --overwrite"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"checkpoint '{path}': not a training checkpoint of vovnet; expected format '{FORMAT}'")
    if state.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"checkpoint '{path}': format version {state.get('format_version')}, this vovnet reads {FORMAT_VERSION}; "
            "install the version that wrote it"
        )
    return state


def _check_sums(path: Path) -> None:
    """torch.load does not look at the checksums that its zip file holds."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"the checksum of {damaged} does not fit")


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list | tuple) else value
