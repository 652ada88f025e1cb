"""The data that a detector is evaluated on: of any format that training takes, or the validation data of its run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from vovnet.detection.config.conventions import CONVENTIONS
from vovnet.detection.config.detectors import DETECTORS
from vovnet.detection.config.loading import load_recipe
from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.data.sources import named_data
from vovnet.detection.formats.folders import choose_split
from vovnet.errors import InputError
from vovnet.folders.home import expand_home
from vovnet.terminal.streams import say_once


def evaluation_sources(
    data: str | Path | None = None,
    images: str | Path | None = None,
    annotations: str | Path | None = None,
    *,
    split: str | None = None,
    run: str | Path | None = None,
) -> list[DataSource]:
    """Return what to evaluate a detector on, and say on stderr which part of the data that is.

    Data with splits gives ``val``, or else ``test``. Data without splits is taken as a whole, unless the run was
    trained on a part of it: then it is the part that was held out for validation.

    Args:
        data: a folder, a file, or ``hf:ORG/NAME``; see :func:`vovnet.detection.formats.finding.contents_of`. Without
            it and a COCO file, it is the validation data of the run.
        images: the folder of images of a COCO file, in place of ``data``.
        annotations: the COCO file.
        split: the name of a split, by the data's or by our name.
        run: the folder of the run that the detector comes from, if there is one. Other names and folders are allowed.

    Raises:
        InputError: there is no such data or split, or nothing says what to evaluate on.
    """
    if data is None and images is None and annotations is None:
        return _of_run(run)
    # A folder of labelme or VOC lists not all of its splits, and reads one by its name.
    title, splits = named_data(data, images, annotations, split)
    known = [name for name in splits if name]
    chosen = split if split is not None else choose_split(known, None, "val", f"'{data}'")
    if data is not None:
        say_once(f"data {data}", f"'{data}': {title}" + (f", split '{chosen}'" if chosen else ", all images"))
    if split is None and chosen is None:
        return _without_training(splits[""], run)
    return splits[chosen] if chosen in splits else next(iter(splits.values()))


def _trained(run: str | Path | None) -> tuple[list[DataSource], list[DataSource]]:
    """Return the training and validation data of a run; none if it is no run."""
    path = Path() if run is None else expand_home(run) / "recipe.yaml"
    if run is None or not path.is_file():
        return [], []
    recipe = load_recipe(path)
    return recipe.data.train, recipe.data.val


def _of_run(run: str | Path | None) -> list[DataSource]:
    _, val = _trained(run)
    if not val:
        which = "" if run is None else f"; '{run}' is no run with validation data of its own"
        raise InputError(f"no data: expected a folder or file of labels, or --images and --annotations{which}")
    say_once(f"validation data of {run}", f"the validation data of '{run}': {', '.join(one.labels for one in val)}")
    return val


def _without_training(sources: list[DataSource], run: str | Path | None) -> list[DataSource]:
    """Return the part of some data without splits that a run has not been trained on, if it has been on another."""
    ours = {os.path.realpath(one.labels) for one in sources}
    train, val = ([one for one in some if os.path.realpath(one.labels) in ours] for some in _trained(run))
    if not train:
        return sources
    if any(one.part is None for one in train) or not val:
        say_once(f"trained on {run}", f"'{run}' was trained on these images: its numbers here are too good")
        return sources
    say_once(f"held out of {run}", f"'{run}' was trained on a part of these images; these are those that it was not")
    return val


def evaluation_dataset(
    detector: nn.Module, sources: Sequence[DataSource], *, max_pixels: int | None = None
) -> CocoDataset:
    """Return the dataset to evaluate a detector on.

    Args:
        detector: has a ``recipe`` and ``categories``, as those of ``load_detector`` do.
        sources: from :func:`evaluation_sources`.
        max_pixels: that of :class:`~vovnet.detection.data.coco.CocoDataset`.

    Raises:
        InputError: the detector has no recipe or categories, or the data cannot be used.
    """
    recipe: Any = getattr(detector, "recipe", None)
    categories: Any = getattr(detector, "categories", None)
    if recipe is None or categories is None:
        raise InputError("evaluate: this detector has no recipe and categories; give a dataset, not the name of one")
    return CocoDataset(
        sources,
        masks=DETECTORS[recipe.detector].needs_masks,
        keypoints=DETECTORS[recipe.detector].needs_keypoints,
        training=False,
        channels=recipe.in_chans,
        max_pixels=max_pixels,
        categories=categories,
        category_names=category_names_checked(detector),
    )


def category_names_checked(detector: nn.Module) -> bool:
    """Return True if the names of the detector's categories must be those of the data; otherwise only ids must be."""
    recipe: Any = getattr(detector, "recipe", None)
    return recipe is None or CONVENTIONS[recipe.conventions].category_names_checked
