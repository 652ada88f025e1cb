"""Recipes: everything that decides a training run, as typed data.

A recipe is a YAML file read into the dataclasses below with OmegaConf. Unknown keys, wrong types and missing values are
errors that name the key, and ``${…}`` is refused: recipes are data, and an interpolated environment variable would end
in a published file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from vovnet.detection.recipe_checks import check_recipe
from vovnet.errors import InputError, reason

if TYPE_CHECKING:
    from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")


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
    """Per channel for pictures in [0, 1]; None takes the backbone's."""
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
    """What is trained and evaluated on, and how pictures are varied."""

    train: list[DataSource] = field(default_factory=list)
    val: list[DataSource] = field(default_factory=list)
    keep_empty: bool = True
    """Keep training images without objects."""
    train_min_sizes: list[int] = field(default_factory=lambda: [800])
    """Short sides in pixels; one is drawn for each picture."""
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


def model_from_dict(values: Mapping[str, Any], where: str) -> ModelRecipe:
    """Read the model part of a recipe from plain data.

    Args:
        values: keys and values of :class:`ModelRecipe`; missing ones take their defaults.
        where: what the values come from, for messages.

    Raises:
        InputError: an unknown key, a wrong type, or an interpolation; the message names the key.
    """
    return _merge(ModelRecipe, [(where, values)])


def recipe_names() -> list[str]:
    """Names of the recipes that the package ships."""
    folder = resources.files("vovnet.detection.recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by its name in the package or from a YAML file, then apply overrides.

    Args:
        name_or_path: one of :func:`recipe_names`, or a path that ends in ``.yaml`` or ``.yml``.
        overrides: ``key=value`` texts such as ``solver.base_lr=0.01``; the value is YAML, and a list replaces the
            whole list (``data.val=[{images: a, annotations: c.json}]``).

    Raises:
        InputError: no such recipe, text that is not YAML, an unknown key, a wrong type, a missing value, ``${…}``.
    """
    path = _find(name_or_path)
    layers: list[tuple[str, Mapping[str, Any]]] = [(str(name_or_path), _read_yaml(path))]
    layers += [(f"override '{text}'", _read_override(text)) for text in overrides]
    recipe = _merge(Recipe, layers)
    check_recipe(recipe)
    return recipe


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data: what is stored in checkpoints and compared on resumption."""
    return dataclasses.asdict(recipe)


def recipe_from_dict(values: Mapping[str, Any], where: str) -> Recipe:
    """The inverse of :func:`recipe_to_dict`, with the same errors as :func:`load_recipe`."""
    recipe = _merge(Recipe, [(where, values)])
    check_recipe(recipe)
    return recipe


def recipe_to_yaml(recipe: Recipe) -> str:
    """The recipe as YAML text that :func:`load_recipe` reads back to an equal recipe."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(recipe_to_dict(recipe)))


def _find(name_or_path: str | Path) -> Path:
    import difflib

    text = str(name_or_path)
    if text.endswith((".yaml", ".yml")):
        path = Path(text)
        if not path.is_file():
            raise InputError(
                f"recipe: there is no file '{path}'; expected a YAML file or one of {', '.join(recipe_names())}"
            )
        return path
    names = recipe_names()
    if text not in names:
        near = difflib.get_close_matches(text, names, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise InputError(
            f"recipe: '{text}' is unknown; {hint}expected one of {', '.join(names)}, or a path that ends in .yaml"
        )
    return Path(str(resources.files("vovnet.detection.recipes") / f"{text}.yaml"))


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"recipe '{path}': cannot be read as UTF-8 text ({error})") from error
    return _parse(text, f"recipe '{path}'")


def _parse(text: str, where: str) -> Mapping[str, Any]:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    values: Any
    try:
        values = OmegaConf.to_container(OmegaConf.create(text), resolve=False) if text.strip() else {}
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise InputError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(f"{where}: expected a mapping of keys to values such as 'solver: {{base_lr: 0.01}}'")
    return values


def _read_override(text: str) -> Mapping[str, Any]:
    key, equals, value = text.partition("=")
    parts = key.split(".")
    if not equals or not all(part.isidentifier() for part in parts):
        raise InputError(f"override '{text}': expected key=value such as solver.base_lr=0.01")
    import yaml

    _refuse_interpolation(value, f"override '{text}'")
    parsed: Any
    try:
        parsed = _parse(f"value: {value}", f"override '{text}'")["value"] if value.strip() else None
    except (InputError, KeyError, yaml.YAMLError) as error:
        raise InputError(
            f"override '{text}': the value is not valid YAML; quote text with special characters"
        ) from error
    for part in reversed(parts):
        parsed = {part: parsed}
    return parsed


def _refuse_interpolation(values: Any, where: str, key: str = "") -> None:
    if isinstance(values, Mapping):
        for name, value in values.items():
            _refuse_interpolation(value, where, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list):
        for value in values:
            _refuse_interpolation(value, where, key)
    elif isinstance(values, str) and "${" in values:
        raise InputError(f"{where}: {key or 'value'}: '${{…}}' is not allowed in a recipe; write the value itself")
    elif values == "???":
        raise InputError(f"{where}: {key}: the value is missing ('???')")


def _merge(schema: type[T], layers: Sequence[tuple[str, Mapping[str, Any]]]) -> T:
    """Layer plain values over a dataclass's defaults; every error names where it came from and the key."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged = OmegaConf.structured(schema)
    sections = [entry.name for entry in dataclasses.fields(schema) if dataclasses.is_dataclass(entry.default_factory)]  # type: ignore[arg-type]
    for where, values in layers:
        _refuse_interpolation(values, where)
        for name in sections:
            if not isinstance(values.get(name, {}), Mapping):
                raise InputError(f"{where}: {name}: expected keys and values, got {values[name]!r}")
        try:
            merged = OmegaConf.merge(merged, OmegaConf.create(dict(values)))
        except OmegaConfBaseException as error:
            raise InputError(f"{where}: {_explain(error)}") from error
    try:
        return cast(T, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise InputError(f"{layers[-1][0]}: missing key '{getattr(error, 'full_key', None)}'") from error


def _explain(error: OmegaConfBaseException) -> str:
    """One line for what OmegaConf says: the full key first, and for an unknown key those that would have worked."""
    import difflib

    key = error.full_key or error.key
    if type(error).__name__ == "ConfigKeyError" and dataclasses.is_dataclass(error.object_type):
        known = sorted(entry.name for entry in dataclasses.fields(error.object_type))
        near = difflib.get_close_matches(str(error.key), known, n=1, cutoff=0.5)
        return f"unknown key '{key}'; " + (
            f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(known)}"
        )
    return f"{key}: {reason(error)}" if key else reason(error)
