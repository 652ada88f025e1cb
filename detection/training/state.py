"""Write and read ``last.pt``, from which a training run continues as if it had never stopped."""

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
from vovnet.files import DAMAGED_ZIP, atomic_path

FORMAT = "vovnet-run"
FORMAT_VERSION = 1


def random_state() -> dict[str, Any]:
    """Return the state of every global random number generator of this process, as plain numbers and tensors."""
    legacy = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        # torch.load(weights_only=True) reads tensors and numbers, but not numpy's arrays and classes.
        "numpy": {**legacy, "state": {**legacy["state"], "key": legacy["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Restore the state that :func:`random_state` returned."""
    random.setstate(_as_tuple(state["python"]))
    key = np.asarray(state["numpy"]["state"]["key"], dtype=np.uint32)
    np.random.set_state({**state["numpy"], "state": {**state["numpy"]["state"], "key": key}})
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    if state.get("mps") and torch.backends.mps.is_available():  # absent from older files
        torch.mps.set_rng_state(state["mps"][0])


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically; after a crash or with a full disk the previous file is intact."""
    # torch.save gets an open file, because its own writer hides errors of the system and then keeps the file open.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save({"format": FORMAT, "format_version": FORMAT_VERSION, **state}, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # the failed write, which torch's error hides
                raise error.__context__ from None
            raise


def load_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint that :func:`save_state` wrote.

    Raises:
        InputError: the file is missing, truncated, tampered with, would run code, or has another format or version.
    """
    if not path.is_file():
        raise InputError(
            f"checkpoint '{path}': there is no such file to go on from; --auto-resume instead of --resume starts "
            "the run where there is none"
        )
    try:
        _check_sums(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (*DAMAGED_ZIP, pickle.UnpicklingError, KeyError) as error:
        raise InputError(
            f"checkpoint '{path}': cannot be read; it is truncated, tampered with or not a checkpoint of vovnet "
            f"({reason(error)[:200]}); use a copy, or start a new run with --overwrite"
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
    """Check the checksums of the zip file, which torch.load ignores."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list | tuple) else value
