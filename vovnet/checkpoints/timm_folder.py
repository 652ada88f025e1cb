"""Load a folder in timm's form, ``config.json`` + ``model.safetensors``, as data that may come from anyone."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from vovnet.checkpoints.safetensors_file import open_safetensors
from vovnet.errors import InputError
from vovnet.files import CONFIG_FILE, WEIGHTS_FILE, check_symlink, read_json

_MAX_LIST = 4096
_MAX_NUMBER = 100_000
_MAX_TEXT = 1000
_MAX_SIDE = 16_384
FORBIDDEN_ARGS = frozenset(
    # They read files or the network, choose a device, or are functions and not values.
    {"pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "device", "dtype"}
    | {"pretrained_strict", "pretrained_filter_fn", "kwargs_filter", "feature_cls"}
)
"""Arguments of ``timm.create_model`` that are refused in a stored model."""
SAME_NETWORK_ARGS = frozenset({"drop_rate", "drop_path_rate", "drop_block_rate"})
"""Arguments of ``timm.create_model`` that do not change what given weights compute in evaluation."""


def read_timm_config(folder: Path) -> dict[str, Any]:
    """Read and check timm's ``config.json``: timm knows the architecture, and the arguments are within bounds.

    Raises:
        InputError: The file is absent or not timm's, or holds a value that no real network has.
    """
    path = folder / CONFIG_FILE
    check_symlink(folder, CONFIG_FILE)
    if not path.is_file():
        raise InputError(f"{folder} has no {CONFIG_FILE}: expected a folder that timm or the Hub wrote")
    config = read_json(path)
    architecture = config.get("architecture")
    if config.get("format") == "vovnet-detector":
        raise InputError(f"{folder} holds a detector, not a classifier: load it with vovnet.hub.load_detector")
    if not isinstance(architecture, str):
        raise InputError(f"{path} names no timm 'architecture': expected a {CONFIG_FILE} that timm wrote")
    if not timm.is_model(architecture):
        raise InputError(f"{path}: timm knows no architecture '{architecture}'; a newer timm or another package may")
    arguments = config.get("model_args", {})
    if not isinstance(arguments, dict):
        raise InputError(f"{path}: 'model_args' must be an object, got {type(arguments).__name__}")
    if forbidden := sorted(FORBIDDEN_ARGS & set(arguments)):
        raise InputError(f"{path}: model_args.{forbidden[0]} is not allowed in a published model")
    _check_bounds({key: config.get(key) for key in ("model_args", "num_classes")}, str(path))
    classes = config.get("num_classes", 0)
    if type(classes) is not int or classes < 0:
        raise InputError(f"{path}: 'num_classes' is {classes!r}, expected a number of classes")
    cfg = config.get("pretrained_cfg", {})
    if not isinstance(cfg, dict):
        raise InputError(f"{path}: 'pretrained_cfg' must be an object")
    _check_preprocessing(cfg, f"{path}: pretrained_cfg")
    return config


def _check_preprocessing(cfg: Mapping[str, Any], where: str) -> None:
    """Check the size, mean and standard deviation of images."""
    for name in ("input_size", "test_input_size", "min_input_size"):
        size = cfg.get(name)
        good = isinstance(size, list) and len(size) == 3 and all(type(n) is int and 0 < n <= _MAX_SIDE for n in size)
        if size is not None and not good:
            raise InputError(f"{where}.{name} is {size!r:.80}, expected channels, height and width")
    for name, least in (("mean", -math.inf), ("std", 0)):
        values = cfg.get(name)
        good = isinstance(values, list) and all(isinstance(n, int | float) and least < n < math.inf for n in values)
        if values is not None and not good:
            raise InputError(f"{where}.{name} is {values!r:.80}, expected a number a channel")


def load_timm_folder(folder: Path) -> nn.Module:
    """Load the timm model of a folder with its weights, in evaluation mode.

    Raises:
        InputError: A file is missing, damaged or a link out of the folder, or the weights do not fit the configuration.
    """
    read_timm_config(folder)
    check_symlink(folder, WEIGHTS_FILE)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise InputError(f"{folder} has no {WEIGHTS_FILE}: expected a folder that timm or the Hub wrote")
    try:
        _refuse_other_weights(folder, weights)
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except InputError as error:  # our own networks do not know the file that their arguments come from
        if str(folder) in str(error):
            raise
        raise InputError(f"{folder / CONFIG_FILE}: {error}") from error
    except Exception as error:  # arguments that nobody expected can make a timm model raise anything
        raise InputError(f"{folder}: cannot load the classifier ({' '.join(str(error).split())[:300]})") from error


def _refuse_other_weights(folder: Path, weights: Path) -> None:
    """Build the network without memory first, so that the real one is no larger than the weights beside it."""
    with open_safetensors(weights) as file:
        shapes = file.shapes()
    stored = sum(math.prod(shape) for shape in shapes.values())
    with torch.device("meta"), limited_building(len(shapes), str(weights)):
        model: Any = timm.create_model(f"local-dir:{folder}", pretrained=False)
    wanted = sum(value.numel() for value in model.state_dict().values())
    if wanted != stored:
        raise InputError(
            f"{weights}: weights of another model: {stored:,} numbers, but {CONFIG_FILE} describes one of {wanted:,}"
        )
    said = model.pretrained_cfg.get("num_classes")
    if said is not None and said != model.num_classes:  # timm would leave the classifier random
        raise InputError(f"{folder / CONFIG_FILE}: {said} classes, but the arguments make {model.num_classes}")


@contextmanager
def limited_building(tensors: int, where: str) -> Iterator[None]:
    """Stop building a network that has far more tensors than the file of its weights.

    A hostile configuration could otherwise describe a network that takes hours to build, even without memory.

    Args:
        tensors: The number of tensors in the file.
        where: The file's name for the message.

    Raises:
        InputError: The network has more tensors.
    """
    # A network is built up to three times before it is compared, each time with a classifier.
    limit = 4 * tensors + 1000
    thread, made = threading.get_ident(), 0

    def count(module: nn.Module, name: str, parameter: object) -> None:
        nonlocal made
        made += threading.get_ident() == thread
        if made > limit:
            raise InputError(f"{where}: weights of another model: {tensors} tensors; {CONFIG_FILE} describes far more")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _check_bounds(value: Any, where: str) -> None:
    """Check lists, texts and numbers at any depth."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        if len(value) > _MAX_LIST:
            raise InputError(f"{where}: {len(value)} entries in a list, expected at most {_MAX_LIST}")
        for entry in value:
            _check_bounds(entry, where)
    elif isinstance(value, str) and len(value) > _MAX_TEXT:
        raise InputError(f"{where}: {len(value)} characters in a text, expected at most {_MAX_TEXT}")
    elif isinstance(value, int | float) and not abs(value) <= _MAX_NUMBER:  # so that NaN is refused, too
        raise InputError(f"{where}: {value!r:.80} is out of bounds")
