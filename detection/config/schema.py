"""The keys of a recipe: everything that decides a training run, as typed data with bounds.

The fields are the only place that names a key, its type, its default and its bounds. The tables of docs/training.md and
the JSON Schema for editors are generated from them (tests/helpers/recipe_reference.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic reads typing's from Python 3.12 on

from vovnet.adapters.fpn import ExtraLevel
from vovnet.adapters.norms import FpnNorm, Norm
from vovnet.detection.config.detectors import DetectorName
from vovnet.detection.config.fields import AUTO as AUTO
from vovnet.detection.config.fields import Arguments, BatchSize, Flag, Integer, Number, PathText, Text, recipe_part
from vovnet.detection.config.sources import DataSource as DataSource
from vovnet.detection.config.sources import PathOrSource

ConventionName = Literal["torchvision", "legacy"]


_Edge = Annotated[list[Annotated[Integer, Field(ge=1, le=1024)]], Field(min_length=2, max_length=2)]


@with_config(ConfigDict(extra="forbid"))
class Category(TypedDict):
    """A category of a detector or of a dataset, as in COCO JSON.

    ``keypoints`` are the names of its keypoints, and ``skeleton`` has pairs of their positions, from 1.
    """

    id: Annotated[Integer, Field(ge=-(2**63), le=2**63 - 1)]
    name: Text
    keypoints: NotRequired[Annotated[list[Text], Field(min_length=1, max_length=1024)]]
    skeleton: NotRequired[Annotated[list[_Edge], Field(max_length=65_536)]]


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


_MAX_PIXELS = 20_000
_MAX_CHANNELS = 4096
_MAX_PROPOSALS = 100_000
_MAX_SAMPLES = 10**9  # limits of a random choice, which cost nothing
_MAX_ITERATIONS = 2**63 - 1

_Pixels = Annotated[Integer, Field(ge=1, le=_MAX_PIXELS)]
_Iteration = Annotated[Integer, Field(ge=0, le=_MAX_ITERATIONS)]
_Step = Annotated[Number, Field(ge=0, le=2**53), AfterValidator(lambda step: int(step) if step.is_integer() else step)]
_Level = Annotated[Number, Field(ge=-100_000, le=100_000)]
_AnchorSize = Annotated[Integer, Field(ge=1, le=100_000)]
_Positive = Annotated[Number, Field(gt=0, le=100_000)]
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
    (docs/reproduce.md)."""
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
    min_size: _Pixels = 800
    """Short side of the resized image at test time, in pixels."""
    max_size: _Pixels = 1333
    """Upper limit of its long side, in pixels."""
    image_mean: Annotated[list[_Level], Field(max_length=1024)] | None = None
    """Mean of each channel, for images in [0, 1]; null takes the backbone's. With ``legacy`` it is for BGR in 0..255,
    and null takes the published mean."""
    image_std: Annotated[list[_Positive], Field(max_length=1024)] | None = None
    """Standard deviation of each channel, in the same units."""
    anchor_sizes: Annotated[list[Annotated[list[_AnchorSize], Field(max_length=64)]], Field(max_length=64)] | None = (
        None
    )
    """Anchor sizes in pixels, a list for each level. null gives level i the size 32 × 2^i, for ``retinanet`` also
    2^(1/3) and 2^(2/3) times it, and for ``fcos`` the level's stride, which is the unit of its boxes."""
    aspect_ratios: list[_Positive] = Field(default_factory=lambda: [0.5, 1.0, 2.0], min_length=1, max_length=64)
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


@recipe_part("data")
class DataRecipe:
    """The data for training and evaluation, and how images are varied."""

    train: list[PathOrSource] = field(default_factory=list)
    """Training data: a list of ``{images: FOLDER, annotations: FILE.json}``, of ``{yolo: data.yaml}``, of
    ``{voc: FOLDER}`` or of folders whose format is found out (docs/data.md)."""
    val: list[PathOrSource] = field(default_factory=list)
    """Validation data in the same form. Without any, nothing is evaluated and the last weights are published."""
    keep_empty: Flag = True
    """Keep training images without objects."""
    min_keypoints: Integer = Field(default=0, ge=0, le=1_000_000)
    """For detectors of keypoints: leave out training images with fewer labelled keypoints. torchvision's references
    have 10 for COCO."""
    train_min_sizes: list[_Pixels] = Field(default_factory=lambda: [800], min_length=1, max_length=1024)
    """Short sides in pixels; one is drawn for each image."""
    train_max_size: _Pixels = 1333
    """Upper limit of the long side, in pixels."""
    flip: Number = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    vertical_flip: Number = Field(default=0.0, ge=0, le=1)
    """Probability of a vertical flip."""
    scale_jitter: Annotated[list[_Positive], Field(min_length=2, max_length=2)] | None = None
    """``[low, high]`` for large-scale jitter (arXiv:2012.07177): a random scale, then a crop to ``train_max_size``.
    It replaces ``train_min_sizes``."""
    colour: Number = Field(default=0.0, ge=0, le=1)
    """Strength of brightness, contrast, saturation and hue jitter, from 0 to 1."""
    mosaic: Number = Field(default=0.0, ge=0, le=1)
    """Probability that an image becomes a mosaic of itself and three others (arXiv:2004.10934), after the transforms
    above."""
    mosaic_off: Number = Field(default=0.15, ge=0, le=1)
    """Last part of the training, as a fraction, that has no mosaics (arXiv:2107.08430)."""
    copy_paste: Number = Field(default=0.0, ge=0, le=1)
    """Probability that objects of another image are pasted into an image by their masks, each with probability 0.5
    (arXiv:2012.07177). It needs masks."""
    repeat_threshold: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Fraction of the images below which a category is rare. Images with rare categories come more often in an epoch,
    sqrt(threshold / fraction) times on average (repeat-factor sampling, arXiv:1908.03195). null takes each once."""
    aspect_ratio_groups: Flag = True
    """Fill each batch with only wide or only high images."""
    workers: Integer = Field(default=2, ge=0, le=1024)
    """Data loader processes of each training process."""
    timeout: Number = Field(default=600.0, ge=0, le=31_536_000)
    """Seconds to wait for a batch from the loader processes, and for the other processes of a run; after that the run
    ends with an error. 0 waits forever."""
    max_pixels: Annotated[Integer, Field(ge=1, le=2**62)] | None = None
    """Images with more pixels (width × height) are not read. null is Pillow's limit of 178,956,970, which protects from
    files that fill the memory."""


def _steps_of_1x() -> list[float]:
    return [60000, 80000]


@recipe_part("solver")
class SolverRecipe:
    """The optimizer and its schedule, counted in iterations (one optimizer step each) or in epochs."""

    optimizer: Text = "sgd"
    """An optimizer of timm by its name there: ``sgd``, ``adamw``, ``lamb``, ``muon``, … (docs/training.md). It sees
    gradients alone; those that need more are refused."""
    optimizer_args: Arguments = field(default_factory=dict)
    """More arguments of the optimizer, such as ``{betas: [0.9, 0.95]}``."""
    base_lr: Number = Field(default=0.02, ge=0)
    """Learning rate for ``reference_batch_size`` images an iteration; it is scaled linearly to ``batch_size``."""
    reference_batch_size: Integer = Field(default=16, ge=1, le=1_000_000)
    """Images an iteration that ``base_lr`` is for."""
    batch_size: BatchSize = 16
    """Images an iteration, over all processes and accumulation steps. ``auto`` takes ``reference_batch_size`` and finds
    the ``accumulate`` that the memory needs; ``recipe.yaml`` has the answer."""
    accumulate: Integer = Field(default=1, ge=1, le=1_000_000)
    """Forward-backward passes an iteration."""
    max_iterations: Integer = Field(default=90000, ge=1, le=_MAX_ITERATIONS)
    """Length of the training, in iterations."""
    epochs: Annotated[Number, Field(gt=0, le=100_000)] | None = None
    """Length of the training in epochs, in place of ``max_iterations``; ``steps`` are epochs, too. ``recipe.yaml`` has
    them as iterations."""
    patience: Annotated[Integer, Field(ge=1, le=_MAX_ITERATIONS)] | None = None
    """Evaluations without a better AP after which the run ends; null never ends it early."""
    min_delta: Number = Field(default=0.0, ge=0, le=1)
    """With ``patience``: how much higher a better AP is, such as 0.001."""
    schedule: Literal["steps", "cosine"] = "steps"
    """How the learning rate falls: by ``gamma`` at each of ``steps``, or along a cosine to 0."""
    steps: list[_Step] = Field(default_factory=_steps_of_1x, max_length=1024)
    """Iterations at which the learning rate is multiplied by ``gamma``. Below 1 they are fractions of the length, and
    with ``epochs`` the others are epochs."""
    gamma: Number = Field(default=0.1, ge=0)
    """Factor at each of ``steps``."""
    warmup_iterations: _Iteration = 500
    """Iterations over which the learning rate rises linearly at the start."""
    warmup_factor: Number = Field(default=0.001, ge=0, le=1)
    """Fraction of the learning rate at which the warm-up starts."""
    backbone_lr_factor: Number = Field(default=1.0, ge=0, le=1000)
    """Factor of the learning rate for the timm network; pyramid and heads have none."""
    layer_decay: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Factor of the learning rate from each layer of the timm network to the one before, counted from the heads, by
    the model's ``group_matcher``; null has none."""
    momentum: Number = Field(default=0.9, ge=0, le=1)
    """Momentum, of optimizers that have one."""
    nesterov: Flag = False
    """Use Nesterov momentum, with ``sgd``."""
    weight_decay: Number = Field(default=0.0001, ge=0)
    """Weight decay."""
    norm_weight_decay: Annotated[Number, Field(ge=0)] | None = None
    """Weight decay of norms; null uses ``weight_decay`` with ``sgd`` and 0 with others, as timm does."""
    bias_lr_factor: Number = Field(default=1.0, ge=0)
    """Factor of the learning rate for biases."""
    bias_weight_decay: Annotated[Number, Field(ge=0)] | None = None
    """Weight decay of biases; null as for norms. Tables of positions and other vectors have none with others than
    ``sgd``."""
    clip_grad_norm: Annotated[Number, Field(gt=0)] | None = None
    """Upper limit of the gradient's norm; null does not clip."""
    amp: Literal["none", "auto", "bf16", "fp16"] = "none"
    """Autocast; ``auto`` is ``bf16`` if the device computes with it, else ``none``."""
    ema: Annotated[Number, Field(ge=0, le=1)] | None = None
    """Decay of an exponential moving average of the weights, such as 0.999. After ``n`` iterations it is at most
    (1 + n) / (10 + n). The average is evaluated and published instead of the weights."""
    box_loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    """Classification loss of the box head; ``focal`` gives boxes that are right already little weight
    (arXiv:1708.02002, with softmax)."""
    focal_gamma: Number = Field(default=2.0, ge=0, le=100)
    """With ``focal``: the higher, the less weight."""
    focal_alpha: Annotated[Number, Field(gt=0, lt=1)] | None = None
    """With ``focal``: weight of objects; that of the background is 1 - alpha. null gives both the weight 1."""
    class_weights: Annotated[dict[Text, _Positive], Field(max_length=20_000)] | None = None
    """Weights of categories in this loss, by name, such as ``{Platelets: 2}``; those of others and of the background
    are 1."""
    channels_last: Flag = True
    """Use the channels-last memory layout."""
    memory: Literal["plain", "normal", "low"] = "normal"
    """How much memory a backbone with OSA blocks needs for the backward pass: ``plain`` as much as PyTorch, ``normal``
    and ``low`` less (docs/operators.md), with the same results up to rounding."""
    compile: Flag = False
    """Compile the timm network for training by ``torch.compile``, as one graph for images of any size. A run prints
    what that gave."""
    seed: Integer = Field(default=0, ge=0, le=2**63 - 1)
    """Seed of all random numbers."""
    deterministic: Flag = False
    """Ask PyTorch for deterministic kernels (slower on a GPU)."""


@recipe_part("log")
class LogRecipe:
    """When a run writes what."""

    log_every: Integer = Field(default=20, ge=1, le=_MAX_ITERATIONS)
    """Iterations between two lines of losses."""
    evaluate_every: _Iteration = 5000
    """Iterations between two evaluations. There is always one at the end; 0 means only that one."""
    evaluate_epochs: Annotated[Number, Field(gt=0, le=100_000)] | None = None
    """The same in epochs, in place of ``evaluate_every``; ``recipe.yaml`` has it as iterations."""
    validation_losses: Flag = False
    """Compute the losses on the validation data at each evaluation, too: ``val_loss`` and its parts."""
    checkpoint_every: Integer = Field(default=1000, ge=1, le=_MAX_ITERATIONS)
    """Iterations between two writes of ``last.pt``."""
    checkpoint_minutes: Number = Field(default=5.0, ge=0, le=1e6)
    """Minutes after which ``last.pt`` is written even so; 0 writes it by ``checkpoint_every`` alone."""
    loggers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] | None = None
    """Programs that get the numbers as well, such as ``[tensorboard, wandb]``; null is TensorBoard if it is installed,
    and ``[]`` is none."""


@recipe_part("")
class Recipe:
    """A whole training run."""

    model: ModelRecipe = field(default_factory=ModelRecipe)
    """The detector."""
    data: DataRecipe = field(default_factory=DataRecipe)
    """The data for training and evaluation."""
    solver: SolverRecipe = field(default_factory=SolverRecipe)
    """Length, learning rate and optimizer."""
    log: LogRecipe = field(default_factory=LogRecipe)
    """When a run writes what."""
    init: PathText | None = None
    """Weights to start from: a detector's folder or Hub name, or ``torchvision:NAME``, whose network the recipe then
    takes; predictors for another number of classes start anew and are listed. Or a backbone's folder in timm's form, as
    ``vovnet convert`` writes it (docs/reproduce.md), where everything but the backbone starts anew."""
