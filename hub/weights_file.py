"""Read the file that is converted: a checkpoint, a safetensors file, or a folder or Hub repository in timm's form."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vovnet.checkpoints.hub import HUB_NAME
from vovnet.checkpoints.pickled import read_checkpoint_file
from vovnet.checkpoints.places import HUB_PREFIX, is_path, model_folder
from vovnet.checkpoints.safetensors_file import open_safetensors
from vovnet.checkpoints.timm_folder import read_timm_config
from vovnet.errors import InputError
from vovnet.files import CONFIG_FILE, MODEL_FILES, WEIGHTS_FILE, check_symlink
from vovnet.folders.home import expand_home


@dataclass(frozen=True)
class WeightsFile:
    """The contents of a file with weights."""

    path: Path
    """The file, which is in the folder if a folder was given."""
    tensors: Mapping[str, Tensor]
    """The weights on the CPU, by the file's keys without ``module.``."""
    beside: tuple[str, ...] = ()
    """Names of other entries, such as ``optimizer``, which are not used."""
    config: Mapping[str, Any] | None = None
    """timm's ``config.json`` beside a safetensors file, if there is one."""


def read_weights_file(given: str | os.PathLike[str]) -> WeightsFile:
    """Read a ``.pth`` file, a zip archive of one, a ``.safetensors`` file, or a folder in timm's form.

    Args:
        given: The file or folder; or ``ORG/NAME[@REVISION]`` on the Hub, whose ``config.json`` and
            ``model.safetensors`` are downloaded if they are not in the cache.

    Raises:
        InputError: It does not exist, cannot be fetched or read, would run code, or is a folder of another kind.
    """
    path = _on_this_machine(os.fspath(given))
    if path.is_dir():
        if not (path / WEIGHTS_FILE).is_file():
            raise InputError(f"{path}: is a folder without {WEIGHTS_FILE}; expected a checkpoint file or a timm folder")
        check_symlink(path, WEIGHTS_FILE)
        read_timm_config(path)
        path = path / WEIGHTS_FILE
    if path.suffix != ".safetensors":
        file = read_checkpoint_file(path)
        return WeightsFile(path, file.tensors, file.beside)
    if not path.is_file():
        raise InputError(f"{path}: does not exist; expected a file of weights")
    with open_safetensors(path) as stored:
        tensors = stored.tensors()
    config = read_timm_config(path.parent) if (path.parent / CONFIG_FILE).is_file() else None
    return WeightsFile(path, tensors, config=config)


def _on_this_machine(given: str) -> Path:
    path = expand_home(given)
    named = given.startswith(HUB_PREFIX) or (HUB_NAME.fullmatch(given.partition("@")[0]) and not is_path(given))
    return model_folder(given, MODEL_FILES) if named and not path.exists() else path
