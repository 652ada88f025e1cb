"""Write and read a detector folder: ``config.json`` and ``model.safetensors``. Nothing is unpickled."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
from torch import Tensor, nn

from vovnet.checkpoints.places import is_torchvision, model_folder, torchvision_hint
from vovnet.checkpoints.safetensors_file import open_safetensors, safetensors_bytes
from vovnet.checkpoints.shapes import Shapes, refuse_differences, shapes_of
from vovnet.checkpoints.timm_folder import limited_building
from vovnet.detection.checkpoints.config_json import DetectorConfig, compose_config, read_config
from vovnet.detection.checkpoints.empty import empty_detector, fill_detector
from vovnet.detection.checkpoints.torchvision_detectors import TorchvisionDetector, torchvision_detector
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.models.build import Detector
from vovnet.errors import InputError
from vovnet.files import CONFIG_FILE, MODEL_FILES, WEIGHTS_FILE, atomic_path, check_symlink
from vovnet.folders.home import expand_home
from vovnet.terminal.streams import say


def save_detector(
    folder: str | os.PathLike[str],
    detector: nn.Module,
    model: ModelRecipe,
    categories: Sequence[Mapping[str, Any]],
    median_object: float | None = None,
    median_image: Sequence[float] | None = None,
    crop: int | None = None,
) -> None:
    """Write a detector folder. On any error the files that were there do not change.

    Args:
        folder: Where to write ``config.json`` and ``model.safetensors``; created if it does not exist.
        detector: A torchvision detector built from ``model``.
        model: The recipe; ``num_classes`` and the normalisation are filled in from the other two arguments.
        categories: ``{"id", "name"}`` in label order (label k is ``categories[k - 1]``).
        median_object: The median side in pixels of the training data's objects, if it is known.
        median_image: The median height and width in pixels of its images, if they are known.
        crop: The side in pixels of the crops that it was trained on, if it was.

    Raises:
        InputError: The categories do not fit the model.
        OSError: The system refused to write; the error names the file.
    """
    folder = expand_home(folder)
    config = compose_config(detector, model, categories, median_object, median_image, crop)
    weights = safetensors_bytes(detector.state_dict())
    with ExitStack() as both:
        # Both files are complete on the disk before either replaces the old one.
        config_path = both.enter_context(atomic_path(folder / CONFIG_FILE))
        weights_path = both.enter_context(atomic_path(folder / WEIGHTS_FILE))
        text = json.dumps(config.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
        config_path.write_text(text + "\n", encoding="utf-8")
        weights_path.write_bytes(weights)


def load_detector(name_or_folder: str | os.PathLike[str], revision: str | None = None) -> Detector:
    """Load a detector from a folder or from the Hugging Face Hub, ready to predict.

    Args:
        name_or_folder: A local folder with ``config.json`` and ``model.safetensors``, such as a training run's; or
            ``ORG/NAME`` or ``hf-hub:ORG/NAME`` on the Hub; or ``torchvision:NAME``, one of torchvision's COCO
            detectors. Only the last two use the network.
        revision: Branch, tag or commit of the repository; only for a Hub name.

    Returns:
        A torchvision detector in evaluation mode on the CPU. It takes a list of float tensors (C, H, W) in [0, 1] and
        returns boxes as XYXY pixels. Boxes of a detector with ``conventions: legacy`` include both corners; its
        ``boxes_to_xywh`` converts them to COCO's form. The detector has ``categories`` (``{"id", "name"}`` in label
        order), ``preprocessing`` (dict) and ``recipe`` (:class:`~vovnet.detection.config.model.ModelRecipe`).

    Raises:
        InputError: The files do not exist, cannot be fetched, are damaged, have a format that this version does not
            read, or hold weights of another model.
    """
    with stored_detector(name_or_folder, revision) as stored:
        config, shapes = stored.config, stored.shapes
        detector = stored.empty()
        refuse_differences(stored.path, shapes_of(detector.state_dict()), shapes)
        detector = fill_detector(detector, config.model, stored.tensors())
        if stored.title:
            say(f"weights: {stored.title}")
    return attach(detector, config).eval()


@dataclass(frozen=True)
class StoredDetector:
    """A detector in a file that is open."""

    config: DetectorConfig
    path: Path
    """The file of weights."""
    shapes: Shapes
    """The shape of each tensor in it."""
    tensors: Callable[[], dict[str, Tensor]]
    """Returns the weights; they may be views of the file, which is open as long as the ``with`` block."""
    title: str = ""
    """The name, published AP and licence of published weights, as one line; empty for other weights."""

    def empty(self) -> nn.Module:
        """Build the detector without memory for its weights.

        Raises:
            InputError: It cannot be built, or is far larger than its weights.
        """
        with limited_building(len(self.shapes), str(self.path)), _input_errors(self.path.with_name(CONFIG_FILE)):
            return empty_detector(self.config.model)


@contextmanager
def stored_detector(name_or_folder: str | os.PathLike[str], revision: str | None = None) -> Iterator[StoredDetector]:
    """Open the detector of a folder, a Hub name or one of torchvision's, as for :func:`load_detector`.

    Raises:
        InputError: As for :func:`load_detector`, but the weights are not compared with the configuration.
    """
    if is_torchvision(name_or_folder):
        if revision is not None:
            raise InputError(f"revision '{revision}' was given, but '{name_or_folder}' is torchvision's and has none")
        yield _stored_by_torchvision(torchvision_detector(name_or_folder))
        return
    folder = find_folder(name_or_folder, revision)
    config = read_config(folder / CONFIG_FILE)
    with open_safetensors(folder / WEIGHTS_FILE) as weights:
        yield StoredDetector(config, weights.path, weights.shapes(), weights.tensors)


def _stored_by_torchvision(source: TorchvisionDetector) -> StoredDetector:
    detector = empty_detector(source.model)
    config = compose_config(detector, source.model, source.categories)
    # Frozen norms count no batches, but a file may hold their counters.
    known = detector.state_dict()
    tensors = {
        key: one for key, one in source.tensors().items() if key in known or not key.endswith(".num_batches_tracked")
    }
    return StoredDetector(config, source.file, shapes_of(tensors), lambda: tensors, str(source))


@contextmanager
def _input_errors(path: Path) -> Iterator[None]:
    """Turn errors of building a detector into InputErrors: odd arguments make a timm model raise anything."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: cannot build the detector ({' '.join(str(error).split())[:300]})") from error


def attach(detector: nn.Module, config: DetectorConfig) -> Detector:
    """Give a detector the attributes that evaluation and prediction read, and return it."""
    described = cast(Detector, detector)
    described.categories = config.categories
    described.preprocessing = config.preprocessing
    described.recipe = config.model
    return described


def find_folder(name_or_folder: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Return the local folder of a path or Hub name, after checking that it holds both files.

    Raises:
        InputError: There is no such folder, a file is missing or a link out of the folder, or the files cannot be
            fetched.
    """
    name = os.fspath(name_or_folder)
    if "/" not in name and not os.path.lexists(name):
        if timm.is_model(name.partition(".")[0]):
            raise InputError(
                f"'{name}' is a classifier's name; expected a detector's folder or Hub name (a recipe starts from this "
                "network's weights with model.backbone and model.pretrained)"
            )
        if hint := torchvision_hint(name):
            raise InputError(f"no folder '{name}' here; {hint}")
    folder = model_folder(name_or_folder, MODEL_FILES, revision)
    for name in MODEL_FILES:
        check_symlink(folder, name)
        if not (folder / name).is_file():
            raise InputError(
                f"folder '{folder}' has no {name}; expected a detector folder, as `vovnet train` leaves one"
            )
    return folder
