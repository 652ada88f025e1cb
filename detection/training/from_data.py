"""The recipe of ``vovnet train DATA``: a recipe for the device, and what follows from the data."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from vovnet.detection.config.detectors import DETECTORS, DetectorName
from vovnet.detection.config.fields import AUTO
from vovnet.detection.config.loading import load_recipe, recipe_names
from vovnet.detection.config.schema import Recipe
from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.annotations import AnnotationFile, has_keypoints, has_segmentation
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.data.sources import read_source
from vovnet.detection.data.suggestions import LARGE, SMALL, Scale, Suggestion, crops_per_image, suggest
from vovnet.detection.formats.finding import HUB, sources_of
from vovnet.detection.formats.yolo_config import describes_yolo
from vovnet.folders.home import expand_home
from vovnet.processes.devices import choose_device, default_device
from vovnet.terminal.streams import say


@dataclass(frozen=True)
class _Base:
    """What the device decides."""

    recipe: str
    scale: Scale
    epochs: int
    """Length of a training from random weights, …"""
    fewest: int
    most: int
    """… but at least and at most so many iterations."""


_CPU = _Base("own_data_cpu", SMALL, epochs=24, fewest=1000, most=6000)
_GPU = _Base("own_data_gpu", LARGE, epochs=72, fewest=3000, most=90_000)

_TUNED = "own_data_tuned"
"""The recipe for torchvision's detectors."""
_MASKS, _KEYPOINTS = 0.9, 0.5
"""Parts of the objects that must have masks, or labelled keypoints, for a detector of them."""
_FINE_TUNING = 3
"""A training that starts from a detector is shorter by this factor, and so is its learning rate."""


@dataclass(frozen=True)
class ChosenRecipe:
    """A recipe, and what of it was chosen by the data and the device."""

    recipe: Recipe
    choices: list[Suggestion]
    """Without the keys that the user gave."""

    def __str__(self) -> str:
        return "chosen from the data (give any as key=value to change it):\n" + "\n".join(
            f"  {choice}" for choice in self.choices
        )


def recipe_from_data(
    data: str | Path, overrides: Sequence[str] = (), *, device: str | torch.device | None = None
) -> ChosenRecipe:
    """Return a recipe for a dataset of which nothing else is known.

    The device chooses the shipped recipe that the choice starts from, ``own_data_cpu`` or ``own_data_gpu``; with
    ``init=torchvision:NAME`` it is ``own_data_tuned``. The kinds of annotations choose the detector, the sizes of
    images and objects choose the resize, the anchors and the limit of detections, and the number of images chooses the
    length.

    Args:
        data: a folder or file that :func:`~vovnet.detection.formats.finding.sources_of` knows.
        overrides: ``key=value`` texts as in :func:`~vovnet.detection.config.loading.load_recipe`; these keys are not
            chosen.
        device: None is the GPU of this process, or the CPU if there is none.

    Raises:
        InputError: the data, an override or the device cannot be used.
    """
    base = _CPU if choose_device(device, default_device()).type == "cpu" else _GPU
    tuned = any(text.startswith("init=torchvision:") for text in overrides)
    if tuned:  # the network is torchvision's, and its anchors are those that it was trained with
        base = replace(base, recipe=_TUNED)
    sources = sources_of(data)
    given = [text.partition("=")[0] for text in overrides]
    found = [
        Suggestion("data.train", _plain(sources.train), sources.line),
        Suggestion("data.val", _plain(sources.val), "the same"),
    ]
    asked = load_recipe(base.recipe, [*_overrides(found, given), *overrides])
    if "model.detector" not in given:
        found.append(_detector(asked.data.train))
        asked = load_recipe(base.recipe, [*_overrides(found, given), *overrides])
    kind = DETECTORS[asked.model.detector]
    dataset = CocoDataset(asked.data.train, masks=kind.needs_masks, training=True, keypoints=kind.needs_keypoints)
    sizes = dataset.object_sizes()
    own_crop = "data.crop" in given
    seen = sizes if asked.data.crop is None else sizes.cropped(asked.data.crop)
    found += suggest(seen, base.scale, anchors=not kind.one_stage and not tuned, crops=not own_crop)
    crop = next((one.value for one in found if one.key == "data.crop"), asked.data.crop)
    images = round(len(dataset) * crops_per_image(sizes, int(str(crop)))) if crop else len(dataset)
    found += _length(asked, images, base, "solver.max_iterations" in given)
    chosen = [one for one in found if one.key not in given]
    return ChosenRecipe(load_recipe(base.recipe, [*_overrides(chosen, ()), *overrides]), chosen)


def recipe_or_data(
    argument: str,
    overrides: Sequence[str],
    output: str | Path,
    *,
    resume: bool | Literal["auto"] = False,
    device: str | None = None,
) -> Recipe:
    """Return the recipe of ``vovnet train ARGUMENT``: a recipe's name or file, or data of which nothing else is known.

    What was chosen from data is printed by the first process. A run that goes on has the choices of its start.

    Raises:
        InputError: there is no such recipe or data, or it cannot be used.
    """
    if not _is_data(argument):
        return load_recipe(argument, overrides)
    started = expand_home(output) / "recipe.yaml"
    if resume and started.is_file():
        return load_recipe(started, overrides)
    chosen = recipe_from_data(argument, overrides, device=device)
    if os.environ.get("RANK", "0") == "0":
        say(str(chosen))
    return chosen.recipe


def _is_data(argument: str) -> bool:
    """True if an argument is no recipe, but the path of a folder or a file of labels, or a dataset of the Hub."""
    if argument.startswith(HUB):
        return True
    path = expand_home(argument)
    if argument in recipe_names() or not path.exists():
        return False
    return describes_yolo(path) if path.suffix in (".yaml", ".yml") else True


def _overrides(choices: Sequence[Suggestion], given: Sequence[str]) -> list[str]:
    return [one.override for one in choices if one.key not in given]


def _detector(sources: Sequence[DataSource]) -> Suggestion:
    """Return the kind of detector that the annotations are for."""
    files = [file.content for source in sources for file in read_source(source, "train")]
    masks, keypoints = _share(files, has_segmentation), _share(files, has_keypoints)
    name: DetectorName = "faster_rcnn"
    if keypoints >= _KEYPOINTS:
        name, reason = "keypoint_rcnn", f"{keypoints:.0%} of the objects have keypoints"
    elif masks >= _MASKS:
        name, reason = "mask_rcnn", f"{masks:.0%} of the objects have masks"
    elif masks:
        reason = f"objects have boxes, and only {masks:.0%} have masks"
    else:
        reason = "objects have boxes"
    return Suggestion("model.detector", name, reason)


def _share(files: Sequence[AnnotationFile], has: Callable[[dict[str, Any]], bool]) -> float:
    objects = [entry for file in files for entry in file.annotations if isinstance(entry, dict)]
    return sum(map(has, objects)) / max(1, len(objects))


def _length(recipe: Recipe, images: int, base: _Base, given: bool) -> list[Suggestion]:
    """Return the number of iterations, when to evaluate, and with trained weights a lower learning rate.

    Args:
        recipe: with the user's values.
        images: number of training images.
        base: what the device decides.
        given: the user gives the number of iterations.
    """
    solver = recipe.solver
    batch = solver.reference_batch_size if solver.batch_size is AUTO else solver.batch_size
    trained = recipe.init is not None or recipe.model.pretrained
    length = min(base.most, max(base.fewest, round(base.epochs * images / batch))) // (_FINE_TUNING if trained else 1)
    start = "trained" if trained else "random"
    found = [
        Suggestion(
            "solver.max_iterations",
            length,
            f"{length * batch / images:.3g} times {images} images, from {start} weights",
        )
    ]
    if trained and base.recipe != _TUNED:
        rate = float(f"{solver.base_lr / _FINE_TUNING:.1g}")
        found.append(Suggestion("solver.base_lr", rate, "trained weights shall change less"))
    quarter = max(1, (solver.max_iterations if given else length) // 4)
    return [
        *found,
        Suggestion("log.evaluate_every", quarter, "four evaluations"),
        Suggestion("log.checkpoint_every", quarter, "as often"),
    ]


def _plain(sources: Sequence[DataSource]) -> list[dict[str, object]]:
    """Return sources as a recipe writes them, without the keys that are not set."""
    return [{key: value for key, value in asdict(source).items() if value not in ("", None)} for source in sources]
