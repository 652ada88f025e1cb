"""The input of a network in a file: what the file says of it, and the network with another input folded into it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from vovnet.checkpoints.timm_folder import SAME_NETWORK_ARGS
from vovnet.detection.checkpoints.network_facts import NetworkInput, read_facts
from vovnet.errors import InputError
from vovnet.files import CONFIG_FILE
from vovnet.hub.classifiers import NORM_EPS, STRIDE_NOTE, TIMM, PublishedNetwork
from vovnet.hub.input_folding import IMAGENET, fold_input
from vovnet.hub.stored_names import own_architecture
from vovnet.hub.weights_file import WeightsFile
from vovnet.vovnet import model_cfgs as vovnets

_BGR_V2 = "the input is {}, as pretrained_cfg says"
_RGB = "the file does not tell its input: taken as RGB in 0..1 with ImageNet's mean and deviation"
_FOLDED = (
    "the input is folded into the first convolution and its norm: the network takes {}, where it took {}; it is a "
    "start for detectors with conventions: legacy, without a classifier"
)
_STRIDE_IN_3X3 = "the stride is in the 3x3 convolutions, as in timm's network: train with model.stride_in_1x1=false"


def described_by(network: PublishedNetwork, file: WeightsFile) -> PublishedNetwork:
    """Return the network with what its file says beside keys and shapes: ``config.json``, detectron2's pixel mean.

    Raises:
        InputError: ``config.json`` is of another network, or a value is out of bounds.
    """
    if file.config is not None and network.named_by == TIMM:
        return _described_by_config(network, file.config, file.path)
    if network.named_by == TIMM:
        return replace(network, input_notes=(_RGB,))
    if not network.name.startswith("ese_"):
        return network
    mean, std = file.tensors.get("pixel_mean"), file.tensors.get("pixel_std")
    network = replace(
        network,
        input=NetworkInput(
            channel_order=network.input.channel_order,
            range=network.input.range,
            mean=network.input.mean if mean is None else _decimals(mean),
            std=network.input.std if std is None else _decimals(std),
        ),
    )
    return replace(network, input_notes=(_BGR_V2.format(network.input),))


def _decimals(values: Tensor) -> list[float]:
    """Return float32 numbers as they were written: 103.53 and not 103.52999877929688."""
    return [float(f"{value:.7g}") for value in values.flatten().tolist()]


def _described_by_config(network: PublishedNetwork, config: Mapping[str, Any], path: Path) -> PublishedNetwork:
    name = own_architecture(config)
    if name != network.name:
        raise InputError(f"config.json beside it says {name}, and these are the keys and shapes of {network.name}")
    arguments = config.get("model_args", {})
    others = {key for key in arguments if key not in _SAME_NETWORK}
    if network.num_classes and arguments.get("global_pool", "avg") != "avg":  # what the classifier is fed
        others.add("global_pool")
    if others:
        raise InputError(
            f"config.json beside it makes another network of {name}: model_args has {', '.join(sorted(others))}"
        )
    cfg, facts = config.get("pretrained_cfg", {}), read_facts(config, path.parent / CONFIG_FILE)
    licence = cfg.get("license")
    plain = isinstance(licence, str) and re.fullmatch(r"[\w.-]{1,40}", licence)
    network = replace(network, licence=str(licence) if plain else "not-stated", cfg=_kept(cfg))
    if facts.preprocessing is not None:
        stride = network.stride_in_1x1 if facts.stride_in_1x1 is None else facts.stride_in_1x1
        return replace(network, input=facts.preprocessing, norm_eps=facts.norm_eps, stride_in_1x1=stride)
    mean, std = cfg.get("mean", IMAGENET.mean), cfg.get("std", IMAGENET.std)
    return replace(network, input=NetworkInput(channel_order="rgb", range=[0.0, 1.0], mean=list(mean), std=list(std)))


_SAME_NETWORK = (
    SAME_NETWORK_ARGS
    | {"num_classes", "in_chans", "global_pool", "residual"}
    | {key for shape in vovnets.values() for key in shape}
)
"""Arguments of a timm model that do not change the maps that given tensors compute, and those of a VoVNet's shape."""


def _kept(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a ``pretrained_cfg`` that stay true, if they are what timm writes."""
    texts = ("tag", "interpolation", "origin_url", "paper_name", "paper_ids")
    kept: dict[str, Any] = {key: cfg[key] for key in texts if isinstance(cfg.get(key), str)}
    if isinstance(cfg.get("input_size"), list):  # its numbers were checked when the file was read
        kept["input_size"], kept["pool_size"] = tuple(cfg["input_size"]), None
    if isinstance(cfg.get("crop_pct"), float) and 0 < cfg["crop_pct"] <= 1:
        kept["crop_pct"] = cfg["crop_pct"]
    return kept


def with_input(
    network: PublishedNetwork, tensors: Mapping[str, Tensor], target: NetworkInput
) -> tuple[PublishedNetwork, dict[str, Tensor]]:
    """Return a network and its tensors with another input folded in.

    Args:
        network: The network of the tensors, without a classifier.
        tensors: Its tensors by timm's keys.
        target: The input of the result.

    Raises:
        InputError: The network takes this input already.
    """
    if network.input == target:
        raise InputError(
            f"--input: {network.title} takes {target} already, as every published detection backbone; leave --input out"
        )
    known: Any = timm.get_pretrained_cfg(network.name)
    notes = [_FOLDED.format(target, network.input), *(note for note in network.input_notes if note == _RGB)]
    if network.stride_in_1x1 is not None:
        notes.append(STRIDE_NOTE if network.stride_in_1x1 else _STRIDE_IN_3X3)
    start = replace(network, input=target, norm_eps=NORM_EPS, input_notes=tuple(notes))
    return start, fold_input(tensors, known.first_conv, network.input, target)
