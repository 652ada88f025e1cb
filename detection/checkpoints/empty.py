"""Detectors that are built without memory for their weights and then receive the weights of a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.models.build import build_detector
from vovnet.errors import InputError

_MOST_COMPUTED = 2**28
"""Numbers in tensors that a network computes when it is built: Swin's masks for a large image have some millions."""


def empty_detector(model: ModelRecipe) -> nn.Module:
    """Build the detector of a recipe on the meta device: its tensors have shapes and no memory."""
    with torch.device("meta"):
        return build_detector(model, download=False)


def fill_detector(detector: nn.Module, model: ModelRecipe, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Give an empty detector its weights.

    Args:
        detector: from :func:`empty_detector`.
        model: the recipe that it was built from.
        tensors: its whole state dict on the CPU; the detector gets copies in its own types.

    Returns:
        ``detector``; or one that is built anew with memory, if the backbone computes tensors that are not in the state
        dict (Swin's position indices, for example).

    Raises:
        InputError: these tensors are larger than those of any real network.
    """
    computed = sum(tensor.numel() for tensor in _tensors_beside_the_state(detector) if tensor.is_meta)
    if computed > _MOST_COMPUTED:
        raise InputError(f"model.backbone_args: the backbone would compute tables of {computed:,} numbers")
    if computed:
        with torch.random.fork_rng(devices=[]):
            detector = build_detector(model, download=False)
        detector.load_state_dict(tensors)
        return detector
    types = {key: value.dtype for key, value in detector.state_dict().items()}
    # Copies: a tensor from a safetensors file is a view of the file, which may change on the disk.
    detector.load_state_dict({key: tensor.to(types[key], copy=True) for key, tensor in tensors.items()}, assign=True)
    return detector


def _tensors_beside_the_state(model: nn.Module) -> Iterator[Tensor]:
    """Yield non-persistent buffers and tensors that are plain attributes of a module, also in lists and dicts."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name in module._non_persistent_buffers_set:
                yield buffer
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                yield from _tensors_in(value)


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors_in(entry)
