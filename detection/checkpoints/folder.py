"""Our detector folder, ``config.json`` + ``model.safetensors``: written and read here and nowhere else.

Nothing in this module unpickles: weights are safetensors, the rest is JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from vovnet.checkpoints.hub import hub_files
from vovnet.checkpoints.shapes import Shapes, compare_shapes, shapes_of
from vovnet.checkpoints.timm_folder import limited_building
from vovnet.detection.checkpoints.config_json import DetectorConfig, compose_config, read_config
from vovnet.detection.checkpoints.empty import empty_detector, fill_detector
from vovnet.detection.config.schema import ModelRecipe
from vovnet.detection.models.build import Detector
from vovnet.errors import InputError, reason
from vovnet.files import CONFIG_FILE, WEIGHTS_FILE, atomic_path, check_symlink


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


def load_detector(name_or_folder: str | os.PathLike[str], revision: str | None = None) -> Detector:
    """Build the detector of a folder or of a Hugging Face repository and load its weights.

    Args:
        name_or_folder: a local folder with ``config.json`` and ``model.safetensors``; else ``ORG/NAME`` on the Hub,
            which is the only case that reaches the network.
        revision: branch, tag or commit of the repository; only for a Hub name.

    Returns:
        The torchvision detector in eval mode on the CPU. Input: a list of float tensors (C, H, W) in [0, 1]. Extra
        attributes: ``categories`` (``{"id", "name"}`` in label order), ``preprocessing`` (dict), ``recipe``
        (:class:`~vovnet.detection.config.schema.ModelRecipe`).

    Raises:
        InputError: not found, offline, damaged, of another format or version, or weights of another model.
    """
    folder = find_folder(name_or_folder, revision)
    config = read_config(folder / CONFIG_FILE)
    with open_weights(folder / WEIGHTS_FILE) as weights:
        # Norms and frozen stages are as if the backbone were pretrained; the weights are all in the folder.
        with limited_building(len(weights.shapes()), str(weights.path)), _input_errors(folder / CONFIG_FILE):
            detector = empty_detector(config.model)
        weights.refuse_differences(shapes_of(detector.state_dict()))
        detector = fill_detector(detector, config.model, weights.tensors())
    return attach(detector, config).eval()


@contextmanager
def _input_errors(path: Path) -> Iterator[None]:
    """Turn errors of building a detector into InputErrors: odd arguments can make a timm model raise anything."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: cannot build the detector ({' '.join(str(error).split())[:300]})") from error


def attach(detector: FasterRCNN, config: DetectorConfig) -> Detector:
    """Give a detector the attributes that evaluation and prediction read, and return it."""
    described = cast(Detector, detector)
    described.categories = config.categories
    described.preprocessing = config.preprocessing
    described.recipe = config.model
    return described


def find_folder(name_or_folder: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Turn a local folder's path or a Hub name into a local folder that holds both files.

    Raises:
        InputError: neither, or a file is missing or a link that leads elsewhere, or the Hub cannot give it.
    """
    files = (CONFIG_FILE, WEIGHTS_FILE)
    folder = Path(name_or_folder)
    if not folder.exists():
        return hub_files(os.fspath(name_or_folder), files, revision)
    if revision is not None:
        raise InputError(
            f"revision '{revision}' was given, but '{folder}' is a local path; revisions exist only on the Hub"
        )
    if not folder.is_dir():
        raise InputError(f"'{folder}' is a file; expected the folder that holds {CONFIG_FILE} and {WEIGHTS_FILE}")
    for name in files:
        check_symlink(folder, name)
        if not (folder / name).is_file():
            raise InputError(
                f"folder '{folder}' has no {name}; expected a detector folder, as `vovnet train` leaves one"
            )
    return folder


class WeightsFile:
    """An open safetensors file, from :func:`open_weights`."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path = path
        self._file = file

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes, from the header alone."""
        return {key: tuple(self._file.get_slice(key).get_shape()) for key in self._file.keys()}  # noqa: SIM118

    def refuse_differences(self, expected: Shapes) -> None:
        """Hold the file to the shapes that a model has, before anything is read but the header.

        Raises:
            InputError: the message counts what is missing, left over and of another shape, and names some of each.
        """
        refuse_differences(self.path, expected, self.shapes())

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, held to the checksum that :func:`save_detector` stored, if any.

        Raises:
            InputError: they do not fit their checksum.
        """
        tensors = {key: self._file.get_tensor(key) for key in self._file.keys()}  # noqa: SIM118
        checksum = (self._file.metadata() or {}).get("sha256")
        if checksum is not None and checksum != _checksum(tensors):
            raise InputError(
                f"{self.path}: the weights do not fit their checksum; the file is damaged, fetch or save it again"
            )
        return tensors


@contextmanager
def open_weights(path: Path) -> Iterator[WeightsFile]:
    """Open a safetensors file once, to look at its header and to read it.

    Raises:
        InputError: the file cannot be read, is truncated or is not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield WeightsFile(path, file)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: not a readable safetensors file ({reason(error)}); fetch or save it again"
        ) from error


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
