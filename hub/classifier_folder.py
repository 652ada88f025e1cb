"""Write a published network into timm's folder: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from torch import Tensor

from vovnet.hub.classifiers import COUNTER, PublishedNetwork
from vovnet.hub.input_folding import IMAGENET


def write_network(folder: Path, network: PublishedNetwork, tensors: Mapping[str, Tensor], source: str) -> None:
    """Write timm's ``config.json`` and ``model.safetensors``.

    Args:
        folder: An existing, empty folder.
        network: The network of the tensors.
        tensors: Tensors by timm's keys; batch counters may be missing.
        source: The name of the file that the tensors come from.
    """
    model = timm.create_model(
        network.name, num_classes=network.num_classes, pretrained_cfg=_pretrained_cfg(network, source)
    )
    counters = {key: torch.zeros_like(value) for key, value in model.state_dict().items() if key.endswith(COUNTER)}
    model.load_state_dict({**counters, **tensors})
    save_for_hf(model, str(folder), safe_serialization=True, model_config=network.facts.to_json())


def _pretrained_cfg(network: PublishedNetwork, source: str) -> dict[str, Any]:
    known: Any = timm.get_pretrained_cfg(network.name)
    # What was folded or lacks the classifier is not what the publisher measured.
    published = network.source if network.num_classes and network.input == IMAGENET else None
    return {
        "architecture": network.name,
        **({"tag": published.name.partition(".")[2], "origin_url": published.origin} if published else {}),
        "num_classes": network.num_classes,
        # The publishers' test settings; timm's entries may belong to other weights with other sizes and statistics.
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        **network.cfg,
        "mean": tuple(network.input.mean),  # in the channels' order and the units of the input
        "std": tuple(network.input.std),
        "first_conv": known.first_conv,
        "classifier": known.classifier,
        "license": network.licence,
        "description": f"{network.title}, converted from {source}",
        "notes": (*network.notes, *network.input_notes),
    }
