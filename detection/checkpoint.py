"""Our detector folder, ``config.json`` + ``model.safetensors``: written and read here and nowhere else.

Nothing in this module unpickles: weights are safetensors, the rest is JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vovnet.detection.detector_config import DetectorConfig, compose_config, read_config
from vovnet.detection.recipe import ModelRecipe
from vovnet.detection.tensor_shapes import Shapes, compare_shapes, shapes_of
from vovnet.errors import InputError, reason
from vovnet.files import atomic_path

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def save_detector(
    folder: str | os.PathLike[str], detector: nn.Module, model: ModelRecipe, categories: Sequence[Mapping[str, Any]]
) -> None:
    """Write a detector folder; on any error the files that were there stay as they were.

    Args:
        folder: where ``config.json`` and ``model.safetensors`` go; created if need be.
        detector: a torchvision detector built from ``model``.
        model: its recipe; ``num_classes`` and the normalisation are filled in from the other two arguments.
        categories: ``{"id", "name"}`` in label order (label k is ``categories[k - 1]``).

    Raises:
        InputError: the categories do not fit the model.
        OSError: no permission, full disk and the like, with the file's name.
    """
    from safetensors.torch import save

    folder = Path(folder)
    config = compose_config(detector, model, categories)
    tensors = _separate(detector.state_dict())
    with ExitStack() as both:
        # Both are complete on the disk before either takes its place.
        config_path = both.enter_context(atomic_path(folder / CONFIG_FILE))
        weights_path = both.enter_context(atomic_path(folder / WEIGHTS_FILE))
        text = json.dumps(config.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
        config_path.write_text(text + "\n", encoding="utf-8")
        weights_path.write_bytes(save(tensors, metadata={"format": "pt", "sha256": _checksum(tensors)}))


def load_detector(name_or_folder: str | os.PathLike[str], revision: str | None = None) -> nn.Module:
    """Build the detector of a folder or of a Hugging Face repository and load its weights.

    Args:
        name_or_folder: a local folder with ``config.json`` and ``model.safetensors``; else ``ORG/NAME`` on the Hub,
            which is the only case that reaches the network.
        revision: branch, tag or commit of the repository; only for a Hub name.

    Returns:
        The torchvision detector in eval mode on the CPU. Input: a list of float tensors (C, H, W) in [0, 1]. Extra
        attributes: ``categories`` (``{"id", "name"}`` in label order), ``preprocessing`` (dict), ``recipe``
        (:class:`~vovnet.detection.recipe.ModelRecipe`).

    Raises:
        InputError: not found, offline, damaged, of another format or version, or weights of another model.
    """
    from vovnet.detection.detectors import build_detector

    folder = find_folder(name_or_folder, revision)
    config = read_config(folder / CONFIG_FILE)
    weights = folder / WEIGHTS_FILE
    refuse_differences(weights, _shapes_without_memory(config), weight_shapes(weights))
    # The weights are all in the folder; what pretraining decided about norms and freezing stays.
    detector = build_detector(config.model, download=False)
    tensors = read_weights(weights)
    refuse_differences(weights, shapes_of(detector.state_dict()), shapes_of(tensors))
    detector.load_state_dict(tensors)
    return attach(detector, config).eval()


def attach(detector: nn.Module, config: DetectorConfig) -> nn.Module:
    """Give a detector the attributes that evaluation and prediction read."""
    detector.categories = config.categories  # type: ignore[assignment]
    detector.preprocessing = config.preprocessing  # type: ignore[assignment]
    detector.recipe = config.model  # type: ignore[assignment]
    return detector


def find_folder(name_or_folder: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Turn a local folder's path or a Hub name into a local folder that holds both files.

    Raises:
        InputError: neither, or a file is missing, or the Hub cannot give it.
    """
    folder = Path(name_or_folder)
    if not folder.exists():
        folder = _download(os.fspath(name_or_folder), revision)
        source = f"repository '{os.fspath(name_or_folder)}'"
    elif revision is not None:
        raise InputError(
            f"revision '{revision}' was given, but '{folder}' is a local path; revisions exist only on the Hub"
        )
    elif not folder.is_dir():
        raise InputError(f"'{folder}' is a file; expected the folder that holds {CONFIG_FILE} and {WEIGHTS_FILE}")
    else:
        source = f"folder '{folder}'"
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise InputError(f"{source} has no {name}; expected a detector folder, as `vovnet train` leaves one")
    return folder


def _download(name: str, revision: str | None) -> Path:
    if not _HUB_NAME.fullmatch(name):
        raise InputError(f"'{name}' is neither a folder here nor a Hub name ORG/NAME; check the path")
    from huggingface_hub import errors, snapshot_download

    asked = f"'{name}'" + (f" at revision '{revision}'" if revision else "")
    mend = f"or download {CONFIG_FILE} and {WEIGHTS_FILE} elsewhere and give their folder"
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except errors.GatedRepoError as error:
        raise InputError(f"Hub repository {asked} is gated: accept its terms, `hf auth login`, {mend}") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"no folder '{name}' here and no such repository on the Hub (or a private one): check the name, "
            f"`hf auth login`, {mend}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"Hub repository '{name}' has no revision '{revision}'; check its name") from error
    except (OSError, ValueError, RuntimeError, errors.HfHubHTTPError) as error:
        raise InputError(
            f"no folder '{name}' here, and Hub repository {asked} cannot be reached ({reason(error)}): connect (or "
            f"unset HF_HUB_OFFLINE), {mend}"
        ) from error


def weight_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file, from its header alone.

    Raises:
        InputError: the file cannot be read, is truncated or is not safetensors.
    """
    with _opened(path) as stack_file:
        return {key: tuple(stack_file.get_slice(key).get_shape()) for key in stack_file.keys()}  # noqa: SIM118


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, held to the checksum that :func:`save_detector` stored, if any.

    Raises:
        InputError: the file cannot be read, is truncated, is not safetensors or does not fit its checksum.
    """
    with _opened(path) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        checksum = (file.metadata() or {}).get("sha256")
    if checksum is not None and checksum != _checksum(tensors):
        raise InputError(f"{path}: the weights do not fit their checksum; the file is damaged, fetch or save it again")
    return tensors


class _opened:
    """``safetensors.safe_open`` whose errors are ours, on opening and while reading."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            self.file = safe_open(self.path, framework="pt")
            return self.file.__enter__()
        except (SafetensorError, OSError) as error:
            raise self.damaged(error) from error

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        from safetensors import SafetensorError

        self.file.__exit__(kind, error, traceback)
        if isinstance(error, SafetensorError):
            raise self.damaged(error) from error

    def damaged(self, error: Exception) -> InputError:
        """One line for what went wrong."""
        return InputError(f"{self.path}: not a readable safetensors file ({reason(error)}); fetch or save it again")


def _shapes_without_memory(config: DetectorConfig) -> dict[str, tuple[int, ...]]:
    """The shapes that a config asks for, before any memory is taken for them."""
    from vovnet.detection.detectors import build_detector

    with torch.device("meta"):
        return shapes_of(build_detector(config.model, download=False).state_dict())


def refuse_differences(path: Path, expected: Shapes, found: Shapes) -> None:
    """Hold the shapes in a file to those that a model has.

    Raises:
        InputError: the message counts what is missing, left over and of another shape, and names some of each.
    """
    if differences := compare_shapes(expected, found):
        raise InputError(
            f"{path}: weights of another model: {differences.brief()}; of {len(expected)} expected tensors"
        )


def _separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors of which no two share memory, as safetensors wants them."""
    seen: set[int] = set()
    tensors = {}
    for key, value in state.items():
        tensor = value.detach().cpu().contiguous()
        if tensor.numel() and tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        tensors[key] = tensor
    return tensors


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
