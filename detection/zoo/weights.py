"""The published detectors as torchvision's weights: ``fasterrcnn_vovnet39_fpn(weights="COCO_V1")``.

The enums differ from torchvision's in two ways: ``get_state_dict`` returns the tensors by this package's keys, not the
file's, and an unknown name raises an error that lists the members.
"""

from __future__ import annotations

from dataclasses import replace
from enum import EnumMeta
from typing import Any, Self

from torch import Tensor
from torchvision.models._api import Weights, WeightsEnum
from torchvision.transforms._presets import ObjectDetection

from vovnet.checkpoints.download import fetch
from vovnet.checkpoints.places import TORCHVISION_PREFIX
from vovnet.checkpoints.sources import LICENCE_NOTICES
from vovnet.detection.checkpoints.config_json import compose_config
from vovnet.detection.checkpoints.empty import empty_detector, fill_detector
from vovnet.detection.checkpoints.folder import attach
from vovnet.detection.config.detectors import DETECTORS
from vovnet.detection.models.build import Detector
from vovnet.detection.zoo.published import PublishedRow, coco_categories, published_model, published_row
from vovnet.errors import InputError

_DOCS = (
    "Published by VoVNet's authors, who trained it with maskrcnn-benchmark on COCO 2014; the metrics are theirs, on "
    "its minival. The builder returns the detector of the recipe, which keeps maskrcnn-benchmark's conventions. The "
    "operations are counted as torchvision counts its detectors': multiply-adds for an 800×800 image, 1000 proposals "
    "and 100 masks."
)


class _ListsMembers(EnumMeta):
    """Raise an InputError for an unknown member; ``torchvision.models.get_weight`` looks members up by name."""

    def __getitem__(cls, name: str) -> Any:
        if name not in cls.__members__:
            raise InputError(cls.refusal(name))  # type: ignore[attr-defined]
        return super().__getitem__(name)


class PublishedWeights(WeightsEnum, metaclass=_ListsMembers):
    """The published weights of one detector; an enum without members if there are none."""

    @classmethod
    def verify(cls, obj: Any) -> Self | None:
        """Return a member that is given itself or by its name; None stays None.

        Raises:
            InputError: The value is something else, such as a member of another detector's enum.
        """
        if isinstance(obj, str):
            return cls[obj.removeprefix(f"{cls.__name__}.")]
        if obj is not None and not isinstance(obj, cls):
            raise InputError(cls.refusal(obj))
        return obj

    @classmethod
    def refusal(cls, obj: object) -> str:
        """Return the error message for weights that do not exist."""
        if cls.__members__:
            return f"weights={obj!r}: expected None or, of {cls.__name__}, {' or '.join(map(repr, cls.__members__))}"
        return f"weights={obj!r}: {cls.absence()}; take weights=None"

    @classmethod
    def absence(cls) -> str:
        """Return the reason why the enum has no members."""
        published = [one.__name__ for one in PublishedWeights.__subclasses__() if one.__members__]
        return f"nothing is published of this detector, only {', '.join(published)}"

    def get_state_dict(self, progress: bool = True, check_hash: bool = False) -> dict[str, Tensor]:
        """Return the state dict of the detector of ``meta["recipe"]``. The file is downloaded once, into torch's cache.

        Args:
            progress: Show a progress bar for the download.
            check_hash: Has no effect, because no hash of these files was published.

        Raises:
            InputError: The file cannot be fetched or read, or holds another detector.
        """
        from vovnet.detection.legacy.published_file import read_published

        recipe: str = self.meta["recipe"]
        path = fetch(self.url, LICENCE_NOTICES["unknown"], otherwise=_other_sources(recipe), progress=progress)
        return read_published(recipe, path)


def unpublished(name: str) -> type[PublishedWeights]:
    """Return an enum without members, for a detector that nothing is published of."""
    make: Any = PublishedWeights  # the functional form of an enum, which type checkers know for literals alone
    empty: type[PublishedWeights] = make(name, {}, module=__name__)
    return empty


def _other_sources(recipe: str) -> str:
    """Return other ways to a detector than a published file that cannot be fetched, with their commands."""
    detector = published_model(recipe).detector
    hosted = f"{TORCHVISION_PREFIX}{DETECTORS[detector].builder}_resnet50_fpn_v2"
    ours = f"{detector}_vovnet39_fpn"
    return (
        f"convert a file (`vovnet convert FILE FOLDER`, then --weights FOLDER), take torchvision's detector of another "
        f"network (--weights {hosted}, or init={hosted} in a recipe), or train one from ImageNet weights of VoVNet-39 "
        f"(`vovnet train {ours}`, which starts from vovnet39.osmr_in1k)"
    )


def build_published(weights: PublishedWeights, settings: dict[str, Any], *, progress: bool) -> Detector:
    """The detector that weights belong to, with them, in training mode as torchvision's builders leave it.

    Args:
        weights: which.
        settings: fields of the model recipe to change; none that the weights' meaning hangs on.
        progress: show a bar while the file is fetched.

    Returns:
        The detector with the attributes that :func:`vovnet.detection.load_detector` gives it.

    Raises:
        InputError: a setting cannot be used, which is seen before anything is fetched; or the file cannot be.
    """
    model = replace(published_model(weights.meta["recipe"]), **settings)
    detector = empty_detector(model)
    config = compose_config(detector, model, coco_categories())
    detector = fill_detector(detector, model, weights.get_state_dict(progress=progress))
    return attach(detector, config)


def _coco_v1(recipe: str, *, num_params: int, ops: float) -> Weights:
    row = published_row(recipe)
    if row is None or row.url is None:
        raise LookupError(f"no published file of {recipe}")
    return Weights(
        url=row.url,
        transforms=ObjectDetection,
        meta={
            # In the order of labels, which maskrcnn-benchmark numbers without gaps.
            "categories": ["__background__", *(category["name"] for category in coco_categories())],
            "min_size": (1, 1),
            "num_params": num_params,
            "recipe": recipe,
            "license": "unknown",
            "_metrics": {"COCO-minival2014": _metrics(row)},
            "_ops": ops,
            "_docs": _DOCS,
        },
    )


def _metrics(row: PublishedRow) -> dict[str, float]:
    """Return the metrics in percent, with torchvision's names."""
    kinds = {"box": row.box, "mask": row.mask or ()}
    names = ("map", "map_small", "map_medium", "map_large")
    return {f"{kind}_{name}": ap for kind, aps in kinds.items() for name, ap in zip(names, aps, strict=False)}


class FasterRCNN_Legacy_ResNet50_FPN_Weights(PublishedWeights):
    """Weights of :func:`~vovnet.detection.zoo.published_resnets.fasterrcnn_legacy_resnet50_fpn`."""

    COCO_V1 = _coco_v1("faster_rcnn_R_50_FPN_2x", num_params=41_704_036, ops=131.379)
    DEFAULT = COCO_V1


class FasterRCNN_Legacy_ResNet101_FPN_Weights(PublishedWeights):
    """Weights of :func:`~vovnet.detection.zoo.published_resnets.fasterrcnn_legacy_resnet101_fpn`."""

    COCO_V1 = _coco_v1("faster_rcnn_R_101_FPN_2x", num_params=60_643_940, ops=178.729)
    DEFAULT = COCO_V1


class FasterRCNN_VoVNet27_Slim_FPN_Weights(PublishedWeights):
    """Weights of :func:`~vovnet.detection.zoo.torchvision_api.fasterrcnn_vovnet27_slim_fpn`; none are published."""


class FasterRCNN_VoVNet39_FPN_Weights(PublishedWeights):
    """Weights of :func:`~vovnet.detection.zoo.torchvision_api.fasterrcnn_vovnet39_fpn`."""

    COCO_V1 = _coco_v1("faster_rcnn_V_39_FPN_2x", num_params=39_476_324, ops=172.063)
    DEFAULT = COCO_V1


class FasterRCNN_VoVNet57_FPN_Weights(PublishedWeights):
    """Weights of :func:`~vovnet.detection.zoo.torchvision_api.fasterrcnn_vovnet57_fpn`."""

    COCO_V1 = _coco_v1("faster_rcnn_V_57_FPN_2x", num_params=53_505_124, ops=195.761)
    DEFAULT = COCO_V1


class MaskRCNN_Legacy_ResNet50_FPN_Weights(PublishedWeights):
    """Weights of :func:`~vovnet.detection.zoo.published_resnets.maskrcnn_legacy_resnet50_fpn`."""

    COCO_V1 = _coco_v1("mask_rcnn_R_50_FPN_2x", num_params=44_347_573, ops=184.385)
    DEFAULT = COCO_V1


class MaskRCNN_Legacy_ResNet101_FPN_Weights(PublishedWeights):
    """Weights of :func:`~vovnet.detection.zoo.published_resnets.maskrcnn_legacy_resnet101_fpn`."""

    COCO_V1 = _coco_v1("mask_rcnn_R_101_FPN_2x", num_params=63_287_477, ops=231.735)
    DEFAULT = COCO_V1


class MaskRCNN_VoVNet27_Slim_FPN_Weights(PublishedWeights):
    """Weights of :func:`~vovnet.detection.zoo.torchvision_api.maskrcnn_vovnet27_slim_fpn`; none are published."""


class MaskRCNN_VoVNet39_FPN_Weights(PublishedWeights):
    """Weights of :func:`~vovnet.detection.zoo.torchvision_api.maskrcnn_vovnet39_fpn`."""

    COCO_V1 = _coco_v1("mask_rcnn_V_39_FPN_2x", num_params=42_119_861, ops=225.069)
    DEFAULT = COCO_V1


class MaskRCNN_VoVNet57_FPN_Weights(PublishedWeights):
    """Weights of :func:`~vovnet.detection.zoo.torchvision_api.maskrcnn_vovnet57_fpn`; no file is published."""

    @classmethod
    def absence(cls) -> str:
        return (
            "there is no published file of Mask R-CNN V-57: the published table repeats V-39's link in its row, and "
            "V-39's weights are not loaded in its place"
        )
