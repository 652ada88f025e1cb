"""Detect objects in images; return the detections in COCO's terms, or draw and write them to files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Unpack

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from vovnet.detection import distributed
from vovnet.detection.data.pixels import ImageLike, as_bytes, to_pixels
from vovnet.detection.data.protocol import DetectionDataset
from vovnet.detection.data.samples import check_boxes
from vovnet.detection.detecting.adjusting import adjusted
from vovnet.detection.detecting.runner import Runner
from vovnet.detection.inference_mode import inference, input_channels, limits_of
from vovnet.errors import InputError
from vovnet.folders.home import expand_home
from vovnet.images.reading import source_name
from vovnet.images.tensors import to_tensor
from vovnet.images.video import video_name
from vovnet.results.detections import ImageDetections
from vovnet.results.drawing import prediction_sheet
from vovnet.results.labels import LabelMode
from vovnet.results.limits import LimitWarning
from vovnet.results.run_options import RunOptions, RunSettings
from vovnet.results.skeletons import skeletons_of
from vovnet.results.thresholds import USUAL, Threshold
from vovnet.results.video import write_video
from vovnet.results.writing import FileDetector, Share, write_predictions
from vovnet.terminal.streams import echo


def predict(
    detector: nn.Module,
    images: Iterable[ImageLike],
    *,
    device: str | torch.device | None = None,
    max_pixels: int | None = None,
    batch_size: int = 1,
    **options: Unpack[RunOptions],
) -> list[list[dict[str, Any]]]:
    """Detect objects in images.

    Args:
        detector: a torchvision detector. If it has ``categories``, as a detector of
            :func:`vovnet.hub.load_detector` does, results contain their ids and names, otherwise the labels.
        images: paths; open binary files; Pillow images; arrays (H, W, C) or (H, W); tensors (C, H, W) or (H, W).
            Arrays and tensors are uint8, uint16, bool, or float in [0, 1]. Grey and colour are converted to what the
            detector takes. Files and Pillow images are rotated as their EXIF data says; boxes refer to the rotated
            image. :func:`vovnet.detection.data.pixels.to_pixels` describes the conversion.
        device: where to run; None leaves the detector where it is. Afterwards the detector has the mode and device
            that it had before.
        max_pixels: files with more pixels are refused; None is Pillow's limit.
        batch_size: how many images the detector computes at a time. It pads them to one size, so that scores and boxes
            of images with different sizes may differ a little from those computed alone. More than 1 is for GPUs.
            Of images in tiles, it is the number of tiles.
        **options: change the detector for this call, or cut images into tiles:
            :class:`~vovnet.results.run_options.RunOptions`.

    Returns:
        For each image a list of all detections, best first: ``{"bbox": [x, y, width, height] in pixels, "score",
        "category_id", "category"}``, ``"segmentation"`` (COCO's RLE with text counts) if the detector has masks, and
        ``"keypoints"`` (x, y in pixels and score in 0..1 of each point, one after the other) if it has keypoints.

    Raises:
        InputError: an image cannot be read, or has the wrong shape, type or range; the message names it. Or an option
            is out of its bounds.
    """
    settings = RunSettings(**options)
    single = isinstance(images, str | bytes | os.PathLike | Image.Image) or hasattr(images, "read")
    if single or getattr(images, "ndim", 4) < 4:
        raise InputError("images: expected a list of images, got one image; write [image]")
    _check_batch_size(batch_size)
    found: list[ImageDetections] = []
    with adjusted(detector, settings), inference(detector, device) as place:
        limits = limits_of(detector)
        run = _runner(detector, place, settings, batch_size)
        named = _named_pixels(images, input_channels(detector), max_pixels)
        while batch := list(islice(named, batch_size)):
            names, pixels = zip(*batch, strict=True)
            found += run(pixels, names, [0] * len(batch))
    limits.warn_of(found)
    categories = _categories(detector)
    return [one.named(categories) for one in found]


def _check_batch_size(batch_size: int) -> None:
    if isinstance(batch_size, bool) or batch_size < 1:
        raise InputError(f"batch_size: expected a number of images of at least 1, got {batch_size}")


def _runner(detector: nn.Module, device: torch.device, settings: RunSettings, batch_size: int) -> Runner:
    categories = _categories(detector)
    ids = range(1, _MOST_LABELS + 1) if categories is None else [int(category["id"]) for category in categories]
    return Runner(detector, device, ids, settings.tiling, batch_size)


_MOST_LABELS = 100_000
"""Labels of a detector that has no categories; each is its own id and name."""


def _named_pixels(images: Iterable[ImageLike], channels: int, max_pixels: int | None) -> Iterator[tuple[str, Tensor]]:
    """Yield what messages call each image, and its pixels."""
    for position, image in enumerate(images):
        name = f"image {position}"
        if isinstance(image, str | bytes | os.PathLike):
            image = expand_home(source_name(image))
            name = str(image)
        yield name, to_pixels(image, channels, name, max_pixels=max_pixels)


def predict_files(
    detector: nn.Module,
    paths: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    threshold: Threshold = USUAL,
    *,
    device: str | torch.device | None = None,
    max_pixels: int | None = None,
    batch_size: int = 1,
    labels: LabelMode = "auto",
    formats: Sequence[str] = (),
    report: Callable[[str], object] = echo,
    **options: Unpack[RunOptions],
) -> list[Path]:
    """Detect objects in image files; write ``STEM.png`` (a drawing) and ``STEM.json`` (every detection) for each.

    ``summary.json`` lists all images: ``[{"image", "detections", "limit_reached"}]``; ``counts.csv`` and
    ``detections.csv`` are those of :func:`vovnet.results.tables.write_tables`. In a torch.distributed group
    every process handles its share of the images; rank 0 writes the list, and raises the error of images that failed.

    Args:
        detector: as for :func:`predict`.
        paths: image files. If several have the same stem, the second gets ``STEM-2``, the third ``STEM-3``, and so on.
            A stem that the file system refuses is replaced (:func:`vovnet.results.names.output_names`).
        output: folder for both files; created if it does not exist.
        threshold: detections with a lower score are neither drawn nor counted; the JSON file has all of them. A
            number, or one for each category's name: :func:`vovnet.results.thresholds.thresholds_for_counts`.
        device: as for :func:`predict`.
        max_pixels: images with more pixels are refused; None is Pillow's limit.
        batch_size: as for :func:`predict`.
        labels: ``auto``, ``all`` or ``none``, as for :func:`vovnet.results.drawing.draw_detections`.
        formats: ``coco``, ``yolo``, ``labelme``: write the detections from the threshold as labels, too
            (:mod:`vovnet.results.label_files`).
        report: called with one line for each finished image.
        **options: as for :func:`predict`.

    Returns:
        The JSON files in the order of ``paths``; of this process.

    Raises:
        InputError: some images could not be read (raised after all others are finished); or, before anything is
            written, ``paths`` is empty, ``threshold`` is not in 0..1 or names another category, or a drawing would
            overwrite one of the images.
        OSError: the output cannot be written.
    """
    share = Share(distributed.rank(), distributed.world_size(), distributed.gather)
    with distributed.patience(), file_detector(detector, device, batch_size, RunSettings(**options)) as files:
        return write_predictions(
            files,
            paths,
            output,
            threshold,
            max_pixels=max_pixels,
            share=share,
            labels=labels,
            formats=formats,
            report=report,
            stacklevel=3,
        )


def predict_videos(
    detector: nn.Module,
    sources: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    threshold: Threshold = USUAL,
    *,
    every: int = 1,
    max_frames: int | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 1,
    labels: LabelMode = "auto",
    report: Callable[[str], object] = echo,
    **options: Unpack[RunOptions],
) -> list[Path]:
    """Detect objects in videos, as :func:`vovnet.results.video.write_video` describes it.

    In a torch.distributed group every process handles its share of the videos.

    Args:
        detector: as for :func:`predict`.
        sources: video files, ``camera:N``, or addresses of streams.
        output: folder for ``STEM.mp4`` and ``STEM.jsonl``.
        threshold: detections with a lower score are not drawn.
        every: 2 takes every second frame, and so on.
        max_frames: ends each video after so many frames; None does not.
        device: as for :func:`predict`.
        batch_size: as for :func:`predict`.
        labels: as for :func:`predict_files`.
        report: called with one line for each finished video.
        **options: as for :func:`predict`.

    Returns:
        The JSON files in the order of ``sources``; of this process.

    Raises:
        InputError: as for :func:`vovnet.results.video.write_video`; or two videos have the same name.
    """
    names = [video_name(source) for source in sources]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"images: two videos would write to '{twice[0]}.mp4'; give them one after the other")
    own = sources[distributed.rank() :: distributed.world_size()]
    with distributed.patience(), file_detector(detector, device, batch_size, RunSettings(**options)) as files:
        return [
            write_video(files, one, output, threshold, every=every, max_frames=max_frames, labels=labels, report=report)
            for one in own
        ]


@contextmanager
def file_detector(
    detector: nn.Module, device: str | torch.device | None, batch_size: int, settings: RunSettings
) -> Iterator[FileDetector]:
    """Make a detector ready for the writing of files, for the length of a ``with`` block.

    Args:
        detector: as for :func:`predict`.
        device: as for :func:`predict`.
        batch_size: as for :func:`predict`.
        settings: change the detector for this run, or cut images into tiles.

    Raises:
        InputError: as for :func:`predict`.
    """
    _check_batch_size(batch_size)
    with adjusted(detector, settings), inference(detector, device) as place:
        run = _runner(detector, place, settings, batch_size)
        yield FileDetector(
            lambda images, names: run([to_tensor(image) for image in images], names, [0] * len(images)),
            input_channels(detector),
            limits_of(detector),
            _categories(detector),
            (MemoryError, torch.OutOfMemoryError),
            batch_size if settings.tiling is None else 1,
        )


def plot_predictions(
    detector: nn.Module,
    dataset: DetectionDataset,
    out_png: str | os.PathLike[str],
    *,
    count: int = 8,
    threshold: Threshold = USUAL,
) -> None:
    """Draw detections and true boxes of some images, evenly spaced over a dataset.

    :func:`vovnet.results.drawing.prediction_sheet` describes the drawing.

    Args:
        detector: as for :func:`predict`.
        dataset: follows the protocol of :mod:`vovnet.detection.data`.
        out_png: written atomically.
        count: largest number of images.
        threshold: detections with a lower score are not drawn.
    """
    count, channels = min(count, len(dataset)), input_channels(detector)
    names = [str(one["name"]) for one in getattr(dataset, "categories", ())]
    samples = []
    for number in range(count):
        index = number * len(dataset) // count
        image, target = dataset[index]
        pixels = to_pixels(image, channels, f"dataset[{index}]").cpu()
        corners = check_boxes(target["boxes"], (int(pixels.shape[1]), int(pixels.shape[2]))).tolist()
        truth: list[dict[str, Any]] = [{"bbox": [x0, y0, x1 - x0, y1 - y0]} for x0, y0, x1, y1 in corners]
        for one, label in zip(truth, target.get("labels", ()), strict=False):
            if 1 <= int(label) <= len(names):
                one["category"] = names[int(label) - 1]
        for one, points in zip(truth, target.get("keypoints", ()), strict=False):
            one["keypoints"] = torch.as_tensor(points).flatten().tolist()
        drawn = functional.to_pil_image(as_bytes(pixels if channels == 3 else pixels[:1]))
        samples.append((drawn, pixels, truth))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LimitWarning)  # it is told where all images are evaluated
        found = predict(detector, [pixels for _, pixels, _ in samples])
    sheet = [(drawn, one, truth) for (drawn, _, truth), one in zip(samples, found, strict=True)]
    prediction_sheet(sheet, out_png, threshold, skeletons=skeletons_of(_categories(detector) or []))


def _categories(detector: nn.Module) -> Sequence[Mapping[str, Any]] | None:
    found: Any = getattr(detector, "categories", None)
    return found
