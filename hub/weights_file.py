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
from vovnet.checkpoints.places import FOLDER_PREFIX, HUB_PREFIX, is_path, local_folder, model_folder
from vovnet.checkpoints.safetensors_file import open_safetensors
from vovnet.checkpoints.timm_folder import read_timm_config
from vovnet.errors import InputError
from vovnet.files import CONFIG_FILE, MODEL_FILES, WEIGHTS_FILE, check_symlink, read_json
from vovnet.folders.home import expand_home


@dataclass(frozen=True)
class WeightsFile:
    """The contents of a file with weights."""

    path: Path
    """The file, which is in the folder if a folder was given."""
    name: str
    """The file's or folder's name without the folders around it, or ``ORG/NAME@COMMIT`` on the Hub: where the weights
    come from, for people who do not have this machine."""
    tensors: Mapping[str, Tensor]
    """The weights on the CPU, by the file's keys without ``module.``."""
    beside: tuple[str, ...] = ()
    """Names of other entries, such as ``optimizer``, which are not used."""
    config: Mapping[str, Any] | None = None
    """timm's ``config.json`` beside a safetensors file, if there is one."""


def read_weights_file(given: str | os.PathLike[str]) -> WeightsFile:
    """Read a ``.pth`` file, a zip archive of one, a ``.safetensors`` file, or a folder in timm's form.

    Args:
        given: The file or folder, also as ``local-dir:FOLDER``; or ``ORG/NAME[@REVISION]`` on the Hub, also as
            ``hf-hub:ORG/NAME``, whose ``config.json`` and ``model.safetensors`` are downloaded if they are not in the
            cache.

    Raises:
        InputError: It does not exist, cannot be fetched or read, would run code, or is a folder of another kind.
    """
    path, name = _on_this_machine(os.fspath(given))
    if path.is_dir():
        if not (path / WEIGHTS_FILE).is_file():
            raise InputError(f"{path}: is a folder without {WEIGHTS_FILE}; expected a checkpoint file or a timm folder")
        check_symlink(path, WEIGHTS_FILE)
        read_timm_config(path)
        path = path / WEIGHTS_FILE
    if path.suffix != ".safetensors":
        file = read_checkpoint_file(path)
        return WeightsFile(path, name, file.tensors, file.beside)
    if not path.is_file():
        raise InputError(f"{path}: does not exist; expected a file of weights")
    with open_safetensors(path) as stored:
        tensors = stored.tensors()
    return WeightsFile(path, name, tensors, config=_config_beside(path))


def _on_this_machine(given: str) -> tuple[Path, str]:
    """Return the file or folder, which may be in the Hub's cache, and its name for others."""
    path = expand_home(given)
    on_the_hub = HUB_NAME.fullmatch(given.partition("@")[0]) and not is_path(given) and not path.exists()
    if on_the_hub or given.startswith(HUB_PREFIX):
        folder = model_folder(given, MODEL_FILES)  # of the cache, which calls it like the commit
        return folder, f"{given.removeprefix(HUB_PREFIX).partition('@')[0]}@{folder.name}"
    if given.startswith(FOLDER_PREFIX):
        path = local_folder(given)
    return path, path.resolve().name if path.is_dir() else path.name


def _config_beside(path: Path) -> dict[str, Any] | None:
    """Return timm's ``config.json`` beside a safetensors file; None if there is none, or one of other files."""
    config = path.parent / CONFIG_FILE
    if not config.is_file() or (path.name != WEIGHTS_FILE and "architecture" not in read_json(config)):
        return None
    return read_timm_config(path.parent)
