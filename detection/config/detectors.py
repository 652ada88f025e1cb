"""The kinds of detectors that a recipe can name, and what distinguishes them: the only table of them.

A new detector is a row here and a builder in :mod:`vovnet.detection.models`; everything else asks the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vovnet.adapters.fpn import ExtraLevel
from vovnet.adapters.levels import PYRAMID_STRIDES

DetectorName = Literal["faster_rcnn", "mask_rcnn", "keypoint_rcnn", "retinanet", "fcos"]

Annotation = Literal["masks", "keypoints"]
"""Kinds of annotations that an object may have beside its box and its category."""

Task = Literal["object-detection", "image-segmentation", "keypoint-detection"]
"""The Hugging Face Hub's name of a task."""


@dataclass(frozen=True)
class DetectorFacts:
    """The properties of a kind of detector on which other modules depend."""

    title: str
    """Its name in text."""
    torchvision: str
    """The class in ``torchvision.models.detection``."""
    builder: str
    """The beginning of the names of torchvision's builders."""
    task: Task
    """Its task on the Hugging Face Hub."""
    citation: str
    """BibTeX of the paper."""
    annotation: Annotation | None = None
    """Kind of annotations that its training data must have beside boxes, and that it detects; None if there is none."""
    strides: tuple[int, ...] = PYRAMID_STRIDES
    """Strides in pixels of the backbone's levels."""
    extra_level: ExtraLevel = "pool"
    """The levels above them."""
    class_parts: tuple[str, ...] = ("roi_heads.box_predictor.",)
    """Where in its state dict the tensors are whose shapes depend on the number of classes or of keypoints."""
    own_parts: tuple[str, ...] = ()
    """Where in its state dict the tensors are that a Faster R-CNN lacks."""
    points: bool = False
    """True if it predicts one box at each place, without anchors of several sizes and aspect ratios."""
    legacy: bool = False
    """True if it can follow maskrcnn-benchmark's conventions."""

    @property
    def one_stage(self) -> bool:
        """True if it detects on the pyramid's levels, without proposals."""
        return not any(part.startswith("roi_heads.") for part in self.class_parts)

    @property
    def kept_by(self) -> Literal["box", "mask", "keypoint"]:
        """The AP by which a training keeps its best weights."""
        if self.annotation is None:
            return "box"
        return "mask" if self.annotation == "masks" else "keypoint"

    @property
    def needs_masks(self) -> bool:
        """True if it is trained on masks and detects them."""
        return self.annotation == "masks"

    @property
    def needs_keypoints(self) -> bool:
        """True if it is trained on keypoints and detects them."""
        return self.annotation == "keypoints"


_ONE_STAGE_STRIDES = PYRAMID_STRIDES[1:]
_ONE_STAGE_CLASSES = ("head.classification_head.cls_logits.",)
_MASK_RCNN = """@inproceedings{he2017mask,
  title     = {Mask {R-CNN}},
  author    = {He, Kaiming and Gkioxari, Georgia and Doll{\\'a}r, Piotr and Girshick, Ross},
  booktitle = {ICCV},
  year      = {2017}
}"""

DETECTORS: dict[DetectorName, DetectorFacts] = {
    "faster_rcnn": DetectorFacts(
        title="Faster R-CNN",
        torchvision="FasterRCNN",
        builder="fasterrcnn",
        task="object-detection",
        legacy=True,
        citation="""@inproceedings{ren2015faster,
  title     = {Faster {R-CNN}: Towards Real-Time Object Detection with Region Proposal Networks},
  author    = {Ren, Shaoqing and He, Kaiming and Girshick, Ross and Sun, Jian},
  booktitle = {NeurIPS},
  year      = {2015}
}""",
    ),
    "mask_rcnn": DetectorFacts(
        title="Mask R-CNN",
        torchvision="MaskRCNN",
        builder="maskrcnn",
        task="image-segmentation",
        annotation="masks",
        class_parts=("roi_heads.box_predictor.", "roi_heads.mask_predictor."),
        own_parts=("roi_heads.mask_head.", "roi_heads.mask_predictor."),
        legacy=True,
        citation=_MASK_RCNN,
    ),
    "keypoint_rcnn": DetectorFacts(
        title="Keypoint R-CNN",
        torchvision="KeypointRCNN",
        builder="keypointrcnn",
        task="keypoint-detection",
        annotation="keypoints",
        class_parts=("roi_heads.box_predictor.", "roi_heads.keypoint_predictor."),
        own_parts=("roi_heads.keypoint_head.", "roi_heads.keypoint_predictor."),
        citation=_MASK_RCNN,
    ),
    "retinanet": DetectorFacts(
        title="RetinaNet",
        torchvision="RetinaNet",
        builder="retinanet",
        task="object-detection",
        strides=_ONE_STAGE_STRIDES,
        extra_level="p6p7",
        class_parts=_ONE_STAGE_CLASSES,
        citation="""@inproceedings{lin2017focal,
  title     = {Focal Loss for Dense Object Detection},
  author    = {Lin, Tsung-Yi and Goyal, Priya and Girshick, Ross and He, Kaiming and Doll{\\'a}r, Piotr},
  booktitle = {ICCV},
  year      = {2017}
}""",
    ),
    "fcos": DetectorFacts(
        title="FCOS",
        torchvision="FCOS",
        builder="fcos",
        task="object-detection",
        strides=_ONE_STAGE_STRIDES,
        extra_level="p6p7",
        class_parts=_ONE_STAGE_CLASSES,
        points=True,
        citation="""@inproceedings{tian2019fcos,
  title     = {{FCOS}: Fully Convolutional One-Stage Object Detection},
  author    = {Tian, Zhi and Shen, Chunhua and Chen, Hao and He, Tong},
  booktitle = {ICCV},
  year      = {2019}
}""",
    ),
}
"""Facts about each value of ``model.detector``."""
