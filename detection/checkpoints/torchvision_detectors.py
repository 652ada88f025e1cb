"""torchvision's COCO detectors by name, ``torchvision:maskrcnn_resnet50_fpn_v2``, rebuilt on timm's backbones.

Each is a :class:`~vovnet.detection.config.model.ModelRecipe` whose detector computes, to the last bit, what
torchvision's own computes with the same weights (torchvision/models/detection).
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from torch import Tensor
from torchvision.models import get_model_weights
from torchvision.models._api import WeightsEnum

from vovnet.checkpoints.download import Checksum, checkpoints_folder, fetch
from vovnet.checkpoints.pickled import read_checkpoint_file
from vovnet.checkpoints.places import TORCHVISION_PREFIX
from vovnet.detection.config.categories import Category
from vovnet.detection.config.detectors import DetectorName
from vovnet.detection.config.model import ModelRecipe
from vovnet.errors import InputError, did_you_mean

_RESNET50: dict[str, Any] = {
    "backbone": "resnet50",
    "pretrained": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
# The files were trained with frozen norms that had no epsilon (torchvision/models/detection/_utils.py, overwrite_eps).
_V1: dict[str, Any] = {**_RESNET50, "norm": "frozen_bn", "norm_eps": 0.0}
_V2: dict[str, Any] = {**_RESNET50, "fpn_norm": "bn", "head_norm": "bn", "rpn_head_convs": 2, "box_head_convs": 4}
_RETINANET: dict[str, Any] = {"detector": "retinanet", "box_detections_per_img": 300}
# The pyramid takes the maps before and behind the last stage, both of stride 32, and every level has all the anchors.
_MOBILENET_V3: dict[str, Any] = {
    **_RESNET50,
    "backbone": "mobilenetv3_large_100",
    "norm": "frozen_bn",
    "norm_eps": 1e-5,
    "out_modules": ["blocks.5.0", "blocks.6"],
    "anchor_sizes": [[32, 64, 128, 256, 512]] * 3,
    "rpn_score_thresh": 0.05,
}
NORM_EPS = 1e-5
"""The epsilon of timm's batch norms in these backbones, which ``norm_eps: null`` keeps."""
_WITH_EPSILON = ("COCO_LEGACY",)
"""Members whose frozen norms have torchvision's usual epsilon, where those of ``COCO_V1`` have none."""
NETWORKS: dict[str, dict[str, Any]] = {
    "fasterrcnn_resnet50_fpn": _V1,
    "fasterrcnn_resnet50_fpn_v2": _V2,
    "maskrcnn_resnet50_fpn": {**_V1, "detector": "mask_rcnn"},
    "maskrcnn_resnet50_fpn_v2": {**_V2, "detector": "mask_rcnn"},
    "keypointrcnn_resnet50_fpn": {**_V1, "detector": "keypoint_rcnn", "num_keypoints": 17},
    "retinanet_resnet50_fpn": {**_V1, **_RETINANET},
    "retinanet_resnet50_fpn_v2": {
        **_RESNET50,
        **_RETINANET,
        "head_norm": "gn",
        "extra_level": "p6p7_c5",
        "regression_loss": "giou",
    },
    "fcos_resnet50_fpn": {
        **_RESNET50,
        "detector": "fcos",
        "norm": "frozen_bn",
        "box_score_thresh": 0.2,
        "box_nms_thresh": 0.6,
    },
    "fasterrcnn_mobilenet_v3_large_fpn": _MOBILENET_V3,
    "fasterrcnn_mobilenet_v3_large_320_fpn": {
        **_MOBILENET_V3,
        "min_size": 320,
        "max_size": 640,
        "rpn_pre_nms_top_n_test": 150,
        "rpn_post_nms_top_n_test": 150,
    },
}
"""torchvision's name → the fields of the model recipe that are not the defaults."""

LICENCE = (
    "BSD-3-Clause (torchvision's code); trained on COCO, whose terms are for you to judge "
    "(https://cocodataset.org/#termsofuse)"
)
"""The licence as users read it. torchvision states one for its code and none for the weights."""

_SKELETON = (
    *((16, 14), (14, 12), (17, 15), (15, 13), (12, 13), (6, 12), (7, 13), (6, 7), (6, 8), (7, 9)),
    *((8, 10), (9, 11), (2, 3), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7)),
)
"""COCO's lines between the keypoints of its persons, as positions from 1 (``categories`` of
``person_keypoints_val2017.json``). torchvision's weights name the keypoints alone."""

_MOBILENET = re.compile(r"backbone\.body\.(\d+)\.(?:block\.(\d)\.)?(\w+)\.(\w+)")
_BLOCKS = (1, 2, 3, 4, 2, 3, 1)
_PLACES = ["", *(f"blocks.{stage}.{block}." for stage, count in enumerate(_BLOCKS) for block in range(count))]
"""timm's place of each of torchvision's ``features``: the stem, then the blocks, which timm numbers within stages."""
_LAYERS = {0: ("conv_pw", "bn1"), 1: ("conv_dw", "bn2"), 2: ("conv_pwl", "bn3"), 3: ("conv_pwl", "bn3")}
"""Convolution and norm of each part of a block; where there is a squeeze-and-excitation, it is part 2."""
_LAYERS_WITHOUT_EXPANSION = {0: ("conv_dw", "bn1"), 1: ("conv_pw", "bn2")}
_EXCITATION = {"fc1": "se.conv_reduce", "fc2": "se.conv_expand"}

# In the first files the convolutions of the pyramid, the RPN's head and the mask head are not in blocks with norms.
_OLD_NAMES = (
    (re.compile(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)"), r"\1.0.\2"),
    (re.compile(r"(rpn\.head\.conv)\.(weight|bias)"), r"\1.0.0.\2"),
)
# And those of RetinaNet's head were numbered together with the activations between them.
_OLD_HEAD_NAMES: dict[DetectorName, re.Pattern[str]] = {
    "retinanet": re.compile(r"(head\.\w+_head\.conv)\.(\d+)\.(weight|bias)")
}
_OLD_MASK_NAME = re.compile(r"roi_heads\.mask_head\.mask_fcn(\d+)\.(weight|bias)")


@dataclass(frozen=True)
class TorchvisionDetector:
    """A detector of torchvision with the weights that it offers for it."""

    name: str
    """The name for :func:`torchvision.models.get_model`."""
    weights: WeightsEnum
    """The member of torchvision's enum."""

    @cached_property
    def categories(self) -> list[Category]:
        """COCO's 90 ids in order, which are the labels. The ids that COCO does not use are called ``N/A``.

        Those of a detector of keypoints have COCO's names of them and its skeleton.
        """
        names = self.weights.meta["categories"]
        found: list[Category] = [{"id": number, "name": name} for number, name in enumerate(names) if number]
        points = self.weights.meta.get("keypoint_names")
        if points:
            for category in found:
                category |= {"keypoints": [*points], "skeleton": [[*pair] for pair in _SKELETON]}
        return found

    @cached_property
    def model(self) -> ModelRecipe:
        """The model recipe of this detector."""
        network = dict(NETWORKS[self.name])
        if self.weights.name in _WITH_EPSILON:
            del network["norm_eps"]
        return ModelRecipe(**network, num_classes=len(self.categories))

    @property
    def file(self) -> Path:
        """Where torch's cache holds the file, or will hold it."""
        return checkpoints_folder() / PurePosixPath(urlsplit(self.weights.url).path).name

    @property
    def full_name(self) -> str:
        """The whole name, ``torchvision:NAME.WEIGHTS``."""
        return f"{TORCHVISION_PREFIX}{self.name}.{self.weights.name}"

    @property
    def digits(self) -> str:
        """The beginning of the file's SHA-256, in which the name of the file ends."""
        return PurePosixPath(urlsplit(self.weights.url).path).stem.rpartition("-")[2]

    def __str__(self) -> str:
        """Return the whole name, the published precision and the licence."""
        (data, metrics), *_ = self.weights.meta["_metrics"].items()
        published = ", ".join(f"{metric_name(kind)} {value}" for kind, value in metrics.items())
        return f"{self.full_name} ({published} on {data}, as published; {LICENCE})"

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights by our keys; the file is downloaded once, into torch's cache.

        Raises:
            InputError: The file cannot be fetched, is not what torchvision published, or cannot be read.
        """
        path = self._fetch()
        return {our_key(key, self.model.detector): tensor for key, tensor in read_checkpoint_file(path).tensors.items()}

    def _fetch(self) -> Path:
        """Return the path of the file, after comparing its SHA-256 with the beginning of it that its name ends in."""
        other = f"{self.model.detector}_vovnet39_fpn"
        return fetch(
            self.weights.url,
            f"its licence: {LICENCE}",
            name=self.full_name,
            otherwise=f"take other weights (`vovnet weights` lists them, `vovnet weights check` asks which of them "
            f"answer), or train a detector from ImageNet weights of VoVNet-39 (`vovnet train {other}`)",
            checksum=Checksum("sha256", self.digits),
        )


def torchvision_detector(name: str) -> TorchvisionDetector:
    """Return the detector of ``torchvision:NAME`` or ``torchvision:NAME.WEIGHTS``; without WEIGHTS its default ones.

    Raises:
        InputError: torchvision has no such detector or weights, or the detector has no counterpart here.
    """
    detector, _, member = name.removeprefix(TORCHVISION_PREFIX).partition(".")
    if detector not in NETWORKS:
        raise InputError(
            f"'{name}': {did_you_mean(detector, NETWORKS)} expected {TORCHVISION_PREFIX} and one of "
            f"{', '.join(NETWORKS)}; torchvision's other detectors have no counterpart here"
        )
    offered = get_model_weights(detector)
    if member and member not in offered.__members__:
        raise InputError(f"'{name}': expected {' or '.join(offered.__members__)} as the weights of {detector}")
    return TorchvisionDetector(detector, offered[member or "DEFAULT"])


def metric_name(kind: str) -> str:
    """Return the name of a metric in text, such as ``box AP`` for torchvision's ``box_map``."""
    part = kind.removesuffix("_map")
    return f"{'keypoint' if part == 'kp' else part} AP"


def our_key(key: str, detector: DetectorName) -> str:
    """Return our name of a tensor in a file of torchvision for a kind of detector."""
    return _timm_name(_current_name(key, detector))


def _current_name(key: str, detector: DetectorName) -> str:
    """Return today's name of a tensor for one in the first files."""
    if detector in _OLD_HEAD_NAMES and (old := _OLD_HEAD_NAMES[detector].fullmatch(key)):
        return f"{old[1]}.{int(old[2]) // 2}.0.{old[3]}"
    for pattern, replacement in _OLD_NAMES:
        if pattern.fullmatch(key):
            return pattern.sub(replacement, key)
    if old := _OLD_MASK_NAME.fullmatch(key):
        return f"roi_heads.mask_head.{int(old[1]) - 1}.0.{old[2]}"
    return key


def _timm_name(key: str) -> str:
    """Return timm's name of a tensor of torchvision's MobileNetV3-Large. Other parts, and ResNets, have the same."""
    found = _MOBILENET.fullmatch(key)
    if found is None:
        return key
    with contextlib.suppress(LookupError, ValueError):  # a file may have any key; one of no part keeps its name
        number, layer = int(found[1]), found[3]
        place = _PLACES[number]
        if found[2] is None:  # the first and the last convolution
            name = {"0": "conv" if number else "conv_stem", "1": "bn1"}[layer]
        elif layer in _EXCITATION:
            name = _EXCITATION[layer]
        else:
            parts = _LAYERS_WITHOUT_EXPANSION if number == 1 else _LAYERS
            name = parts[int(found[2])][int(layer)]
        return f"backbone.body.{place}{name}.{found[4]}"
    return key
