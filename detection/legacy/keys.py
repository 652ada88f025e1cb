"""Infer which detector a published maskrcnn-benchmark checkpoint holds, and map its keys to ours.

The reference's keys are those of ``golden/keys_*.json``, such as ``backbone.body.stem.stem_1/conv.weight``,
``backbone.fpn.fpn_inner1.weight``, ``rpn.head.conv.weight``, ``roi_heads.box.feature_extractor.fc6.weight``
(reference utils/checkpoint.py:32-50 for the file; modeling/backbone, modeling/rpn, modeling/roi_heads for the names).
Everything is inferred from keys and shapes: the backbone from its convolutions, masks from their head, group norm from
the absence of running statistics, the number of classes from the classifier's outputs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn

from vovnet.checkpoints.shapes import Shapes, closest, compare_shapes, published_resnet_keys, shapes_of
from vovnet.detection.checkpoints.empty import empty_detector
from vovnet.detection.config.detectors import DetectorName
from vovnet.detection.config.loading import load_recipe, recipe_names
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.legacy.anchors import base_anchors
from vovnet.errors import InputError
from vovnet.vovnet import VoVNet, published_keys

BODIES = {
    "resnet50": "R_50",
    "resnet101": "R_101",
    "vovnet27_slim": "V_27_slim",
    "vovnet39": "V_39",
    "vovnet57": "V_57",
}
"""timm's name of a backbone → the part of a recipe's name."""

PARTS = ("backbone.fpn.", "rpn.", "roi_heads.")
"""The beginnings of the keys that a detector has and a backbone does not have."""

_STRUCTURE = ("detector", "conventions", "backbone", "norm", "fpn_norm", "box_head_convs", "head_norm")
"""The fields in which published model recipes differ."""

_BODY = "backbone.body."
_CELL_ANCHORS = re.compile(r"rpn\.anchor_generator\.cell_anchors\.\d+")
_LEVELS = ((4, 32), (8, 64), (16, 128), (32, 256), (64, 512))  # stride and anchor size, pixels
_RATIOS = (0.5, 1.0, 2.0)
_COUNTER = "num_batches_tracked"
_MOST_OUTPUTS = 20_001  # The limit of config.json. A file cannot make us allocate more memory than that.


@dataclass(frozen=True)
class PublishedDetector:
    """A detector that was inferred from the keys and shapes of a file."""

    title: str
    """The name of the detector, such as ``Mask R-CNN V-39-FPN``."""
    recipe: str | None
    """The shipped recipe that trains it, or None if there is none."""
    model: ModelRecipe
    """The model part of the recipe, with ``num_classes``."""
    names: dict[str, str]
    """The file's key → ours, for every tensor of the detector."""
    ignored: dict[str, str]
    """The keys that are left out on purpose, and the reason."""
    detector: nn.Module
    """The detector of ``model`` on the meta device, without the weights."""

    @property
    def full_title(self) -> str:
        """Return the title with the number of classes, such as ``Mask R-CNN V-39-FPN, 80 classes``."""
        return f"{self.title}, {self.model.num_classes} classes"

    @property
    def name(self) -> str:
        """Return the name of the shipped recipe, or a text that says that there is none."""
        return self.recipe or f"no shipped recipe; model.backbone={self.model.backbone}"

    def has_structure_of(self, model: ModelRecipe) -> bool:
        """True if a model recipe describes this detector, except for classes and settings that weights do not show."""
        return all(getattr(self.model, key) == getattr(model, key) for key in _STRUCTURE)

    def is_not(self, recipe: str) -> str:
        """Return a message that says what this detector is instead of the one of a recipe."""
        text = f"is {self.full_title} ({self.name}), not {recipe}"
        if recipe.startswith("mask_rcnn_V_57") and self.title == "Mask R-CNN V-39-FPN":
            text += "; the link that is published for Mask R-CNN V-57 leads to the file of V-39"
        return text


def infer_detector(found: Shapes) -> PublishedDetector:
    """Infer which detector a file holds. Every key is either mapped to one of ours or ignored on purpose.

    Args:
        found: The names and shapes of a whole detector's tensors, without ``module.``.

    Raises:
        InputError: Keys are missing, left over or of another shape; the message lists all of them.
    """
    body = closest({name: _convolutions(_body_shapes(name)) for name in BODIES}, _convolutions(found))
    title, recipe, model = _recipe_of(body, found)
    detector = empty_detector(model)
    names = published_detector_keys(detector, body)
    ours = shapes_of(detector.state_dict())
    ignored = _ignored(found, names)
    rest = {key: shape for key, shape in found.items() if key not in ignored}
    if differences := compare_shapes({theirs: ours[names[theirs]] for theirs in names}, rest):
        raise InputError(f"is nearest to {title}, but does not fit it ({differences})")
    return PublishedDetector(title, recipe, model, names, ignored, detector)


def check_cell_anchors(tensors: Mapping[str, Tensor]) -> None:
    """Check that the anchors in a file are those that the detector computes (rpn/anchor_generator.py:220-289).

    Raises:
        InputError: They are not; the weights would give other detections.
    """
    for key, value in tensors.items():
        if _CELL_ANCHORS.fullmatch(key):
            level = int(key.rpartition(".")[2])
            expected = base_anchors(*_LEVELS[level], _RATIOS)
            if not torch.equal(value.float(), expected):
                raise InputError(f"{key} is {value.tolist()}, expected the published anchors {expected.tolist()}")


def published_detector_keys(detector: nn.Module, body: str) -> dict[str, str]:
    """Return the reference's name → ours for every tensor of a detector, without the norms' counters of batches.

    Args:
        detector: A detector of a recipe with ``conventions: legacy``.
        body: timm's name of its backbone.
    """
    keys = [key for key in detector.state_dict() if not key.endswith(_COUNTER)]
    layers = _pyramid_layers(keys) | _rpn_layers() | _box_layers(keys) | _mask_layers(keys)
    names = {}
    for theirs, ours in _body_keys(_empty_body(body)).items():
        # features_only flattens the first level of a VoVNet: stem.0 → stem_0.
        names[f"{_BODY}{theirs}"] = _BODY + re.sub(r"^(stem|stages)\.", r"\1_", ours)
    for theirs, ours in layers.items():
        names |= {f"{theirs}.{leaf}": f"{ours}.{leaf}" for leaf in ("weight", "bias")}
    present = set(keys)
    return {theirs: ours for theirs, ours in names.items() if ours in present}


def _body_keys(model: nn.Module) -> dict[str, str]:
    names = published_keys(model) if isinstance(model, VoVNet) else published_resnet_keys(model)
    return {theirs: ours for theirs, ours in names.items() if not theirs.endswith(_COUNTER)}


def _convolutions(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the backbone's convolutions, which differ between backbones and do not depend on norms."""
    return {key: s for key, s in shapes.items() if key.startswith(_BODY) and len(s) == 4}


def _body_shapes(name: str) -> dict[str, tuple[int, ...]]:
    model = _empty_body(name)
    shapes = shapes_of(model.state_dict())
    return {f"{_BODY}{theirs}": shapes[ours] for theirs, ours in _body_keys(model).items() if ours in shapes}


def _empty_body(name: str) -> nn.Module:
    return timm.create_model(name, num_classes=0, device="meta")


def _conv_layers(theirs: str, ours: str, keys: Iterable[str]) -> dict[str, str]:
    """Map a convolution. If it has a norm, both are numbered in the reference, too."""
    if f"{ours}.1.weight" in keys:
        return {f"{theirs}.{i}": f"{ours}.{i}" for i in (0, 1)}
    return {theirs: f"{ours}.0"}


def _pyramid_layers(keys: Iterable[str]) -> dict[str, str]:
    layers: dict[str, str] = {}
    for i in range(4):
        layers |= _conv_layers(f"backbone.fpn.fpn_inner{i + 1}", f"backbone.fpn.inner_blocks.{i}", keys)
        layers |= _conv_layers(f"backbone.fpn.fpn_layer{i + 1}", f"backbone.fpn.layer_blocks.{i}", keys)
    return layers


def _rpn_layers() -> dict[str, str]:
    return {
        "rpn.head.conv": "rpn.head.conv.0.0",
        "rpn.head.cls_logits": "rpn.head.cls_logits",
        "rpn.head.bbox_pred": "rpn.head.bbox_pred",
    }


def _box_layers(keys: Iterable[str]) -> dict[str, str]:
    """Map the box head: two linear layers, or convolutions and one linear (roi_box_feature_extractors.py:55-135)."""
    theirs, ours = "roi_heads.box.feature_extractor", "roi_heads.box_head"
    layers = {f"roi_heads.box.predictor.{part}": f"roi_heads.box_predictor.{part}" for part in _BOX_PREDICTOR}
    if f"{ours}.fc6.weight" in keys:
        return layers | {f"{theirs}.{fc}": f"{ours}.{fc}" for fc in ("fc6", "fc7")}
    convs = sum(re.fullmatch(rf"{re.escape(ours)}\.\d+\.0\.weight", key) is not None for key in keys)
    for i in range(convs):  # The reference numbers convolution, norm and ReLU consecutively.
        layers |= {f"{theirs}.xconvs.{3 * i}": f"{ours}.{i}.0", f"{theirs}.xconvs.{3 * i + 1}": f"{ours}.{i}.1"}
    return layers | {f"{theirs}.fc6": f"{ours}.{convs + 1}"}  # after torchvision's Flatten


_BOX_PREDICTOR = ("cls_score", "bbox_pred")


def _mask_layers(keys: Iterable[str]) -> dict[str, str]:
    theirs, ours = "roi_heads.mask", "roi_heads.mask_head"
    layers = {f"{theirs}.predictor.{part}": f"roi_heads.mask_predictor.{part}" for part in _MASK_PREDICTOR}
    for i in range(4):
        layers |= _conv_layers(f"{theirs}.feature_extractor.mask_fcn{i + 1}", f"{ours}.{i}", keys)
    return layers


_MASK_PREDICTOR = ("conv5_mask", "mask_fcn_logits")


def _recipe_of(body: str, found: Shapes) -> tuple[str, str | None, ModelRecipe]:
    """Return the title, the shipped recipe (if there is one), and the model with the file's number of classes."""
    masks = any(key.startswith("roi_heads.mask.") for key in found)
    grouped = not any(key.endswith(".running_mean") for key in found)
    detector: DetectorName = "mask_rcnn" if masks else "faster_rcnn"
    part = BODIES[body]
    form = "scratch_{}_{}_FPN_3x_gn" if grouped else "{}_{}_FPN_2x"
    name = form.format(detector, part)
    shipped = name in recipe_names()
    model = load_recipe(name if shipped else form.format("mask_rcnn", "V_39")).model
    model = dataclasses.replace(model, detector=detector, backbone=body, num_classes=_classes(found))
    title = f"{'Mask' if masks else 'Faster'} R-CNN {part.replace('_', '-')}-FPN{' with group norm' if grouped else ''}"
    return title, name if shipped else None, model


def _classes(found: Shapes) -> int:
    """Return the number of classes without the background.

    It is COCO's if the file has no classifier, which is reported later as a missing key.
    """
    key = "roi_heads.box.predictor.cls_score.weight"
    shape = found.get(key)
    if shape is None:
        return 80
    if len(shape) != 2 or not 2 <= shape[0] <= _MOST_OUTPUTS:
        raise InputError(f"{key} is {shape}, expected (classes and background, features)")
    return shape[0] - 1


def _ignored(found: Shapes, names: Mapping[str, str]) -> dict[str, str]:
    """Return the keys of anchors, which the detector computes, and of the counters of its norms, with the reason."""
    anchors = {f"rpn.anchor_generator.cell_anchors.{level}" for level in range(len(_LEVELS))}
    ignored = {}
    for key, shape in found.items():
        layer, _, leaf = key.rpartition(".")
        if key in anchors and shape == (len(_RATIOS), 4) and anchors <= found.keys():
            ignored[key] = "equal to the anchors that are computed here"
        elif leaf == _COUNTER and shape == () and f"{layer}.weight" in names:
            ignored[key] = "not used by a frozen or group norm"
    return ignored
