"""A folder made ready for others: what it holds is loaded, described, recorded and summed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vovnet import __version__
from vovnet.checkpoints.timm_folder import load_timm_folder, read_timm_config
from vovnet.detection.checkpoints.folder import load_detector
from vovnet.errors import InputError
from vovnet.files import CONFIG_FILE, WEIGHTS_FILE, read_json, write_json, write_text
from vovnet.hub.card_facts import Facts, detector_facts, network_facts
from vovnet.hub.classifiers import own_architecture, stored_config
from vovnet.hub.manifest import (
    CARD_FILE,
    MANIFEST_FILE,
    SUMS_FILE,
    Manifest,
    Source,
    write_manifest,
    write_sums,
)
from vovnet.hub.model_card import UNKNOWN_REPOSITORY, compose_card
from vovnet.hub.reference_outputs import record_outputs

ARCHITECTURES = ("timm", "vovnet")

_NAMES = ("label_names", "label_descriptions", "categories")
"""Keys of a configuration that hold classes, which may be called like a path (``/m/01g317`` of Open Images)."""

_LOCAL_PATH = re.compile(r"^[/~]|(?:^|[\s\"'(\[=,;])(?:/\w|~\w*/|[A-Za-z]:[\\/]|\\\\\w|file:)")
"""Of this machine's: a text that is one, or one within a text."""


@dataclass(frozen=True)
class Description:
    """What is said of a folder beyond what it holds."""

    repository: str = UNKNOWN_REPOSITORY
    license: str | None = None
    dataset: str | None = None
    """What the card calls the data that it was trained on."""
    architecture: str = "timm"
    """``timm``: a VoVNet is stored as plain timm can load it; ``vovnet``: under its name here."""


def check_architecture(architecture: str) -> None:
    """Hold the setting of :attr:`Description.architecture` to what there is.

    Raises:
        InputError: it is something else.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(f"architecture must be {' or '.join(ARCHITECTURES)}, got '{architecture}'")


def is_detector(folder: Path) -> bool:
    """Whether a folder's ``config.json`` is a detector's rather than timm's.

    Raises:
        InputError: it is absent or not JSON.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(
            f"{folder} has no {CONFIG_FILE}: expected a folder of `vovnet train`, `vovnet convert` or timm"
        )
    return "architecture" not in read_json(folder / CONFIG_FILE)


def load_folder(folder: Path) -> nn.Module:
    """The detector or timm model of a folder, in evaluation mode."""
    return load_detector(folder) if is_detector(folder) else load_timm_folder(folder)


def describe(folder: Path, out: Path, source: Source | None, description: Description) -> None:
    """Write a folder's ``config.json``, model card, manifest and checksums; the weights stay where they are.

    Args:
        folder: holds ``config.json`` and ``model.safetensors``, and a training run's recipe and metrics if it is one.
        out: where the four files go; may be ``folder`` itself.
        source: the published file that the weights come from.
        description: what else is said.

    Raises:
        InputError: the folder cannot be loaded, its outputs are not finite, or its configuration holds a local path.
    """
    model: Any = load_folder(folder)
    config = read_json(folder / CONFIG_FILE)
    facts: Facts
    if is_detector(folder):
        facts = detector_facts(folder, model, source, description.dataset)
    else:
        read_timm_config(folder)
        config = stored_config(config, portable=description.architecture == "timm")
        facts = network_facts(config, model, source, own_architecture(config))
    refuse_local_paths(config, str(folder / CONFIG_FILE))
    card = compose_card(
        facts, repository=description.repository, license=description.license, source=source, version=__version__
    )
    if out != folder or config != read_json(folder / CONFIG_FILE):
        write_json(out / CONFIG_FILE, config)
    write_text(out / CARD_FILE, str(card))
    write_manifest(out / MANIFEST_FILE, Manifest(__version__, source, record_outputs(model)))
    summed = (out / CARD_FILE, out / CONFIG_FILE, folder / WEIGHTS_FILE, out / MANIFEST_FILE)
    write_sums(out / SUMS_FILE, summed)


def refuse_local_paths(value: Any, where: str) -> None:
    """Hold a configuration that is about to be published to having no absolute path in it.

    Raises:
        InputError: there is one; it is named.
    """
    entries = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        if key not in _NAMES:
            refuse_local_paths(entry, f"{where}: {key}")
    if isinstance(value, str) and _LOCAL_PATH.search(value):
        raise InputError(f"{where} is the local path {json.dumps(value)}; take it out before the folder is published")
