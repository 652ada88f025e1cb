"""Prepare a folder for publication: load and describe the model, record its outputs, and write the checksums."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from vovnet import __version__
from vovnet.checkpoints.timm_folder import load_timm_folder, read_timm_config
from vovnet.detection.checkpoints.folder import load_detector
from vovnet.errors import InputError
from vovnet.files import CONFIG_FILE, WEIGHTS_FILE, read_json, write_json, write_text
from vovnet.hub.card_fields import CardFields, detector_fields, network_fields
from vovnet.hub.example import EXAMPLE_THRESHOLD, draw_example
from vovnet.hub.manifest import (
    CARD_FILE,
    EXAMPLE_FILE,
    MANIFEST_FILE,
    SUMS_FILE,
    Manifest,
    PublishedFile,
    write_manifest,
    write_sums,
)
from vovnet.hub.model_card import UNKNOWN_REPOSITORY, compose_card
from vovnet.hub.reference_outputs import record_outputs
from vovnet.hub.stored_names import own_architecture, stored_config

StoredAs = Literal["timm", "vovnet"]
"""The name of a VoVNet in ``config.json``: ``timm`` for one that plain timm loads, ``vovnet`` for this package's."""

_CLASS_NAMES = ("label_names", "label_descriptions", "categories")
"""Keys of a configuration that hold class names. A class may be named like a path (``/m/01g317`` in Open Images)."""

_LOCAL_PATH = re.compile(r"^[/~]|(?:^|[\s\"'(\[=,;])(?:/\w|~\w*/|[A-Za-z]:[\\/]|\\\\\w|file:)")
"""Matches a text that is a path on this machine or contains one."""


@dataclass(frozen=True)
class Description:
    """Facts about a folder that the publisher states and the files do not hold."""

    repository: str = UNKNOWN_REPOSITORY
    license: str | None = None
    train_data: str | None = None
    """The name that the card gives to the training data."""
    eval_data: str | None = None
    """The name that the card gives to the data that the metrics were measured on."""
    architecture: StoredAs = "timm"
    example: Path | None = None
    """An image to draw the detector's detections into, for the card."""
    example_credit: str | None = None
    """Author and licence of that image."""


def check_architecture(architecture: str) -> None:
    """Check a value of :attr:`Description.architecture`.

    Raises:
        InputError: The value is not allowed.
    """
    if architecture not in get_args(StoredAs):
        raise InputError(f"architecture must be {' or '.join(get_args(StoredAs))}, got '{architecture}'")


def is_detector(folder: Path) -> bool:
    """Return True if a folder's ``config.json`` describes a detector, False if it is timm's.

    Raises:
        InputError: The file is absent or not JSON.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(
            f"{folder} has no {CONFIG_FILE}: expected a folder of `vovnet train`, `vovnet convert` or timm"
        )
    return "architecture" not in read_json(folder / CONFIG_FILE)


def load_folder(folder: Path) -> nn.Module:
    """Load the detector or timm model of a folder, in evaluation mode."""
    return load_detector(folder) if is_detector(folder) else load_timm_folder(folder)


def describe(folder: Path, out: Path, source: PublishedFile | None, description: Description) -> list[str]:
    """Write a folder's ``config.json``, model card, manifest and checksums; the weights are not moved.

    Args:
        folder: Holds ``config.json`` and ``model.safetensors``; a training run's also its recipe and metrics.
        out: Where the four files go, and the card's example if one was asked for; may be ``folder`` itself.
        source: The file that the weights were converted from.
        description: What the publisher says.

    Returns:
        Notes for the publisher about what the card does not say.

    Raises:
        InputError: The folder cannot be loaded, its outputs are not finite, its configuration holds a local path, or
            the image of the example cannot be read.
    """
    model: Any = load_folder(folder)
    config = read_json(folder / CONFIG_FILE)
    if is_detector(folder):
        fields = detector_fields(folder, model, source, description.train_data, description.eval_data)
    else:
        read_timm_config(folder)
        config = stored_config(config, portable=description.architecture == "timm")
        fields = network_fields(config, model, source, own_architecture(config), description.train_data)
    refuse_local_paths(config, str(folder / CONFIG_FILE))
    notes = _notes(fields, description)
    if description.example is not None:
        notes += _draw_example(model, description.example, out)
    card = compose_card(
        fields,
        repository=description.repository,
        license=description.license,
        source=source,
        version=__version__,
        example=None if description.example is None else (description.example_credit or ""),
    )
    if out != folder or config != read_json(folder / CONFIG_FILE):
        write_json(out / CONFIG_FILE, config)
    write_text(out / CARD_FILE, str(card))
    write_manifest(out / MANIFEST_FILE, Manifest(__version__, source, record_outputs(model)))
    summed = [out / CARD_FILE, out / CONFIG_FILE, folder / WEIGHTS_FILE, out / MANIFEST_FILE]
    if description.example is not None:
        summed.append(out / EXAMPLE_FILE)
    write_sums(out / SUMS_FILE, summed)
    return notes


def _notes(fields: CardFields, description: Description) -> list[str]:
    if description.eval_data and not fields.metrics:
        return ["--eval-data is not on the card, because no metrics are recorded here"]
    if not description.eval_data and any(metrics.claimed_by is None for metrics in fields.metrics):
        return ["the card names no data for its metrics; --eval-data NAME does"]
    return []


def _draw_example(model: Any, image: Path, out: Path) -> list[str]:
    """Draw the example of the card into ``out``, and return notes about it."""
    if not hasattr(model, "recipe"):
        raise InputError(f"--example {image}: this is a classifier, and only a detector's detections can be drawn")
    if draw_example(model, image, out / EXAMPLE_FILE):
        return []
    return [f"warning: no detection in the example has a score of {EXAMPLE_THRESHOLD:g} or more; name another image"]


def refuse_local_paths(value: Any, where: str) -> None:
    """Refuse a configuration that holds a path on this machine, because it is about to be published.

    Raises:
        InputError: The configuration holds such a path; the message names it.
    """
    entries = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        if key not in _CLASS_NAMES:
            refuse_local_paths(entry, f"{where}: {key}")
    if isinstance(value, str) and _LOCAL_PATH.search(value):
        raise InputError(f"{where} is the local path {json.dumps(value)}; take it out before the folder is published")
