"""The keys of a recipe's ``model``: the detector."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from vovnet.adapters.fpn import ExtraLevel
from vovnet.adapters.norms import FpnNorm, Norm
from vovnet.detection.config.conventions import ConventionName
from vovnet.detection.config.detectors import DetectorName
from vovnet.detection.config.fields import Arguments, Flag, Integer, Number, Pixels, Positive, Text
from vovnet.detection.config.parts import recipe_part

_MAX_CHANNELS = 4096
_MAX_PROPOSALS = 100_000
_MAX_SAMPLES = 10**9  # limits of a random choice, which cost nothing
_Level = Annotated[Number, Field(ge=-100_000, le=100_000)]
_AnchorSize = Annotated[Integer, Field(ge=1, le=100_000)]
_Sigma = Annotated[Number, Field(gt=0, le=1)]


@recipe_part("model")
class ModelRecipe:
    """The detector; this part alone is stored in a detector folder's ``config.json``.

    The bounds are wide enough for any real detector, and narrow enough that a file from a stranger cannot take the
    machine's memory or hours of building.
    """

    detector: DetectorName = "faster_rcnn"
    """Kind of detector: torchvision's class of that name."""
    conventions: ConventionName = "torchvision"
    """Rules for images, boxes, training and published files; ``legacy`` follows maskrcnn-benchmark
    (docs/how-to/reproduce.md)."""
    backbone: Text = "vovnet39"
    """Name of any timm model with ``features_only``."""
    backbone_args: Arguments = field(default_factory=dict)
    """Extra arguments of the timm model, such as ``{drop_path_rate: 0.1}``."""
    pretrained: Flag = False
    """Start the backbone from timm's pretrained weights."""
    in_chans: Integer = Field(default=3, ge=1, le=1024)
    """Channels of an image: 3 for RGB, 1 for grey."""
    out_indices: Annotated[list[Annotated[Integer, Field(ge=-64, le=64)]], Field(max_length=64)] | None = None
    """Feature maps of the backbone; null takes those with strides 4, 8, 16 and 32, and from 8 on for ``retinanet`` and
    ``fcos``."""
    out_modules: Annotated[list[Text], Field(min_length=1, max_length=64)] | None = None
    """Modules of the backbone whose outputs are the feature maps, such as ``[blocks.5.0, blocks.6]``, where timm has no
    map; null takes timm's. It replaces ``out_indices``."""
    stride_in_1x1: Flag | None = None
    """Where the blocks of a ResNet have their stride, with ``legacy``: true is the first 1×1 convolution, as in the
    published files; false is the 3×3, as in timm's and torchvision's. null is true. Other conventions have timm's."""
    norm: Norm = "bn"
    """Norms of the backbone. ``frozen_bn`` freezes batch norms whose weights are pretrained."""
    norm_eps: Annotated[Number, Field(ge=0, le=1)] | None = None
    """Epsilon of the backbone's batch norms; null keeps the model's."""
    trainable_stages: Annotated[Integer, Field(ge=0, le=64)] | None = None
    """Number of the backbone's last stages that train; null trains all."""
    fpn_channels: Integer = Field(default=256, ge=1, le=_MAX_CHANNELS)
    """Channels of every pyramid level."""
    fpn_norm: FpnNorm | None = None
    """Norms of the pyramid; null uses none, as in the paper."""
    extra_level: Literal["auto"] | ExtraLevel | None = "auto"
    """Levels above the backbone's: ``pool`` adds P6 by max-pooling, ``p6p7`` adds two by strided convolutions of the
    last level, ``p6p7_c5`` two by strided convolutions of the backbone's last map. ``auto`` is ``p6p7`` for
    ``retinanet`` and ``fcos``, and ``pool`` for the others."""
    num_classes: Annotated[Integer, Field(ge=1, le=20_000)] | None = None
    """Number of object classes without the background; null takes the training data's."""
    min_size: Pixels = 800
    """Short side of the resized image at test time, in pixels."""
    max_size: Pixels = 1333
    """Upper limit of its long side, in pixels."""
    image_mean: Annotated[list[_Level], Field(max_length=1024)] | None = None
    """Mean of each channel, for images in [0, 1]; null takes the backbone's, or with other than one or three channels
    the training files'. With ``legacy`` it is for BGR in 0..255, and null takes the published mean."""
    image_std: Annotated[list[Positive], Field(max_length=1024)] | None = None
    """Standard deviation of each channel, in the same units."""
    anchor_sizes: Annotated[list[Annotated[list[_AnchorSize], Field(max_length=64)]], Field(max_length=64)] | None = (
        None
    )
    """Anchor sizes in pixels, a list for each level. null gives level i the size 32 × 2^i, for ``retinanet`` also
    2^(1/3) and 2^(2/3) times it, and for ``fcos`` the level's stride, which is the unit of its boxes."""
    aspect_ratios: list[Positive] = Field(default_factory=[0.5, 1.0, 2.0].copy, min_length=1, max_length=64)
    """Aspect ratios of the anchors, height / width. ``fcos`` has only square ones."""
    rpn_pre_nms_top_n_train: Integer = Field(default=2000, ge=1, le=_MAX_PROPOSALS)
    """Proposals of each level before non-maximum suppression, in training."""
    rpn_pre_nms_top_n_test: Integer = Field(default=1000, ge=1, le=_MAX_PROPOSALS)
    """The same at test time."""
    rpn_post_nms_top_n_train: Integer = Field(default=2000, ge=1, le=_MAX_PROPOSALS)
    """Proposals of an image after non-maximum suppression, in training."""
    rpn_post_nms_top_n_test: Integer = Field(default=1000, ge=1, le=_MAX_PROPOSALS)
    """The same at test time."""
    rpn_batch_size_per_image: Integer = Field(default=256, ge=1, le=_MAX_SAMPLES)
    """Anchors of an image that are sampled for the RPN's loss."""
    rpn_score_thresh: Number = Field(default=0.0, ge=0, le=1)
    """Proposals with a lower objectness are dropped."""
    rpn_head_convs: Integer = Field(default=1, ge=1, le=16)
    """3×3 convolutions of the RPN's head."""
    box_head_convs: Integer = Field(default=0, ge=0, le=32)
    """3×3 convolutions of the box head. One fully connected layer follows them; with 0 there are two."""
    box_head_channels: Integer = Field(default=256, ge=1, le=_MAX_CHANNELS)
    """Channels of these convolutions."""
    box_representation_size: Integer = Field(default=1024, ge=1, le=16_384)
    """Width of the box head's fully connected layers."""
    box_score_thresh: Number = Field(default=0.05, ge=0, le=1)
    """Detections with a lower score are dropped."""
    box_nms_thresh: Number = Field(default=0.5, ge=0, le=1)
    """IoU above which the box with the lower score is dropped, within a class."""
    box_detections_per_img: Integer = Field(default=100, ge=1, le=_MAX_PROPOSALS)
    """Maximum number of detections in an image."""
    box_batch_size_per_image: Integer = Field(default=512, ge=1, le=_MAX_SAMPLES)
    """Proposals of an image that are sampled for the box head's loss."""
    mask_head_convs: Integer = Field(default=4, ge=1, le=32)
    """Convolutions of the mask head."""
    mask_head_channels: Integer = Field(default=256, ge=1, le=_MAX_CHANNELS)
    """Channels of these convolutions."""
    num_keypoints: Annotated[Integer, Field(ge=1, le=1024)] | None = None
    """Number of keypoints of an object, for ``keypoint_rcnn``; null takes the training data's."""
    keypoint_head_convs: Integer = Field(default=8, ge=1, le=32)
    """Convolutions of the keypoint head."""
    keypoint_head_channels: Integer = Field(default=512, ge=1, le=_MAX_CHANNELS)
    """Channels of these convolutions."""
    keypoint_sigmas: Annotated[list[_Sigma], Field(min_length=1, max_length=1024)] | None = None
    """Sigma of each keypoint, by which an evaluation scales its distance (OKS): how far annotators differ, as a part of
    the square root of the object's area. null has COCO's for the 17 keypoints of its persons, otherwise 0.05."""
    head_norm: FpnNorm | None = None
    """Norms of the convolutions in the heads; null uses none, and ``gn`` for ``fcos``."""
    regression_loss: Literal["l1", "giou"] = "l1"
    """Loss of the boxes of ``retinanet``; ``fcos`` has ``giou``, and the others have a smooth L1 loss."""
    topk_candidates: Integer = Field(default=1000, ge=1, le=_MAX_PROPOSALS)
    """Detections of each level before non-maximum suppression, for ``retinanet`` and ``fcos``."""


SETTINGS = {
    *("min_size", "max_size"),
    *("rpn_pre_nms_top_n_train", "rpn_pre_nms_top_n_test", "rpn_post_nms_top_n_train", "rpn_post_nms_top_n_test"),
    *("rpn_batch_size_per_image", "rpn_score_thresh"),
    *("box_score_thresh", "box_nms_thresh", "box_detections_per_img", "box_batch_size_per_image"),
    *("topk_candidates", "regression_loss"),
}
"""Keys of the model that change neither the network nor what its weights mean: sizes, thresholds, numbers of boxes."""
