"""Predict with exported files: the results and files are those of the model. Nothing here imports PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vovnet.errors import InputError
from vovnet.export.metadata import ExportMetadata
from vovnet.export.runtime import ExportedModel
from vovnet.images.arrays import Pixels
from vovnet.images.reading import read_image
from vovnet.results.classes import ClassScore, best_classes, classified_files
from vovnet.results.detections import ImageDetections, checked_detections
from vovnet.results.labels import LabelMode
from vovnet.results.limits import MEDIAN_OBJECT, TRAINED_CROP, Limits, check_shape, trained_factor
from vovnet.results.pasting import encode_pasted
from vovnet.results.rle import encode_part
from vovnet.results.thresholds import USUAL, Threshold
from vovnet.results.tiling import Region, Tiling, detect_in_tiles, part_of
from vovnet.results.writing import FileDetector, write_predictions
from vovnet.terminal.streams import echo


def predict_exported(
    model: ExportedModel,
    paths: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    threshold: Threshold = USUAL,
    *,
    tiling: Tiling | None = None,
    max_pixels: int | None = None,
    labels: LabelMode = "auto",
    formats: Sequence[str] = (),
    report: Callable[[str], object] = echo,
) -> list[Path]:
    """Detect objects in image files with an exported detector, as :func:`vovnet.results.writing.write_predictions`.

    Args:
        model: the open file.
        paths: as for that function.
        output: as for that function.
        threshold: as for that function.
        tiling: how images are cut. A file that takes one size alone needs tiles of that size.
        max_pixels: as for that function.
        labels: as for that function.
        formats: as for that function.
        report: as for that function.

    Raises:
        InputError: the file is a classifier's, or as for that function; images of another size than the file takes are
            among those that fail.
        OSError: the output cannot be written.
    """
    return write_predictions(
        exported_file_detector(model, tiling),
        paths,
        output,
        threshold,
        max_pixels=max_pixels,
        labels=labels,
        formats=formats,
        report=report,
        stacklevel=3,
    )


def exported_file_detector(model: ExportedModel, tiling: Tiling | None = None) -> FileDetector:
    """Return an exported detector as the writing of files needs it.

    Args:
        model: the open file.
        tiling: how images are cut; None leaves them whole.

    Raises:
        InputError: the file is a classifier's, or takes images of many channels.
    """
    metadata = model.metadata
    if metadata.kind != "detector":
        raise InputError(f"{model.path}: is a {metadata.kind}'s file, expected a detector's")
    limits = exported_limits(metadata)

    def detect_regions(regions: Sequence[Region], pixels: NDArray[np.uint8], name: str) -> list[ImageDetections]:
        for one in regions:
            check_shape(*one.size, limits.max_size, name)
            _check_size(model, one.size, name)
        outputs = model.run_each([np.ascontiguousarray(part_of(pixels, one)) for one in regions])
        where = str(model.path)
        return [
            exported_detections(metadata, one, region.size, where) for one, region in zip(outputs, regions, strict=True)
        ]

    def detect(images: Sequence[Image.Image | Pixels], names: Sequence[str]) -> list[ImageDetections]:
        found = []
        for image, name in zip(images, names, strict=True):
            if not isinstance(image, Image.Image):  # _image_channels has refused files that take them
                raise InputError(f"{name}: expected a grey or colour image")
            pixels, size = _pixels(image), (image.height, image.width)
            if tiling is None:
                found += detect_regions([Region(0, 0, *size)], pixels, name)
            else:
                run = partial(detect_regions, pixels=pixels, name=name)
                found.append(detect_in_tiles(size, tiling, run, metadata.input.batch or 1))
        return found

    return FileDetector(detect, _image_channels(model), limits, metadata.categories)


def classify_exported(
    model: ExportedModel, paths: Sequence[Path], *, top: int = 5, max_pixels: int | None = None
) -> Iterator[tuple[Path, list[ClassScore]]]:
    """Yield the likeliest classes of each image file.

    Args:
        model: an exported classifier.
        paths: the files.
        top: the number of classes of each.
        max_pixels: images with more pixels are refused. None is Pillow's limit.

    Raises:
        InputError: the file is a detector's; or some images cannot be read or have another size than the file takes,
            which is raised after the others.
    """
    metadata = model.metadata
    if metadata.kind != "classifier":
        raise InputError(f"{model.path}: is a {metadata.kind}'s file, expected a classifier's")
    names = [one["name"] for one in metadata.categories]

    def classify(path: Path) -> list[ClassScore]:
        image = read_image(path, _image_channels(model), max_pixels=max_pixels)
        _check_size(model, (image.height, image.width), str(path))
        (outputs,) = model.run_each([_pixels(image)])
        probabilities = outputs["probabilities"]
        if probabilities.shape != (len(names),):
            raise InputError(
                f"{model.path}: expected {len(names)} probabilities as its metadata says, got {probabilities.shape}"
            )
        return best_classes(probabilities, names, top)

    return classified_files(paths, classify)


def exported_detections(
    metadata: ExportMetadata, outputs: Mapping[str, NDArray[Any]], size: tuple[int, int], where: str
) -> ImageDetections:
    """Return the detections of one image.

    Args:
        metadata: of the file.
        outputs: what the file returned, without a batch dimension.
        size: height and width of the image in pixels.
        where: the file's name, for messages.

    Raises:
        InputError: the outputs do not fit one another or the metadata.
    """
    boxes, scores, labels = found_rows(metadata, outputs, where)
    sides = boxes[:, 2:] - boxes[:, :2] + (1 if metadata.box_format == "xyxy_inclusive" else 0)
    ids = [one["id"] for one in metadata.categories]
    found = checked_detections(0, np.concatenate((boxes[:, :2], sides), axis=1), scores, labels, ids, size)
    if metadata.masks is not None:
        found.masks = _masks(metadata, outputs["masks"][: len(scores)], boxes, size, where)
    if metadata.keypoints is not None:
        points = outputs["keypoints"][: len(scores)]
        whole = (len(scores), metadata.keypoints, 3)
        if points.shape != whole or not np.isfinite(points).all():
            raise InputError(f"{where}: expected finite keypoints of shape {whole}, got {points.shape}")
        found.keypoints = points
    return found


def _masks(
    metadata: ExportMetadata, masks: NDArray[Any], boxes: NDArray[np.float32], size: tuple[int, int], where: str
) -> list[bytes]:
    whole = (len(boxes), *size) if metadata.masks == "image" else (len(boxes), *masks.shape[1:2] * 2)
    if masks.shape != whole or masks.ndim != 3:
        raise InputError(f"{where}: expected masks of shape {whole}, got {masks.shape}")
    if metadata.masks == "box":
        return encode_pasted(masks, boxes, size)
    return [encode_part(mask != 0, (0, 0), size) for mask in masks]


def found_rows(
    metadata: ExportMetadata, outputs: Mapping[str, NDArray[Any]], where: str
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Return the boxes (N, 4) as XYXY pixels, scores (N,) and labels (N,) without the padding.

    Raises:
        InputError: their shapes or their number do not fit one another.
    """
    boxes, scores, labels = (outputs[name] for name in ("boxes", "scores", "labels"))
    rows, count = scores.shape[0] if scores.ndim == 1 else -1, outputs["count"]
    if boxes.shape != (rows, 4) or labels.shape != (rows,) or count.size != 1 or not 0 <= int(count.item()) <= rows:
        raise InputError(
            f"{where}: expected boxes (K, 4), scores (K,), labels (K,) and a count of 0..K, got {boxes.shape}, "
            f"{scores.shape}, {labels.shape} and {count.tolist()}"
        )
    kept = slice(0, int(count.item()))
    return boxes[kept].astype(np.float32), scores[kept].astype(np.float32), labels[kept].astype(np.int64)


def exported_limits(metadata: ExportMetadata) -> Limits:
    """Return the limits that the metadata tells of a detector; those that are not numbers are left out."""
    preprocessing = metadata.preprocessing
    sizes = preprocessing.get("min_size")
    limit = _number(metadata.thresholds.get("detections"))
    crop = _number(preprocessing.get(TRAINED_CROP))
    return Limits(
        detections=None if limit is None else int(limit),
        min_size=_number(sizes[-1] if isinstance(sizes, list) and sizes else sizes),
        max_size=_number(preprocessing.get("max_size")),
        median_object=_number(preprocessing.get(MEDIAN_OBJECT)),
        trained_factor=trained_factor(preprocessing),
        crop=None if crop is None else int(crop),
        built_in=True,
    )


def _number(value: object) -> int | float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6
    return value if good else None  # type: ignore[return-value]


def _image_channels(model: ExportedModel) -> int:
    channels = model.metadata.input.channels
    if channels not in (1, 3):
        raise InputError(f"{model.path}: takes {channels} channels, and image files have 1 (grey) or 3 (RGB)")
    return channels


def _check_size(model: ExportedModel, size: tuple[int, int], name: str) -> None:
    """Refuse an image, or a tile, that has not the size that the file takes.

    Raises:
        InputError: it has another one.
    """
    taken = model.metadata.input.size
    if taken is not None and taken != size:
        raise InputError(
            f"{name}: the image is {size[1]}x{size[0]} pixels, and {model.path} takes only "
            f"{taken[1]}x{taken[0]} (width x height); resize it, or export the model without --size"
        )


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels (C, H, W) of an image."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
