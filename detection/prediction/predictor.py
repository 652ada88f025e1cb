"""Prediction: images in, detections in COCO's terms out, drawn and written to files."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from vovnet.detection.data.images import read_image, to_tensor
from vovnet.detection.evaluation.evaluator import check_shape, inference, to_input
from vovnet.detection.evaluation.results import box_form, image_detections
from vovnet.detection.prediction.drawing import draw_detections
from vovnet.errors import InputError
from vovnet.files import atomic_path, write_text

__all__ = ["draw_detections", "predict", "predict_files"]

ImageLike = str | os.PathLike[str] | Image.Image | Tensor | np.ndarray[Any, Any]


def predict(
    detector: nn.Module, images: Iterable[ImageLike], *, device: str | torch.device | None = None
) -> list[list[dict[str, Any]]]:
    """Detect objects in images, one image at a time.

    Args:
        detector: a torchvision detector; with ``categories``, as :func:`vovnet.hub.load_detector` gives it, results
            carry their ids and names, else labels stand for both.
        images: paths; Pillow images; arrays (H, W, 3) or (H, W); tensors (C, H, W) with the detector's channels.
            Arrays and tensors are uint8, or float in [0, 1]. Files and Pillow images are turned upright as their EXIF
            data says, and boxes belong to the upright image.
        device: where to run; None is where the detector is. The detector comes back where and as it was.

    Returns:
        For each image all that the detector returns, best first: ``{"bbox": [x, y, width, height] in pixels,
        "score", "category_id", "category"}`` and, from a detector with masks, ``"segmentation"`` (COCO's RLE with text
        counts).

    Raises:
        InputError: an image that cannot be read or has the wrong shape, type or range; the message says which.
    """
    if isinstance(images, str | os.PathLike | Image.Image) or getattr(images, "ndim", 4) < 4:
        raise InputError("images: expected a list of images, got one image; write [image]")
    found = []
    with inference(detector, device) as place:
        for position, image in enumerate(images):
            name = str(image) if isinstance(image, str | os.PathLike) else f"image {position}"
            found.append(_detect(detector, _as_tensor(image, detector, name), place, name))
    return found


def predict_files(
    detector: nn.Module,
    paths: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    threshold: float = 0.5,
    *,
    device: str | torch.device | None = None,
    report: Callable[[str], object] = print,
) -> list[Path]:
    """Detect objects in image files; write ``STEM.png`` (drawn) and ``STEM.json`` (every detection) for each.

    Args:
        detector: as for :func:`predict`.
        paths: image files. Later ones with a stem that was there before get ``STEM-2``, ``STEM-3`` and so on.
        output: the folder for both files; created if need be.
        threshold: scores below it are left out of the drawing, and only there.
        device: as for :func:`predict`.
        report: called with one line for each image that is done.

    Returns:
        The JSON files in the order of ``paths``.

    Raises:
        InputError: after all others are done, if some images could not be read; before anything is written, if there
            are no images, ``threshold`` is not in 0..1, or a drawing would take the place of an image.
        OSError: the output cannot be written.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold: expected a number from 0 to 1, got {threshold}")
    sources = [Path(path) for path in paths]
    if not sources:
        raise InputError("images: no images were given")
    folder = Path(output)
    names = distinct_stems(sources)
    _refuse_overwriting(sources, [folder / f"{name}.{suffix}" for name in names for suffix in ("png", "json")])
    written: list[Path] = []
    failed: list[str] = []
    with inference(detector, device) as place:
        for source, name in zip(sources, names, strict=True):
            try:
                image = read_image(source, channels=_channels(detector))
                detections = _detect(detector, to_tensor(image), place, str(source))
            except InputError as error:
                failed.append(str(error))
                continue
            with atomic_path(folder / f"{name}.png") as temporary:
                draw_detections(image, detections, threshold).save(temporary)
            written.append(folder / f"{name}.json")
            write_text(written[-1], json.dumps(detections, allow_nan=False) + "\n")
            report(f"{source}: {_describe(detections, threshold)} -> {folder / f'{name}.png'}")
    if failed:
        listed = "; ".join(failed[:5]) + (f"; and {len(failed) - 5} more" if len(failed) > 5 else "")
        others = f" (the others are in {folder})" if written else ""
        raise InputError(f"{len(failed)} of {len(sources)} images were not done{others}: {listed}")
    return written


def distinct_stems(paths: Sequence[Path]) -> list[str]:
    """File names without suffix, made different where they are equal: ``a``, ``a-2``, ``a-3``."""
    stems = {path.stem for path in paths}
    used: set[str] = set()
    names = []
    for path in paths:
        name, number = path.stem, 1
        while name in used or (number > 1 and name in stems):
            number += 1
            name = f"{path.stem}-{number}"
        used.add(name)
        names.append(name)
    return names


def _refuse_overwriting(sources: Sequence[Path], targets: Iterable[Path]) -> None:
    inputs = {source.resolve() for source in sources}
    for target in targets:
        if target.resolve() in inputs:
            raise InputError(f"output: '{target}' is one of the images and would be overwritten; choose another folder")


def _describe(detections: Sequence[Mapping[str, Any]], threshold: float) -> str:
    counts = Counter(one["category"] for one in detections if one["score"] >= threshold)
    listed = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    return f"{listed or 'nothing'} with score >= {threshold:g} (of {len(detections)} detections)"


def _detect(detector: nn.Module, image: Tensor, device: torch.device, name: str) -> list[dict[str, Any]]:
    height, width = int(image.shape[-2]), int(image.shape[-1])
    check_shape(detector, height, width, name)
    output = detector([to_input(image, device)])[0]
    categories = getattr(detector, "categories", None)
    if categories is None:
        labels = int(output["labels"].max()) if len(output["labels"]) else 0
        categories = [{"id": label, "name": str(label)} for label in range(1, labels + 1)]
    ids = [int(category["id"]) for category in categories]
    found = image_detections(output, 0, (height, width), ids, box_form(detector))
    names = {int(category["id"]): str(category["name"]) for category in categories}
    masks = list(found.results("segm")) if found.masks is not None else []
    results = []
    for position, result in enumerate(found.results("bbox")):
        category_id = result["category_id"]
        entry = {
            "bbox": result["bbox"],
            "score": result["score"],
            "category_id": category_id,
            "category": names[category_id],
        }
        if masks:
            entry["segmentation"] = masks[position]["segmentation"]
        results.append(entry)
    return sorted(results, key=lambda one: -one["score"])


def _channels(detector: nn.Module) -> int:
    mean = getattr(getattr(detector, "transform", None), "image_mean", None)
    return 3 if mean is None else len(mean)


def _as_tensor(image: ImageLike, detector: nn.Module, name: str) -> Tensor:
    """An image of any accepted kind as uint8, or float in [0, 1], (C, H, W)."""
    channels = _channels(detector)
    if isinstance(image, str | os.PathLike):
        return to_tensor(read_image(Path(image), channels=channels))
    if isinstance(image, Image.Image):
        return to_tensor(_converted(image, channels))
    if isinstance(image, np.ndarray):
        if image.ndim == 2 and image.dtype == np.uint8:
            return to_tensor(Image.fromarray(image).convert("RGB" if channels == 3 else "L"))
        if image.ndim not in (2, 3):
            raise InputError(f"{name}: expected an array (H, W, {channels}) or (H, W), got shape {image.shape}")
        image = torch.from_numpy(np.array(image if image.ndim == 3 else image[:, :, None])).permute(2, 0, 1)
    if not isinstance(image, Tensor):
        raise InputError(f"{name}: expected a path, Pillow image, array or tensor, got {type(image).__name__}")
    if image.ndim != 3 or image.shape[0] != channels:
        raise InputError(
            f"{name}: expected {channels} channels, (C, H, W) or an array (H, W, C); got {tuple(image.shape)}"
        )
    if image.is_floating_point():
        low, high = (float(image.min()), float(image.max())) if image.numel() else (0.0, 0.0)
        if not (low >= 0 and high <= 1):
            raise InputError(f"{name}: float images must be in 0..1, got {low:g}..{high:g}; divide by 255")
        return image.to(torch.float32)
    if image.dtype != torch.uint8:
        raise InputError(f"{name}: expected uint8 or float in 0..1, got {image.dtype}")
    return image


def _converted(image: Image.Image, channels: int) -> Image.Image:
    mode = "RGB" if channels == 3 else "L"
    if image.mode in ("RGB", "L", "CMYK", "YCbCr", "LAB", "HSV"):
        return ImageOps.exif_transpose(image).convert(mode)
    # Transparency, palettes and 16 bits are read_image's to decide, in one place.
    buffer = BytesIO()
    ImageOps.exif_transpose(image).save(buffer, format="PNG")
    buffer.seek(0)
    return read_image(buffer, channels=channels)
