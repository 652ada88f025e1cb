"""What a recipe may say: everything that decides a training run, as typed data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

ConventionName = Literal["torchvision", "legacy"]


@dataclass(frozen=True)
class ConventionFacts:
    """Input format and category handling of the detectors that follow a set of conventions."""

    channel_order: Literal["rgb", "bgr"]
    """Channel order of a three-channel image."""
    value_range: tuple[float, float]
    """Lowest and highest pixel value before the mean is subtracted."""
    category_names_checked: bool
    """True if category names of the detector and of the data must agree; False compares ids only."""


CONVENTIONS: dict[ConventionName, ConventionFacts] = {
    "torchvision": ConventionFacts(channel_order="rgb", value_range=(0, 1), category_names_checked=True),
    # maskrcnn-benchmark. A published file holds no category names: reference datasets/coco.py:59-64 counts ids.
    "legacy": ConventionFacts(channel_order="bgr", value_range=(0, 255), category_names_checked=False),
}
"""Facts about each value of ``model.conventions``."""


@dataclass
class ModelRecipe:
    """The detector; this part alone is stored in a detector folder's ``config.json``."""

    detector: str = "faster_rcnn"
    """``faster_rcnn`` or ``mask_rcnn``."""
    conventions: str = "torchvision"
    """``torchvision``, or ``legacy``: maskrcnn-benchmark's, for its checkpoints and schedules."""
    backbone: str = "vovnet39"
    """Any timm model with ``features_only``."""
    backbone_args: dict[str, Any] = field(default_factory=dict)
    """Extra arguments of the timm model, such as ``{drop_path_rate: 0.1}``."""
    pretrained: bool = False
    """Start the backbone from timm's pretrained weights."""
    in_chans: int = 3
    out_indices: list[int] | None = None
    """Feature levels of the backbone; None takes those with strides 4, 8, 16, 32."""
    norm: str = "bn"
    """Backbone norms: ``frozen_bn``, ``bn``, ``sync_bn`` or ``gn``."""
    trainable_stages: int | None = None
    """How many of the backbone's last stages train; None trains all."""
    fpn_channels: int = 256
    fpn_norm: str | None = None
    """None as in the paper, or ``bn``, ``sync_bn``, ``gn``."""
    extra_level: str | None = "pool"
    """``pool`` (P6 by max-pooling), ``p6p7`` (two strided convolutions) or None."""
    num_classes: int | None = None
    """Object classes without background; None takes the training data's."""
    min_size: int = 800
    """Short side in pixels at test time."""
    max_size: int = 1333
    """Bound on the long side in pixels."""
    image_mean: list[float] | None = None
    """Per channel for images in [0, 1]; None takes the backbone's."""
    image_std: list[float] | None = None
    anchor_sizes: list[list[int]] | None = None
    """Pixels, a list for each level; None is 32 × 2^i for the levels in turn."""
    aspect_ratios: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0])
    rpn_pre_nms_top_n_train: int = 2000
    rpn_pre_nms_top_n_test: int = 1000
    rpn_post_nms_top_n_train: int = 2000
    rpn_post_nms_top_n_test: int = 1000
    rpn_batch_size_per_image: int = 256
    rpn_head_convs: int = 1
    box_head_convs: int = 0
    """3×3 convolutions before the box head's fully connected layers: two of these without, one with convolutions."""
    box_head_channels: int = 256
    box_representation_size: int = 1024
    box_score_thresh: float = 0.05
    box_nms_thresh: float = 0.5
    box_detections_per_img: int = 100
    box_batch_size_per_image: int = 512
    mask_head_convs: int = 4
    mask_head_channels: int = 256
    head_norm: str | None = None
    """Of the convolutions in the box and mask heads: None or ``gn``."""


@dataclass
class DataSource:
    """One annotation file and the folder that its ``file_name`` entries are relative to."""

    images: str
    annotations: str


@dataclass
class DataRecipe:
    """What is trained and evaluated on, and how images are varied."""

    train: list[DataSource] = field(default_factory=list)
    val: list[DataSource] = field(default_factory=list)
    keep_empty: bool = True
    """Keep training images without objects."""
    train_min_sizes: list[int] = field(default_factory=lambda: [800])
    """Short sides in pixels; one is drawn for each image."""
    train_max_size: int = 1333
    flip: float = 0.5
    """Probability of a horizontal flip."""
    vertical_flip: float = 0.0
    scale_jitter: list[float] | None = None
    """``[low, high]``: large-scale jitter, a scale drawn before a crop to the target size (arXiv:2012.07177)."""
    colour: float = 0.0
    """Strength in 0..1 of brightness, contrast, saturation and hue jitter."""
    aspect_ratio_groups: bool = True
    workers: int = 2
    """Loader processes of each training process."""


@dataclass
class SolverRecipe:
    """SGD and its schedule, counted in iterations (one optimizer step each)."""

    base_lr: float = 0.02
    reference_batch_size: int = 16
    """``base_lr`` is for this many images an iteration and is scaled linearly to ``batch_size``."""
    batch_size: int = 16
    """Images an iteration, over all processes and accumulation steps."""
    accumulate: int = 1
    """Forward-backward passes an iteration."""
    max_iterations: int = 90000
    schedule: str = "steps"
    """``steps`` or ``cosine``."""
    steps: list[int] = field(default_factory=lambda: [60000, 80000])
    gamma: float = 0.1
    warmup_iterations: int = 500
    warmup_factor: float = 0.001
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    norm_weight_decay: float | None = None
    """None gives norms the same decay as other weights."""
    bias_lr_factor: float = 1.0
    bias_weight_decay: float | None = None
    clip_grad_norm: float | None = None
    amp: str = "none"
    """Autocast: ``none``, ``bf16``, ``fp16``, or ``auto``: bf16 where the device computes with it, else none."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, such as 0.999; evaluated and published instead of them."""
    channels_last: bool = True
    memory: str = "normal"
    """For a backbone with OSA blocks: ``normal`` or ``low``, as of :func:`vovnet.memory_efficient`, or ``plain``."""
    seed: int = 0
    deterministic: bool = False
    """Ask torch for deterministic kernels (slower on a GPU)."""


@dataclass
class LogRecipe:
    """When a run writes what; in iterations."""

    log_every: int = 20
    evaluate_every: int = 5000
    """Also evaluated at the end; 0 means only there."""
    checkpoint_every: int = 1000


@dataclass
class Recipe:
    """A whole training run."""

    model: ModelRecipe = field(default_factory=ModelRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    solver: SolverRecipe = field(default_factory=SolverRecipe)
    log: LogRecipe = field(default_factory=LogRecipe)
    init: str | None = None
    """A detector folder or Hub name to start from; heads whose shapes differ start anew and are listed."""
