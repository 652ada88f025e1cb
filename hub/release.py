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
from vovnet.hub.card_fields import detector_fields, network_fields
from vovnet.hub.classifiers import own_architecture, stored_config
from vovnet.hub.manifest import CARD_FILE, MANIFEST_FILE, SUMS_FILE, Manifest, PublishedFile, write_manifest, write_sums
from vovnet.hub.model_card import UNKNOWN_REPOSITORY, compose_card
from vovnet.hub.reference_outputs import record_outputs

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
    dataset: str | None = None
    """The name that the card gives to the data."""
    architecture: StoredAs = "timm"
    evaluated_on: str | None = None
    """The name that the card gives to the validation data, if that is another dataset."""


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


def describe(folder: Path, out: Path, source: PublishedFile | None, description: Description) -> None:
    """Write a folder's ``config.json``, model card, manifest and checksums; the weights are not moved.

    Args:
        folder: Holds ``config.json`` and ``model.safetensors``; a training run's also its recipe and metrics.
        out: Where the four files go; may be ``folder`` itself.
        source: The file that the weights were converted from.
        description: What the publisher says.

    Raises:
        InputError: The folder cannot be loaded, its outputs are not finite, or its configuration holds a local path.
    """
    model: Any = load_folder(folder)
    config = read_json(folder / CONFIG_FILE)
    if is_detector(folder):
        fields = detector_fields(folder, model, source, description.dataset, description.evaluated_on)
    else:
        read_timm_config(folder)
        config = stored_config(config, portable=description.architecture == "timm")
        fields = network_fields(config, model, source, own_architecture(config))
    refuse_local_paths(config, str(folder / CONFIG_FILE))
    card = compose_card(
        fields, repository=description.repository, license=description.license, source=source, version=__version__
    )
    if out != folder or config != read_json(folder / CONFIG_FILE):
        write_json(out / CONFIG_FILE, config)
    write_text(out / CARD_FILE, str(card))
    write_manifest(out / MANIFEST_FILE, Manifest(__version__, source, record_outputs(model)))
    summed = (out / CARD_FILE, out / CONFIG_FILE, folder / WEIGHTS_FILE, out / MANIFEST_FILE)
    write_sums(out / SUMS_FILE, summed)


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
