"""The keys of a recipe's ``solver``: length, optimizer, learning rate and loss of a training."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from vovnet.detection.config.fields import (
    MAX_ITERATIONS,
    Arguments,
    BatchSize,
    Flag,
    Integer,
    Iteration,
    Number,
    Positive,
    Text,
)
from vovnet.detection.config.parts import recipe_part

_Step = Annotated[Number, Field(ge=0, le=2**53), AfterValidator(lambda step: int(step) if step.is_integer() else step)]


def _steps_of_1x() -> list[float]:
    return [60000, 80000]


@recipe_part("solver")
class SolverRecipe:
    """The optimizer and its schedule, counted in iterations (one optimizer step each) or in epochs."""

    optimizer: Text = "sgd"
    """An optimizer of timm by its name there: ``sgd``, ``adamw``, ``lamb``, ``muon``, … (docs/how-to/training.md). It
    sees gradients alone; those that need more are refused."""
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
    max_iterations: Integer = Field(default=90000, ge=1, le=MAX_ITERATIONS)
    """Length of the training, in iterations."""
    epochs: Annotated[Number, Field(gt=0, le=100_000)] | None = None
    """Length of the training in epochs, in place of ``max_iterations``; ``steps`` are epochs, too. ``recipe.yaml`` has
    them as iterations."""
    patience: Annotated[Integer, Field(ge=1, le=MAX_ITERATIONS)] | None = None
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
    warmup_iterations: Iteration = 500
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
    class_weights: Annotated[dict[Text, Positive], Field(max_length=20_000)] | None = None
    """Weights of categories in this loss, by name, such as ``{Platelets: 2}``; those of others and of the background
    are 1."""
    channels_last: Flag = True
    """Use the channels-last memory layout."""
    memory: Literal["plain", "normal", "low"] = "normal"
    """How much memory a backbone with OSA blocks needs for the backward pass: ``plain`` as much as PyTorch, ``normal``
    and ``low`` less (docs/explanation/memory.md), with the same results up to rounding."""
    compile: Flag = False
    """Compile the timm network for training by ``torch.compile``, as one graph for images of any size. A run prints
    what that gave."""
    seed: Integer = Field(default=0, ge=0, le=2**63 - 1)
    """Seed of all random numbers."""
    deterministic: Flag = False
    """Ask PyTorch for deterministic kernels (slower on a GPU)."""
