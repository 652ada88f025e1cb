"""The facts in a model card, read from a folder and computed from the model that it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from torch import nn

from vovnet.checkpoints.places import is_torchvision, locate
from vovnet.detection.checkpoints.network_facts import read_facts
from vovnet.detection.checkpoints.torchvision_detectors import TorchvisionDetector
from vovnet.detection.checkpoints.torchvision_file import published_by_torchvision
from vovnet.detection.config.detectors import DETECTORS
from vovnet.detection.config.loading import load_recipe, recipe_names
from vovnet.detection.config.schema import Recipe
from vovnet.detection.models.flops import MASKS, PROPOSALS, classifier_gmacs, detector_gmacs, working_size
from vovnet.detection.zoo.published import COCO_CLASSES, PublishedRow, published_row
from vovnet.errors import InputError
from vovnet.files import CONFIG_FILE
from vovnet.hub.manifest import PublishedFile
from vovnet.hub.markdown import code, plain
from vovnet.hub.metrics import (
    UNNAMED,
    ClassMetrics,
    Metrics,
    kept_evaluation,
    metrics_by_class,
    published_classifier_metrics,
    published_metrics,
    run_metrics,
    torchvision_metrics,
)

RECIPE_FILE = "recipe.yaml"


@dataclass(frozen=True)
class CardFields:
    """The values that fill the template of a card."""

    title: str
    summary: str
    task: str
    """The Hub's pipeline tag."""
    library: str
    rows: Mapping[str, str]
    training: str
    citations: tuple[str, ...]
    """Keys of the papers of the network."""
    tags: tuple[str, ...]
    categories: tuple[str, ...] = ()
    metrics: tuple[Metrics, ...] = ()
    classes: tuple[ClassMetrics, ...] = ()
    """The metrics of each category, if they are known."""
    datasets: tuple[str, ...] = ()
    """The Hub's names of the training data, if known."""
    paper: str | None = None
    """BibTeX of the detector's paper."""
    base_model: str | None = None
    """The Hub repository that the training started from."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Facts about a timm model: ``architecture`` (name here), ``stored_architecture``, ``num_classes``, and ``ours``:
    True if only this package registers it."""


def detector_fields(
    folder: Path,
    detector: Any,
    source: PublishedFile | None,
    train_data: str | None = None,
    eval_data: str | None = None,
) -> CardFields:
    """Return the facts about a detector folder, from a conversion or from a training run with recipe and metrics.

    Args:
        folder: The detector's folder.
        detector: The detector that it holds.
        source: The file that it was converted from.
        train_data: The publisher's name for the data that the detector was trained on.
        eval_data: The publisher's name for the data that its metrics were measured on.
    """
    model, preprocessing = detector.recipe, detector.preprocessing
    row = published_row(source.name) if source else None
    torchvisions = published_by_torchvision(source.name, source.sha256) if source else None
    whole = len(detector.categories) == COCO_CLASSES
    published = row if row and source and source.file == row.file and whole else None
    run = load_recipe(folder / RECIPE_FILE) if source is None and (folder / RECIPE_FILE).is_file() else None
    kept = kept_evaluation(folder, run)
    height, width = working_size(detector)
    facts = DETECTORS[model.detector]
    name, task, found = facts.title, facts.task, facts.annotation
    counted = "" if facts.one_stage else f", {PROPOSALS:,} proposals" + (f" and {MASKS} {found}" if found else "")
    inclusive = ", both corners inside" if hasattr(detector, "boxes_to_xywh") else ""
    rows = {
        "detector": f"torchvision's `{facts.torchvision}` with a feature pyramid",
        "backbone": f"`{model.backbone}`",
        "conventions": f"{model.conventions} (of boxes, anchors and selection)",
        "parameters": f"{_parameters(detector):,}",
        "GMACs": f"{detector_gmacs(detector):.1f} for one {height}×{width} image{counted}",
        "input": "a list of RGB images (3, H, W) as floats in 0..1"
        if model.in_chans == 3
        else f"a list of images ({model.in_chans}, H, W) as floats in 0..1",
        "preprocessing": f"inside the detector: {_preprocessing(preprocessing)}",
        "output": f"boxes (x1, y1, x2, y2) in pixels{inclusive}, labels, scores" + (f", {found}" if found else ""),
    }
    return CardFields(
        title=f"{name}, {model.backbone}, {len(detector.categories)} categories",
        summary=f"A {name} detector over `{model.backbone}` with a feature pyramid, as an "
        "ordinary torchvision detector."
        + (f" Converted from the published file {code(source.file)}: {plain(source.title)}." if source else ""),
        task=task,
        library="vovnet",
        rows=rows,
        training=_torchvision_training(torchvisions)
        if torchvisions
        else _detector_training(source, published, run, train_data),
        citations=_network_family(model.backbone),
        paper=facts.citation,
        tags=tuple(sorted({"vovnet", "torchvision", "object-detection", task})),
        categories=tuple(str(category["name"]) for category in detector.categories),
        metrics=torchvision_metrics(torchvisions)
        if torchvisions
        else published_metrics(published)
        if published
        else run_metrics(run, kept, eval_data),
        classes=metrics_by_class(kept),
        datasets=("coco",) if published or torchvisions else (),
        base_model=_start_on_the_hub(run),
    )


def network_fields(
    config: Mapping[str, Any],
    model: Any,
    source: PublishedFile | None,
    architecture: str,
    train_data: str | None = None,
) -> CardFields:
    """Return the facts about a folder in timm's form.

    Args:
        config: The contents of ``config.json``.
        model: The timm model with its weights.
        source: The file that it was converted from.
        architecture: The network's name in this package; ``config.json`` may use plain timm's name.
        train_data: The publisher's name for the data that the network was trained on.
    """
    cfg = config.get("pretrained_cfg", {})
    classes = int(model.num_classes)
    size = tuple(cfg.get("input_size", (3, 224, 224)))
    images = read_facts(config, Path(CONFIG_FILE)).preprocessing
    rows = {
        "architecture": f"`{architecture}`"
        + (f", stored as timm's `{config['architecture']}`" if config["architecture"] != architecture else ""),
        "parameters": f"{_parameters(model):,}",
        "GMACs": f"{classifier_gmacs(model):.2f} at {size[1]}×{size[2]}",
        "classes": str(classes) if classes else "none: a backbone without a classifier",
        "input": f"{size[0]}×{size[1]}×{size[2]}, crop {plain(cfg.get('crop_pct', 0.875))}, "
        f"{plain(cfg.get('interpolation'))}" + (f", {images.images}" if images else ""),
        "mean, deviation": f"{_numbers(cfg.get('mean'))}; {_numbers(cfg.get('std'))}",
    }
    notes = cfg.get("notes") or []
    known = published_classifier_metrics(architecture, source, cfg, classes)
    return CardFields(
        title=f"{architecture}, {f'{classes} classes' if classes else 'backbone'}",
        summary=f"The network `{architecture}` as an ordinary timm model."
        + (f" Converted from the published file {code(source.file)}: {plain(source.title)}." if source else "")
        + "".join(f"\n\nNote: {plain(note)}." for note in notes),
        task="image-classification" if classes else "image-feature-extraction",
        library="timm",
        rows=rows,
        training=(
            "By its publisher, on ImageNet-1k."
            if known
            else "The file does not say how it was trained."
            if source
            else _said_training(train_data)
        ),
        citations=_network_family(architecture),
        tags=("timm", "vovnet", "image-classification" if classes else "feature-extraction"),
        metrics=known,
        datasets=("imagenet-1k",) if known else (),
        details={
            "architecture": architecture,
            "stored_architecture": config["architecture"],
            "num_classes": classes,
            "ours": timm.model_entrypoint(architecture).__module__.startswith("vovnet."),
        },
    )


def _start_on_the_hub(run: Recipe | None) -> str | None:
    """Return the Hub repository that a training started from; None for a local path, which must not be published."""
    if run is None or not run.init:
        return None
    try:
        place = locate(run.init)
    except InputError:  # a folder that is not there any more
        return None
    return place.partition("@")[0] if isinstance(place, str) else None


def _public_start(run: Recipe) -> str | None:
    """Return the name of the published weights that a training started from; None for a local path."""
    return run.init if is_torchvision(run.init) else _start_on_the_hub(run)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _network_family(name: str) -> tuple[str, ...]:
    """Return the keys of the papers about a network; none for one whose paper this package does not know."""
    families = {"ese_vovnet": "ese", "eca_vovnet": "vovnet", "vovnet": "vovnet", "resnet": "resnet"}
    return tuple(key for family, key in families.items() if name.startswith(family))


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:.7g}" for value in values or ())


def _preprocessing(values: Mapping[str, Any]) -> str:
    low, high = values["range"]
    return (
        f"short side to {values['min_size']}, long side at most {values['max_size']}, {values['channel_order']} in "
        f"{low:g}..{high:g}, less ({_numbers(values['mean'])}), over ({_numbers(values['std'])})"
    )


def _detector_training(
    source: PublishedFile | None, published: PublishedRow | None, run: Recipe | None, train_data: str | None
) -> str:
    if run is not None:
        public = _public_start(run)
        begin = (
            f"the weights {code(public)}"
            if public
            else "other weights (`init`)"
            if run.init
            else "an ImageNet backbone"
            if run.model.pretrained
            else "random weights"
        )
        data = plain(train_data) if train_data else UNNAMED
        return f"By `vovnet train` on {data}: {_schedule(run)}; from {begin}."
    if source is None:
        return _said_training(train_data)
    if source.name not in recipe_names():
        return "The file does not say how it was trained."
    recipe = _schedule(load_recipe(source.name))
    if published:
        return f"By its authors, on COCO 2014: {recipe}. The recipe is `{source.name}`."
    return f"The file does not say how it was trained. The recipe of this structure, `{source.name}`: {recipe}."


def _torchvision_training(source: TorchvisionDetector) -> str:
    return f"By torchvision, on COCO train2017: {source.weights.meta['recipe']}"


def _said_training(train_data: str | None) -> str:
    if train_data:
        return f"On {plain(train_data)}. Its publisher has not described more of the training here."
    return "Its publisher has not described the training here."


def _schedule(recipe: Recipe) -> str:
    solver = recipe.solver
    steps = ", ".join(f"{step:,}" for step in solver.steps)
    drops = f" × {solver.gamma:g} at {steps}" if solver.schedule == "steps" else ""
    return (
        f"{solver.max_iterations:,} iterations of {solver.batch_size} images, {_optimizer(solver.optimizer)}, "
        f"learning rate {solver.base_lr:g} ({solver.schedule}{drops}), weight decay {solver.weight_decay:g}"
    )


def _optimizer(name: str) -> str:
    return "SGD" if name == "sgd" else f"timm's {name}"
