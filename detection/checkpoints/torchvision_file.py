"""Tell which of torchvision's detectors a file of weights holds: by its checksum, or by the names and shapes in it.

The files are those that torchvision publishes for COCO, and those that people save of the same detectors, with any
number of classes (``torch.save(detector.state_dict(), …)``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from torch import nn
from torchvision.models import get_model_weights

from vovnet.checkpoints.places import TORCHVISION_PREFIX, is_torchvision
from vovnet.checkpoints.shapes import Differences, Shapes, compare_shapes, shapes_of
from vovnet.detection.checkpoints.empty import empty_detector
from vovnet.detection.checkpoints.torchvision_detectors import (
    NETWORKS,
    TorchvisionDetector,
    our_key,
    torchvision_detector,
)
from vovnet.detection.config.categories import Category
from vovnet.detection.config.detectors import DETECTORS, DetectorName
from vovnet.detection.config.model import SETTINGS, ModelRecipe
from vovnet.errors import InputError

_MARKS = (*("roi_heads.box_head.", "roi_heads.box_predictor."), *("head.classification_head.", "head.regression_head."))
"""Beginnings of keys that torchvision's detectors have, and those of other projects do not."""
_CLASS_BIASES = ("roi_heads.box_predictor.cls_score.bias", "head.classification_head.cls_logits.bias")
"""The tensors whose lengths are the number of classes with the background, times the anchors at a place."""
_KEYPOINT_BIAS = "roi_heads.keypoint_predictor.kps_score_lowres.bias"
"""The tensor whose length is the number of keypoints."""
_MOST = {_KEYPOINT_BIAS: 1024} | dict.fromkeys(_CLASS_BIASES, 20_001)
"""The limits of ``config.json``: a file cannot make us allocate more memory than these numbers need."""
_COUNTER = ".num_batches_tracked"
_BODY = "backbone.body."


@dataclass(frozen=True)
class TorchvisionFile:
    """A detector of torchvision that was recognised in a file."""

    source: TorchvisionDetector
    """torchvision's detector with the weights whose settings it has."""
    published: bool
    """True if the file is the one that torchvision publishes, by its SHA-256."""
    model: ModelRecipe
    """The model part of the recipe, with the file's number of classes and keypoints."""
    detector: nn.Module
    """The detector of ``model`` on the meta device, without the weights."""
    names: dict[str, str]
    """The file's key → ours, for every tensor of the detector."""
    ignored: dict[str, str]
    """The keys that are left out on purpose, and the reason."""
    others: tuple[str, ...] = ()
    """Other names of torchvision's whose files have the same names and shapes."""

    @property
    def name(self) -> str:
        """Return ``torchvision:NAME.WEIGHTS`` of a published file, and ``torchvision:NAME`` of another one."""
        return self.source.full_name if self.published else f"{TORCHVISION_PREFIX}{self.source.name}"

    @property
    def full_title(self) -> str:
        """Return the contents as text, such as ``Faster R-CNN, torchvision's fasterrcnn_resnet50_fpn, 90 classes``."""
        facts, classes = DETECTORS[self.model.detector], self.model.num_classes
        return f"{facts.title}, torchvision's {self.source.name}, {classes} class{'' if classes == 1 else 'es'}"

    @property
    def licence(self) -> str:
        """Return a key of :data:`vovnet.checkpoints.sources.LICENCE_NOTICES`."""
        return "bsd-3-clause" if self.published else "not-stated"

    @property
    def categories(self) -> list[Category] | None:
        """Return torchvision's categories if the file has as many classes and keypoints; None if it has others."""
        own, theirs = self.model, self.source.model
        same = (own.num_classes, own.num_keypoints) == (theirs.num_classes, theirs.num_keypoints)
        return self.source.categories if same else None

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what a file that torchvision did not publish leaves open, and what was taken for it."""
        if self.published:
            return ()
        notes = [
            f"its SHA-256 is of none of torchvision's files, its names and shapes are {self.source.name}'s: sizes and "
            f"thresholds in config.json are those of {self.source.full_name}"
        ]
        if self.model.norm_eps == 0:
            notes.append(
                "the file does not tell the epsilon of its frozen norms: 0.0 is taken, as in all that started from "
                "torchvision's COCO weights; what started from an ImageNet backbone has 1e-05"
            )
        if self.others:
            notes.append(f"{', '.join(self.others)} would fit, too; --expect NAME takes one of them")
        return tuple(notes)

    def fits(self, wanted: TorchvisionDetector) -> bool:
        """Return True if the file has the network of one of torchvision's detectors, and is no other published file."""
        if self.published:
            return self.source == wanted
        return wanted.full_name in (self.source.full_name, *self.others)


def is_torchvision_file(keys: Iterable[str]) -> bool:
    """Return True if a file's keys are those of a detector of torchvision, also of one without a counterpart here."""
    return any(key.startswith(_MARKS) for key in keys)


def infer_torchvision(found: Shapes, sha256: str, wanted: TorchvisionDetector | None = None) -> TorchvisionFile:
    """Tell which detector of torchvision a file holds. Every key is mapped to one of ours or ignored on purpose.

    Args:
        found: The names and shapes of the file's tensors, without ``module.``.
        sha256: The file's SHA-256 in hexadecimal digits.
        wanted: Which one to take of several with the same names and shapes; None takes the first of
            :data:`NETWORKS`, with its default weights.

    Raises:
        InputError: The file fits none of them; the message says what is missing, left over or of another shape.
    """
    sources = _offered()
    known = next((one for one in sources if sha256.startswith(one.digits)), None)
    name = _fitting(found, _candidates(found) if known is None else [known.name])
    alike = [one for one in sources if _network(one.name) == _network(name)]
    default = torchvision_detector(f"{TORCHVISION_PREFIX}{name}")
    source = known or (wanted if wanted in alike else default)
    assert source is not None
    model = _with_numbers(source, found)
    if (
        known is None
        and model.norm == "frozen_bn"
        and any(key.startswith(_BODY) and key.endswith(_COUNTER) for key in found)
    ):
        model = _with_trained_norms(model)
    detector = empty_detector(model)
    ours = shapes_of(detector.state_dict())
    names, ignored = _mapped(found, ours, model.detector)
    if differences := _differences(ours, found, names, ignored):
        raise InputError(_no_fit(name, differences))
    others = tuple(one.full_name for one in alike if one != source)
    return TorchvisionFile(source, known is not None, model, detector, names, ignored, others)


def published_by_torchvision(name: str, sha256: str) -> TorchvisionDetector | None:
    """Return torchvision's detector of ``torchvision:NAME.WEIGHTS`` if a checksum is that of its file, or None."""
    if not is_torchvision(name):
        return None
    return next((one for one in _offered() if one.full_name == name and sha256.startswith(one.digits)), None)


def _offered() -> list[TorchvisionDetector]:
    """Return torchvision's detectors that have a counterpart here, with each of their weights."""
    return [TorchvisionDetector(name, weights) for name in NETWORKS for weights in get_model_weights(name)]


def _network(name: str) -> dict[str, Any]:
    """Return what a network of :data:`NETWORKS` is: its fields without sizes, thresholds and numbers of boxes."""
    return {key: value for key, value in NETWORKS[name].items() if key not in SETTINGS}


@cache
def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one of :data:`NETWORKS` with torchvision's number of classes."""
    return shapes_of(empty_detector(torchvision_detector(f"{TORCHVISION_PREFIX}{name}").model).state_dict())


def _fitting(found: Shapes, names: Iterable[str]) -> str:
    """Return the first network that a file fits; layers of classes are not compared.

    Raises:
        InputError: The file fits none; the message compares it with the nearest one.
    """
    found_differences: dict[str, Differences] = {}
    for name in names:
        parts = DETECTORS[_detector(name)].class_parts
        ours, ignored = _mapped(found, _shapes(name), _detector(name))
        expected = {key: shape for key, shape in _shapes(name).items() if not key.startswith(parts)}
        rest = {key: shape for key, shape in found.items() if not key.startswith(parts)}
        differences = _differences(expected, rest, ours, ignored)
        if not differences:
            return name
        found_differences[name] = differences
    nearest = min(found_differences, key=lambda name: len(found_differences[name]))
    raise InputError(_no_fit(nearest, found_differences[nearest]))


def _candidates(found: Shapes) -> list[str]:
    """Return the networks whose kinds of parts a file has, or all if it has those of none."""

    def present(part: str) -> bool:
        return any(key.startswith(part) for key in found)

    own = {name: facts.own_parts for name, facts in DETECTORS.items()}
    there = {part for parts in own.values() for part in parts if present(part)}
    return [
        name
        for name in NETWORKS
        if set(own[_detector(name)]) == there and all(map(present, DETECTORS[_detector(name)].class_parts))
    ] or [*NETWORKS]


def _detector(name: str) -> DetectorName:
    return torchvision_detector(f"{TORCHVISION_PREFIX}{name}").model.detector


def _mapped(found: Shapes, ours: Shapes, kind: DetectorName) -> tuple[dict[str, str], dict[str, str]]:
    """Return the file's key → ours, and the counters that frozen norms have no place for, with the reason."""
    names = {key: our_key(key, kind) for key in found}
    ignored = {
        key: "not used by a frozen norm"
        for key, name in names.items()
        if key.endswith(_COUNTER) and name not in ours and f"{name.removesuffix(_COUNTER)}.running_var" in ours
    }
    return {key: name for key, name in names.items() if key not in ignored}, ignored


def _differences(expected: Shapes, found: Shapes, names: dict[str, str], ignored: dict[str, str]) -> Differences:
    by_name: dict[str, tuple[int, ...]] = {}
    for key, shape in found.items():
        if key not in ignored:
            # Two keys may mean the same tensor, one of them by its former name: the second is left over.
            by_name[key if names[key] in by_name else names[key]] = shape
    return compare_shapes(expected, by_name)


def _with_numbers(source: TorchvisionDetector, found: Shapes) -> ModelRecipe:
    """Return the model recipe with the file's number of classes and keypoints."""
    model, expected = source.model, _shapes(source.name)
    for key in _CLASS_BIASES:
        if key in expected and key in found:
            anchors = expected[key][0] // (len(source.categories) + 1)
            model = replace(model, num_classes=_length(key, found[key], anchors) - 1)
    if _KEYPOINT_BIAS in expected and _KEYPOINT_BIAS in found:
        model = replace(model, num_keypoints=_length(_KEYPOINT_BIAS, found[_KEYPOINT_BIAS], 1))
    return model


def _length(key: str, shape: tuple[int, ...], step: int) -> int:
    least = 1 if key == _KEYPOINT_BIAS else 2
    if len(shape) != 1 or shape[0] % step or not least <= shape[0] // step <= _MOST[key]:
        what = "keypoints" if key == _KEYPOINT_BIAS else f"{step} times the classes and the background"
        raise InputError(f"{key} has the shape {shape}, expected ({what}), from {least * step} to {step * _MOST[key]}")
    return shape[0] // step


def _counts_batches(key: str) -> bool:
    return key.startswith(_BODY) and key.endswith(_COUNTER)


def _with_trained_norms(model: ModelRecipe) -> ModelRecipe:
    """Return a model recipe with norms that count batches, as torchvision's builders have without any weights."""
    return replace(model, norm="bn", norm_eps=model.norm_eps or None, pretrained=False)


def _no_fit(name: str, differences: Differences) -> str:
    return (
        f"holds a detector in torchvision's names, nearest to {name}, but does not fit it ({differences.brief()}); "
        f"expected the weights of {', '.join(NETWORKS)}, with any number of classes; --part backbone takes the network "
        "of a detector alone"
    )
