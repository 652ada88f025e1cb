"""Published checkpoints → our detector folders and timm's folders.

What a file holds is told by its keys and shapes alone. Each key is mapped once or ignored on purpose, with the reason;
anything else is an error that lists it. Values are not changed, but for other floating-point types, which become
float32.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from vovnet.detection.checkpoint import save_detector
from vovnet.detection.detectors import build_detector
from vovnet.detection.legacy.keys import PARTS, PublishedDetector, check_cell_anchors, identify_detector
from vovnet.detection.recipe import ModelRecipe, load_recipe, recipe_names
from vovnet.detection.tensor_shapes import shapes_of
from vovnet.errors import InputError
from vovnet.files import claim_folder
from vovnet.hub.checkpoint_file import read_checkpoint_file, to_float32
from vovnet.hub.networks import BOTTOM_UP, PublishedNetwork, identify_network, write_network

COCO_CLASSES = 80

_STRUCTURE = ("detector", "conventions", "backbone", "norm", "fpn_norm", "box_head_convs", "head_norm")
"""What tells one published model recipe from another."""


@dataclass(frozen=True)
class Conversion:
    """What was converted; ``str()`` of it tells the user."""

    title: str
    """Such as ``Mask R-CNN V-39-FPN, 80 classes``."""
    name: str
    """The shipped recipe that trains the detector, or timm's name of the network."""
    folder: Path
    notes: tuple[str, ...] = ()
    """What the user should know: what the weights expect, what was converted."""
    ignored: Mapping[str, str] = field(default_factory=dict)
    """Keys of the file that were left out on purpose, and why."""

    def __str__(self) -> str:
        lines = [f"{self.folder}: {self.title} ({self.name})", *(f"note: {note}" for note in self.notes)]
        return "\n".join([*lines, *(f"ignored: {key} ({why})" for key, why in self.ignored.items())])


def convert_checkpoint(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    expect: str | None = None,
) -> Conversion:
    """The body of :func:`vovnet.hub.convert_checkpoint`, which documents it."""
    wanted = None if expect is None else _expected_structure(expect)
    file = read_checkpoint_file(path)
    try:
        published = _identify(file.tensors)
        if expect is not None and wanted != _structure(published):
            raise InputError(_is_something_else(published, expect))
        check_cell_anchors(file.tensors)
        values, notes = to_float32({theirs: file.tensors[theirs] for theirs in published.names})
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    folder = claim_folder(out, overwrite=overwrite)
    tensors = {published.names[theirs]: value for theirs, value in values.items()}
    if file.beside:
        notes.append(f"not read, beside the weights: {', '.join(file.beside)}")
    if isinstance(published, PublishedNetwork):
        write_network(folder, published, tensors, Path(path).name)
        notes = [*published.notes, *notes]
    else:
        notes = [*_write_detector(folder, published, tensors), *notes]
    return Conversion(_full_title(published), _name(published), folder, tuple(notes), published.ignored)


def _identify(tensors: Mapping[str, Tensor]) -> PublishedDetector | PublishedNetwork:
    shapes = shapes_of(tensors)
    detectron2 = any(key.startswith(BOTTOM_UP) for key in shapes)
    if not detectron2 and any(key.startswith(PARTS) for key in shapes):
        return identify_detector(shapes)
    return identify_network(shapes)


def _write_detector(folder: Path, published: PublishedDetector, tensors: Mapping[str, Tensor]) -> list[str]:
    detector = build_detector(published.model, download=False)
    detector.load_state_dict(tensors)
    classes = published.model.num_classes
    save_detector(
        folder, detector, published.model, coco_categories() if classes == COCO_CLASSES else _numbered(classes)
    )
    if classes == COCO_CLASSES:
        return []
    return [f"the file does not name its {classes} classes: config.json calls them 1 to {classes}"]


def coco_categories() -> list[dict[str, Any]]:
    """COCO's 80 object categories in the order of their ids, which is that of the labels 1 to 80."""
    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # by id; what has no object is N/A
    return [{"id": i, "name": name} for i, name in enumerate(names) if i > 0 and name != "N/A"]


def _numbered(classes: int | None) -> list[dict[str, Any]]:
    return [{"id": i, "name": str(i)} for i in range(1, (classes or 0) + 1)]


def _is_something_else(published: PublishedDetector | PublishedNetwork, expect: str) -> str:
    hint = ""
    if expect.startswith("mask_rcnn_V_57") and published.title == "Mask R-CNN V-39-FPN":
        hint = "; the link that is published for Mask R-CNN V-57 leads to the file of V-39"
    elif isinstance(published, PublishedNetwork) and published.name == f"{expect}_all":
        hint = f": timm's {expect} has the attention in the last block of a stage alone"
    return f"is {_full_title(published)} ({_name(published)}), not {expect}{hint}; nothing was written"


def _expected_structure(expect: str) -> object:
    if expect in recipe_names() or expect.endswith((".yaml", ".yml")):
        return _model_structure(load_recipe(expect).model)
    architecture = expect.partition(".")[0]  # without a tag such as .in1k
    if timm.is_model(architecture):
        return architecture
    known = [*recipe_names(), *timm.list_models("*vovnet*"), "resnet50", "resnet101"]
    near = difflib.get_close_matches(expect, known, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise InputError(f"--expect '{expect}' is neither a recipe nor a timm model{hint}")


def _structure(published: PublishedDetector | PublishedNetwork) -> object:
    return published.name if isinstance(published, PublishedNetwork) else _model_structure(published.model)


def _model_structure(model: ModelRecipe) -> tuple[object, ...]:
    return tuple(getattr(model, key) for key in _STRUCTURE)


def _full_title(published: PublishedDetector | PublishedNetwork) -> str:
    if isinstance(published, PublishedNetwork):
        classes = published.num_classes
        return f"{published.title}, {f'{classes} classes' if classes else 'a backbone without a classifier'}"
    return f"{published.title}, {published.model.num_classes} classes"


def _name(published: PublishedDetector | PublishedNetwork) -> str:
    if isinstance(published, PublishedNetwork):
        return published.name
    return published.recipe or f"no shipped recipe; model.backbone={published.model.backbone}"
