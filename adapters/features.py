"""Get feature maps for a pyramid from a timm model, with all that a detector must know about them."""

from __future__ import annotations

import math
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import Format
from timm.models import load_state_dict
from timm.models._features import FeatureGetterNet, FeatureInfo
from torch import nn

from vovnet.adapters.levels import PYRAMID_STRIDES, choose_levels
from vovnet.checkpoints.pretrained import readable, unpacked
from vovnet.errors import InputError, did_you_mean, reason, shown
from vovnet.terminal.text import shortened

_RESERVED_ARGS = ("pretrained", "features_only", "out_indices", "in_chans", "exportable", "scriptable", "no_jit")
_IMAGES = ((2, 3), (9, 11))
"""Height and width of the images, in strides of the deepest map.

The first is quick. The second is for models whose unpadded convolutions leave nothing of the first. Its sides are
multiples of no larger stride, because detectors only pad to multiples of 32.
"""


@dataclass(frozen=True)
class Features:
    """A network that returns feature maps, and its metadata."""

    net: nn.Module
    """Maps a batch of images (N, in_chans, H, W) to a list of feature maps."""
    name: str
    """The model's name in messages."""
    indices: tuple[int, ...]
    """Indices of the chosen maps in timm's ``feature_info``."""
    taps: tuple[dict[str, Any], ...]
    """timm's ``feature_info`` entries up to the last chosen map."""
    positions: tuple[int, ...]
    """Indices of the chosen maps in the list that ``net`` returns."""
    channels: tuple[int, ...]
    """Channels of each chosen map."""
    strides: tuple[int, ...]
    """Stride in pixels of each chosen map."""
    channels_last: bool
    """True if maps are (N, H, W, C) and not (N, C, H, W)."""
    mean: tuple[float, ...]
    """Mean of each input channel, for images in 0..1."""
    std: tuple[float, ...]
    """Standard deviation of each input channel, for images in 0..1."""
    in_chans: int
    """Channels of an image."""
    pretrained: bool
    """True if the weights are trained ones, or the caller will load such weights."""


def features_by_name(
    name: str,
    *,
    pretrained: bool,
    download: bool,
    out_indices: Sequence[int] | None,
    in_chans: int | None,
    backbone_args: Mapping[str, Any],
    whole: bool = False,
    strides: Sequence[int] = PYRAMID_STRIDES,
) -> Features:
    """Create the timm model ``name`` with ``features_only``; it returns only the maps that the pyramid takes.

    Without ``out_indices`` these are the last maps with each of ``strides``.

    With ``whole`` it returns only timm's last map, whatever the strides, and no stage is cut off.

    Raises:
        InputError: timm does not know the name, or the model lacks features, levels or doubling strides.
        TypeError: an entry of ``backbone_args`` is not an argument of the model.
    """
    if ":" not in name and not timm.is_model(name):  # a colon names a source, as in "hf-hub:ORG/NAME"
        close = did_you_mean(name.split(".")[0], timm.list_models(), "timm.list_models() returns the names", most=3)
        raise InputError(f"timm knows no model {shortened(name, 100)!r}; {close}")
    for key in backbone_args:
        if key in _RESERVED_ARGS:
            raise TypeError(f"backbone_args has {key!r}, which fpn_backbone sets itself; use its own arguments")
    args = dict(backbone_args)
    if in_chans is not None:
        args["in_chans"] = in_chans
    file = _weights_file(args, pretrained)
    pretrained = pretrained or file is not None
    with torch.device("meta"):  # only feature_info is needed: this uses no memory and draws no random numbers
        info = _create(name, {key: value for key, value in args.items() if key != "device"}).feature_info
    offered = [entry["reduction"] for entry in info.info]
    indices = (len(offered) - 1,) if whole else choose_levels(offered, out_indices, name, strides)
    args |= {"pretrained": pretrained and download, "out_indices": indices}
    net = _create(name, args) if file is None or not download else _create_from_file(name, args, file)
    return _describe(net, name, indices, tuple(range(len(indices))), pretrained)


def _weights_file(args: dict[str, Any], pretrained: bool) -> Path | None:
    """Return the file of weights that the arguments name, and name it in ``args`` as the source of pretrained weights.

    timm loads ``checkpoint_path`` into the network without its head, so a classifier's file would not fit.
    """
    overlay = args.get("pretrained_cfg_overlay") or {}
    if not isinstance(overlay, Mapping):
        raise InputError(f"backbone_args: expected a mapping as pretrained_cfg_overlay, got {shown(overlay)}")
    key, file = "checkpoint_path", args.pop("checkpoint_path", None)
    if file is None and pretrained:
        key, file = "pretrained_cfg_overlay.file", overlay.get("file")
    if file is None:
        return None
    if not isinstance(file, str | os.PathLike):
        raise InputError(f"backbone_args: expected the path of a file of weights as {key}, got {shown(file)}")
    path = unpacked(Path(file).expanduser())
    args["pretrained_cfg_overlay"] = {**overlay, "file": str(path), "source": "", "state_dict": None}
    return path


def _create_from_file(name: str, args: Mapping[str, Any], file: Path) -> Any:
    """Create a timm model with the weights of a file, and check that they are its own.

    Raises:
        InputError: The file cannot be read, holds more than tensors and plain values, or is of another network.
    """
    with readable(file):
        stored = load_state_dict(str(file))  # reads with weights_only=True
    try:
        net = _create(name, args)
    except InputError:
        raise
    except (RuntimeError, KeyError) as error:
        details = " ".join(str(error).split())[:200]
        raise InputError(f"{file}: these weights do not fit the network {name} ({details})") from error
    weights = [value for value in stored.values() if isinstance(value, torch.Tensor)]
    # timm only logs names that do not fit, and renames some, so the values tell whether any weight arrived.
    kernels = [value for value in net.parameters() if value.ndim > 1]
    if not any(k.shape == w.shape and torch.equal(k.cpu(), w.to(k.dtype)) for k in kernels for w in weights):
        raise InputError(f"{file}: none of its weights belongs to the network {name}; name a file of this network")
    return net


def features_of_instance(
    model: nn.Module,
    *,
    pretrained: bool,
    out_indices: Sequence[int] | None,
    in_chans: int | None,
    strides: Sequence[int] = PYRAMID_STRIDES,
) -> Features:
    """Take an existing timm model: made with ``features_only``, or a classifier with ``forward_intermediates``.

    The model becomes part of the backbone. A classifier loses the layers behind its last chosen map.

    Raises:
        InputError: the model cannot give feature maps, does not return the wanted ones, or has other input channels.
    """
    name = f"this {type(model).__name__}"
    info = getattr(model, "feature_info", None)
    if info is None:
        raise InputError(
            f"{name} has no feature_info, so it is not a timm model that gives feature maps; pass a timm model's name, "
            "or an instance made with timm.create_model(..., features_only=True)"
        )
    if isinstance(info, FeatureInfo):
        net = model
        outputs = [i % len(info) for i in info.out_indices]
        offered = [info[i]["reduction"] for i in outputs]
        wanted = None if out_indices is None else _positions_of(out_indices, outputs, len(info), name)
        positions = choose_levels(offered, wanted, f"{name} (feature maps {outputs})", strides)
        indices = tuple(outputs[p] for p in positions)
    elif hasattr(model, "forward_intermediates"):
        indices = choose_levels([entry["reduction"] for entry in info], out_indices, name, strides)
        net = FeatureGetterNet(model, out_indices=indices)
        for attribute in ("pretrained_cfg", "in_chans"):
            setattr(net, attribute, getattr(model, attribute, None))
        positions = tuple(range(len(indices)))
    else:
        raise InputError(
            f"{name} is a classifier without forward_intermediates; pass its name, or an instance made with "
            "timm.create_model(..., features_only=True)"
        )
    features = _describe(net, name, indices, positions, pretrained)
    if in_chans is not None and in_chans != features.in_chans:
        raise InputError(
            f"in_chans is {in_chans}, but {name} takes {features.in_chans} channels; make it with in_chans={in_chans}"
        )
    return features


def _positions_of(out_indices: Sequence[int], outputs: list[int], count: int, name: str) -> list[int]:
    """Return where the wanted maps are in the list of maps that an instance returns."""
    absolute = [i + count if i < 0 else i for i in out_indices]
    absent = [i for i in absolute if i not in outputs]
    if absent:
        raise InputError(
            f"out_indices has {absent}, which {name} does not return (it returns {outputs}); make it with "
            f"timm.create_model(..., features_only=True, out_indices={absolute})"
        )
    return [outputs.index(i) for i in absolute]


def _create(name: str, args: Mapping[str, Any]) -> Any:
    """Create a timm model with ``features_only``; raise errors that say how to mend the arguments."""
    try:
        return timm.create_model(name, features_only=True, **args)
    except TypeError as error:
        unexpected = re.search(r"unexpected keyword argument(?:\(s\):)? \[?'(\w+)'", str(error))
        if unexpected and unexpected[1] in args:
            key = unexpected[1]
            raise TypeError(f"backbone_args has {key!r}, which is not an argument of the timm model {name}") from error
        if unexpected and unexpected[1] == "features_only":
            raise InputError(_no_features(name)) from error
        raise
    except (OSError, pickle.UnpicklingError, EOFError) as error:
        if not args.get("pretrained"):
            raise
        raise InputError(
            f"{name}: its pretrained weights cannot be fetched or read ({reason(error)}); connect, or do without: "
            "pretrained=False (in a recipe model.pretrained=false model.norm=bn)"
        ) from error
    except RuntimeError as error:
        if "features_only" in str(error):
            raise InputError(_no_features(name)) from error
        if "pretrained tag" in str(error):
            raise InputError(f"{name}: {error}") from error
        raise


def _no_features(name: str) -> str:
    return f"{name} lacks features_only: timm cannot take feature maps from it, so no pyramid can be built on it"


def _describe(
    net: nn.Module, name: str, indices: tuple[int, ...], positions: tuple[int, ...], pretrained: bool
) -> Features:
    info: Any = net.feature_info
    cfg = getattr(net, "pretrained_cfg", None) or {}
    if not cfg.get("mean") or not cfg.get("std"):
        raise InputError(
            f"{name} has no pretrained_cfg with mean and std, so its input normalisation is unknown; set "
            "model.pretrained_cfg = {'mean': (...), 'std': (...)} for images in 0..1"
        )
    if pretrained and max(cfg["mean"]) > 1:
        raise InputError(
            f"{name} takes images in 0..255 (the mean in its pretrained_cfg is {list(cfg['mean'])}), and a detector "
            "gives its backbone images in 0..1; name such weights as init of a recipe with conventions: legacy"
        )
    in_chans = getattr(net, "in_chans", None) or _first_conv_channels(net, name)
    return Features(
        net=net,
        name=name,
        indices=indices,
        positions=positions,
        taps=tuple(info[i] for i in range(max(indices) + 1)),
        channels=tuple(info[i]["num_chs"] for i in indices),
        strides=tuple(info[i]["reduction"] for i in indices),
        channels_last=Format(getattr(net, "output_fmt", None) or "NCHW") == Format.NHWC,
        mean=for_channels(cfg["mean"], in_chans),
        std=for_channels(cfg["std"], in_chans),
        in_chans=in_chans,
        pretrained=pretrained,
    )


def _first_conv_channels(net: nn.Module, name: str) -> int:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise InputError(f"the number of input channels of {name} is unknown; set model.in_chans")


def for_channels(values: Sequence[float], in_chans: int) -> tuple[float, ...]:
    """Return normalisation values for another number of channels, to match timm's adapted first convolution.

    One channel takes the average, because timm sums the RGB kernels. Any other number repeats the values in turn,
    because timm repeats the RGB kernels (timm/models/_manipulate.py, ``adapt_input_conv``).
    """
    if in_chans == len(values):
        return tuple(float(v) for v in values)
    if in_chans == 1:
        return (sum(values) / len(values),)
    return tuple(float(values[i % len(values)]) for i in range(in_chans))


def verify_features(features: Features) -> None:
    """Run a small black image, which is not square, through the network; compare the maps with timm's metadata.

    The network's modes and statistics do not change. A map may be a little smaller than image / stride, because of
    convolutions without padding, if torchvision's pooling still rounds its scale to the stride.

    Raises:
        InputError: the network takes only images of its own size, or its maps have other channels or strides.
    """
    step = max(32, *features.strides)
    failures: list[Exception] = []
    for rows, columns in _IMAGES:
        height, width = rows * step, columns * step
        try:
            maps = quiet_forward(features.net, features.in_chans, height, width)
        except Exception as error:
            failures.append(error)
            continue
        _compare(features, maps, height, width)
        return
    height, width = (n * step for n in _IMAGES[0])
    reason = " ".join(f"{type(failures[0]).__name__} {failures[0]}".split())[:200]
    raise InputError(
        f"{features.name} cannot take a {height}×{width} image, and a detector's have many sizes ({reason}); "
        "some timm models take any size with backbone_args {'strict_img_size': False} or {'dynamic_img_size': True}"
    ) from failures[0]


def quiet_forward(net: nn.Module, in_chans: int, height: int, width: int) -> Any:
    """Run a black image in evaluation mode; restore the modes."""
    parameter = next(net.parameters())
    image = torch.zeros(1, in_chans, height, width, device=parameter.device, dtype=parameter.dtype)
    training = {module: module.training for module in net.modules()}
    net.eval()
    try:
        with torch.no_grad():
            return net(image)
    finally:
        for module, mode in training.items():
            module.training = mode


def _compare(features: Features, maps: Any, height: int, width: int) -> None:
    if not isinstance(maps, list):
        raise InputError(f"{features.name} returns a {type(maps).__name__}, not a list of maps; drop its feature_cls")
    for position, channels, stride in zip(features.positions, features.channels, features.strides, strict=True):
        shape = tuple(maps[position].shape)
        if features.channels_last:
            shape = (shape[0], shape[3], shape[1], shape[2])
        scales = [round(math.log2(side / found)) for side, found in zip((height, width), shape[2:], strict=True)]
        if shape[:2] != (1, channels) or scales != [round(math.log2(stride))] * 2:
            raise InputError(
                f"{features.name} says that a {height}×{width} image gives a feature map of {channels} channels with "
                f"stride {stride}, but it gives {shape}: its feature_info is wrong, or it is not fit for a pyramid"
            )
