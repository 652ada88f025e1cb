"""The kinds of detectors that the torchvision-style builders make, and their heads in torchvision's v2 form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torchvision
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead

from vovnet.adapters import FpnBackbone
from vovnet.adapters.fpn import ExtraLevel
from vovnet.adapters.norms import FpnNorm, Norm, norm_layer
from vovnet.detection.config.detectors import DETECTORS, DetectorFacts
from vovnet.detection.models.one_stage import octave_sizes
from vovnet.detection.models.shared import anchor_generator
from vovnet.detection.models.two_stage import BOX_POOL, default_anchor_sizes

COCO_OUTPUTS = 91
"""Default of torchvision's builders: COCO's category ids go up to 90, and 0 is the background."""
PERSON_OUTPUTS = 2
"""Default of torchvision's keypoint builders: a person and the background."""

_RATIOS = (0.5, 1.0, 2.0)
_CONVS = [256] * 4
"""Channels of the convolutions in a head of v2."""
_WIDTH = 1024
"""Width of the fully connected layer behind them."""

Heads = Callable[[FpnBackbone, int | None, dict[str, Any]], dict[str, Any]]
"""Makes arguments of torchvision's class from the backbone, the number of outputs and the caller's own arguments."""


@dataclass(frozen=True)
class Kind:
    """A kind of detector with one form of its heads, for every backbone."""

    facts: DetectorFacts
    """The kind, in the table of all detectors."""
    suffix: Literal["", "_v2"] = ""
    """The end of the builders' names."""
    outputs: int = COCO_OUTPUTS
    """Default number of outputs, with the background."""
    pretrained_norm: Norm = "frozen_bn"
    """Norms of a pretrained backbone."""
    fpn_norm: FpnNorm | None = None
    """Norms of the pyramid."""
    p6p7_c5: bool = False
    """Compute the levels above the backbone's from its last map, not from the pyramid's."""
    heads: Heads | None = None
    """The heads, if they are not the defaults of torchvision's class."""

    @property
    def detector(self) -> type[nn.Module]:
        """torchvision's class."""
        found: type[nn.Module] = getattr(torchvision.models.detection, self.facts.torchvision)
        return found

    @property
    def extra_level(self) -> ExtraLevel:
        """The levels above the backbone's."""
        return "p6p7_c5" if self.p6p7_c5 else self.facts.extra_level

    @property
    def title(self) -> str:
        """The name in text."""
        return f"{self.facts.title} v2" if self.suffix else self.facts.title

    def builder(self, architecture: str) -> str:
        """Return the name of the builder over a backbone, such as ``retinanet_vovnet39_fpn_v2``."""
        return f"{self.facts.builder}_{architecture}_fpn{self.suffix}"

    def weights(self, architecture: str) -> str:
        """Return the name of the enum of its weights, such as ``RetinaNet_VoVNet39_FPN_V2_Weights``."""
        name = architecture.replace("vovnet", "VoVNet").replace("slim", "Slim")
        return f"{self.facts.torchvision}_{name}_FPN{self.suffix.upper()}_Weights"


def _box_heads(backbone: FpnBackbone, outputs: int | None, given: dict[str, Any]) -> dict[str, Any]:
    """Return the heads of torchvision's ``fasterrcnn_resnet50_fpn_v2``: deeper, and with norms in the box head."""
    anchors = given.get("rpn_anchor_generator") or _anchors(default_anchor_sizes(backbone))
    channels = backbone.out_channels
    box = FastRCNNConvFCHead((channels, BOX_POOL, BOX_POOL), _CONVS, [_WIDTH], norm_layer=norm_layer("bn"))
    return {
        "rpn_anchor_generator": anchors,
        "rpn_head": RPNHead(channels, anchors.num_anchors_per_location()[0], conv_depth=2),
        "box_head": box,
    }


def _mask_heads(backbone: FpnBackbone, outputs: int | None, given: dict[str, Any]) -> dict[str, Any]:
    """Return the heads of torchvision's ``maskrcnn_resnet50_fpn_v2``."""
    mask = MaskRCNNHeads(backbone.out_channels, _CONVS, 1, norm_layer=norm_layer("bn"))
    return {**_box_heads(backbone, outputs, given), "mask_head": mask}


def _dense_heads(backbone: FpnBackbone, outputs: int | None, given: dict[str, Any]) -> dict[str, Any]:
    """Return the head of torchvision's ``retinanet_resnet50_fpn_v2``: group norms, and GIoU as the boxes' loss."""
    anchors = given.get("anchor_generator") or _anchors(octave_sizes(backbone))
    head = RetinaNetHead(
        backbone.out_channels,
        anchors.num_anchors_per_location()[0],
        COCO_OUTPUTS if outputs is None else outputs,
        norm_layer=norm_layer("gn"),
    )
    head.regression_head._loss_type = "giou"  # as torchvision's builder does
    return {"anchor_generator": anchors, "head": head}


def _anchors(sizes: list[list[int]]) -> AnchorGenerator:
    return anchor_generator(sizes, _RATIOS)


FASTER = Kind(DETECTORS["faster_rcnn"])
MASK = Kind(DETECTORS["mask_rcnn"])
KEYPOINT = Kind(DETECTORS["keypoint_rcnn"], outputs=PERSON_OUTPUTS)
RETINANET = Kind(DETECTORS["retinanet"])
FCOS = Kind(DETECTORS["fcos"])
# As in torchvision's v2 detectors, the norms of a pretrained backbone train.
FASTER_V2 = Kind(FASTER.facts, "_v2", pretrained_norm="bn", fpn_norm="bn", heads=_box_heads)
MASK_V2 = Kind(MASK.facts, "_v2", pretrained_norm="bn", fpn_norm="bn", heads=_mask_heads)
RETINANET_V2 = Kind(RETINANET.facts, "_v2", pretrained_norm="bn", p6p7_c5=True, heads=_dense_heads)
