"""Classify images with any timm model, with the preprocessing and class names of the model."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors import SafetensorError
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_data_config
from torch import Tensor, nn

from vovnet.checkpoints.places import is_path, model_folder, torchvision_hint
from vovnet.checkpoints.timm_folder import load_timm_folder
from vovnet.errors import InputError, did_you_mean
from vovnet.files import CONFIG_FILE, MODEL_FILES, read_json
from vovnet.folders.home import expand_home
from vovnet.images.reading import convert_image, read_image
from vovnet.results.classes import ClassScore, best_classes, classified_files

_BATCH = 32  # images per forward pass, so that memory does not grow with the number of images


def load_classifier(name_or_folder: str | Path) -> nn.Module:
    """Return a timm model with its weights, in evaluation mode.

    Args:
        name_or_folder: A timm name ('vovnet39', 'resnet50.a1_in1k'), 'timm/…' or another Hub repository, 'hf-hub:…',
            'local-dir:…', or a folder with timm's ``config.json`` and ``model.safetensors``.

    Raises:
        InputError: The model or folder does not exist or has no weights, or the weights cannot be downloaded or loaded.
    """
    name, folder = _resolve(name_or_folder)
    try:
        model = load_timm_folder(folder) if folder else timm.create_model(name, pretrained=True)
    except InputError:
        raise
    # timm and the Hub raise these if a download fails, a file is damaged, or keys and shapes differ.
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AssertionError, SafetensorError) as error:
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"cannot load the classifier {str(name_or_folder)!r}: {cause}") from error
    if not getattr(model, "num_classes", 0):
        raise InputError(f"{str(name_or_folder)!r} has no classifier (num_classes is 0): give a model that has one")
    return model.eval()


def classify(
    model: nn.Module, images: Sequence[Image.Image], top: int = 5, class_names: Sequence[str] | None = None
) -> list[list[ClassScore]]:
    """Return the most probable classes of each image, the most probable first.

    Args:
        model: A timm classifier. It is put in evaluation mode. Size, crop, mean and std come from its
            ``pretrained_cfg``. A model with one input channel gets grey images.
        images: PIL images of any size and mode. They are turned upright and converted as
            :func:`vovnet.images.reading.read_image` does it with files.
        top: The number of classes to return, at most the number of classes of the model.
        class_names: A name for each class. The default is the model's ``label_names``, or ImageNet's names if the
            number of classes is ImageNet's, or the index as text.

    Raises:
        InputError: ``top`` or the number of names is wrong, or an entry is not a PIL image.
    """
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise InputError(f"top={top!r}: expected an integer of at least 1")
    for i, image in enumerate(images):
        if not isinstance(image, Image.Image):
            raise InputError(f"images[{i}] is a {type(image).__name__}: expected a PIL image")
    names = class_labels(model) if class_names is None else list(class_names)
    classes: int = model.num_classes  # type: ignore[assignment]  # timm's, an int
    if len(names) != classes:
        raise InputError(f"class_names has {len(names)} names and the model has {classes} classes: give one for each")
    model.eval()
    results: list[list[ClassScore]] = []
    for start in range(0, len(images), _BATCH):
        named = [(f"images[{i}]", image) for i, image in enumerate(images[start : start + _BATCH], start)]
        results += [best_classes(row, names, top) for row in _probabilities(model, named).numpy()]
    return results


def is_classifier(weights: str) -> bool:
    """Return True for a timm name, and for a folder or Hub repository with timm's ``config.json``.

    Raises:
        InputError: There is no such folder or timm model, or the repository's configuration cannot be fetched.
    """
    if _is_timm_name(weights):
        return True
    folder = model_folder(weights, [CONFIG_FILE])
    return (folder / CONFIG_FILE).is_file() and "architecture" in read_json(folder / CONFIG_FILE)


def classify_files(
    model: nn.Module, paths: Sequence[Path], *, max_pixels: int | None = None
) -> Iterator[tuple[Path, list[ClassScore]]]:
    """Yield the five likeliest classes of each image file.

    Args:
        model: A timm classifier, as in :func:`classify`.
        paths: The files.
        max_pixels: Images with more pixels are refused. None is Pillow's limit.

    Raises:
        InputError: Some files cannot be read. It is raised after the others, and names them all.
    """
    channels: int = getattr(model, "pretrained_cfg")["input_size"][0]  # noqa: B009 (timm's, not a module's)

    def likeliest(path: Path) -> list[ClassScore]:
        return classify(model, [read_image(path, channels, max_pixels=max_pixels)])[0]

    return classified_files(paths, likeliest)


def class_labels(model: nn.Module) -> list[str]:
    """Return a name for each class of the model."""
    cfg: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    classes: int = model.num_classes  # type: ignore[assignment]
    names = cfg.get("label_names")
    if names and len(names) == classes:
        descriptions = cfg.get("label_descriptions") or {}
        return [str(descriptions.get(name, name)) for name in names]
    subset = infer_imagenet_subset({"num_classes": classes})
    if subset is not None:
        return list(ImageNetInfo(subset).label_descriptions())
    return [str(i) for i in range(classes)]


def evaluation_config(model: nn.Module) -> dict[str, Any]:
    """Return the size, crop, mean and std of the images that a model takes, as timm's ``create_transform`` takes them.

    Raises:
        InputError: The model takes neither grey nor RGB images.
    """
    config: dict[str, Any] = resolve_data_config(model=model)
    channels: Any = getattr(model, "in_chans", config["input_size"][0])
    if channels not in (1, 3):
        raise InputError(f"the model takes {channels} channels and images have 1 or 3: use a model made for images")
    if channels != len(config["mean"]):  # the model was created with another number of channels than its pretrained_cfg
        config["mean"] = (sum(config["mean"]) / len(config["mean"]),) * channels
        config["std"] = (sum(config["std"]) / len(config["std"]),) * channels
    config["input_size"] = (channels, *config["input_size"][1:])
    return config


@torch.inference_mode()
def _probabilities(model: nn.Module, images: Sequence[tuple[str, Image.Image]]) -> Tensor:
    """Return probabilities, float32 (N, num_classes), on the CPU. Each image has a name for messages."""
    config = evaluation_config(model)
    channels = config["input_size"][0]
    transform: Any = create_transform(**config, is_training=False)
    parameter = next(model.parameters())
    batch = torch.stack([transform(convert_image(image, channels, name)) for name, image in images])
    logits: Tensor = model(batch.to(device=parameter.device, dtype=parameter.dtype))
    return logits.float().softmax(dim=1).cpu()


def _resolve(given: str | Path) -> tuple[str, Path | None]:
    """Return the timm name and, if the model is in a folder or on the Hub, the folder. Refuse what cannot be loaded."""
    if isinstance(given, Path) or not _is_timm_name(given):
        return str(given), model_folder(given, MODEL_FILES)
    architecture, _, tag = given.partition(".")
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
    if not tags:
        raise InputError(f"{given!r} has no published weights: give a folder with config.json and model.safetensors")
    if tag and tag not in tags:
        raise InputError(f"{architecture!r} has no weights called {tag!r}: expected one of {', '.join(tags)}")
    return given, None


def _is_timm_name(given: str) -> bool:
    """Return True for the name of a timm model, False for what has to be a folder or Hub repository.

    Raises:
        InputError: It looks like a name, but there is neither a folder nor a model of that name.
    """
    if ":" in given or "/" in given or not given or is_path(given) or os.path.lexists(expand_home(given)):
        return False
    architecture = given.partition(".")[0]
    if not timm.is_model(architecture):
        hint = torchvision_hint(given) or did_you_mean(
            architecture, timm.list_models(), "timm.list_models() returns the names", most=3
        )
        raise InputError(f"no timm model and no folder is called {given!r}: {hint}")
    return True
