"""Which rules a detector is built and trained by: torchvision's, or those of the published detectors.

A recipe names its conventions in ``model.conventions``. Here is the one place where that name is looked up: each set of
conventions is a module with an object ``CONVENTIONS``, imported when it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from vovnet.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn
    from torch.optim import SGD
    from torch.optim.lr_scheduler import LambdaLR
    from torchvision.models.detection import FasterRCNN

    from vovnet.detection.config.schema import ModelRecipe, Recipe, SolverRecipe
    from vovnet.detection.data.loader import Batch
    from vovnet.detection.training.run import Run

MODULES = {"torchvision": "vovnet.detection.training.modern", "legacy": "vovnet.detection.legacy.conventions"}
"""``legacy`` is maskrcnn-benchmark's, by which the published detectors were trained."""


@dataclass(frozen=True)
class Conventions:
    """What building a detector and training it take from a set of conventions."""

    build_detector: Callable[[ModelRecipe, bool], FasterRCNN]
    """A checked model recipe, and whether to download pretrained weights -> the detector."""
    check_training: Callable[[Recipe, bool], None]
    """A recipe, and whether its run resumes; raises ``InputError`` where these conventions cannot train it."""
    category_names: bool
    """Whether a detector's categories have names that data must agree with; else ids alone decide."""
    channel_order: str
    """Of a three-channel network input."""
    value_range: tuple[float, float]
    """Of the pixels before mean and deviation."""
    training_data: Callable[..., Any]
    """A dataset class with the arguments of :class:`vovnet.detection.data.coco.CocoDataset`."""
    training_batches: Callable[..., Iterator[Batch]]
    """The arguments of :func:`vovnet.detection.data.loader.training_loader`, and ``passes``: how many batches an
    iteration takes in this process."""
    build_optimizer: Callable[[nn.Module, SolverRecipe], SGD]
    build_schedule: Callable[[SGD, SolverRecipe], LambdaLR]
    step: Callable[[Run, Sequence[Batch]], dict[str, float]]
    """One iteration, as :func:`vovnet.detection.training.engine.step`; no losses where it leaves the batches out."""
    read_published: Callable[[str, Path], dict[str, Tensor]] | None = None
    """A recipe and a file that its authors published -> the detector's state; None where none are published."""


def conventions_of(model: ModelRecipe) -> Conventions:
    """The conventions that a model recipe names.

    Raises:
        InputError: there are none of this name.
    """
    if model.conventions not in MODULES:
        raise InputError(f"model.conventions must be one of {', '.join(MODULES)}; got {model.conventions!r}")
    return cast(Conventions, importlib.import_module(MODULES[model.conventions]).CONVENTIONS)
