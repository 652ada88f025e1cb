"""Predict on image files, and write the detections of each as JSON and as a drawing."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from vovnet.errors import InputError, reason
from vovnet.files import atomic_path, write_text
from vovnet.folders.home import expand_home
from vovnet.images.reading import read_image
from vovnet.results.drawing import draw_detections
from vovnet.results.limits import Limits
from vovnet.results.names import output_names
from vovnet.results.skeletons import Skeleton
from vovnet.terminal.streams import echo
from vovnet.terminal.text import printable

Detect = Callable[[Image.Image, str], list[dict[str, Any]]]
"""Returns the detections of an image as :meth:`~vovnet.results.detections.ImageDetections.named` does; the text names
the image in messages."""


@dataclass(frozen=True)
class FileDetector:
    """A detector as the writing of files needs it."""

    detect: Detect
    channels: int
    """1 (grey) or 3 (RGB)."""
    limits: Limits
    memory_errors: tuple[type[BaseException], ...] = (MemoryError,)
    """What it raises if one image is too large for the memory; smaller ones may fit."""
    skeletons: Mapping[int, Skeleton] = field(default_factory=dict)
    """The skeleton of each category that has keypoints, by its id."""


def write_predictions(
    detector: FileDetector,
    paths: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    threshold: float = 0.5,
    *,
    max_pixels: int | None = None,
    report: Callable[[str], object] = echo,
    stacklevel: int = 2,
) -> list[Path]:
    """Detect objects in image files; write ``STEM.png`` (a drawing) and ``STEM.json`` (every detection) for each.

    Args:
        detector: what is called for each image.
        paths: image files. If several have the same stem, the second gets ``STEM-2``, the third ``STEM-3``, and so on.
            A stem that the file system refuses is replaced (:func:`vovnet.results.names.output_names`).
        output: folder for both files; created if it does not exist.
        threshold: detections with a lower score are not drawn; the JSON file has all of them.
        max_pixels: images with more pixels are refused; None is Pillow's limit.
        report: called with one line for each finished image.
        stacklevel: as in ``warnings.warn``, for a warning of the detector's limits; 2 names the caller.

    Returns:
        The JSON files in the order of ``paths``.

    Raises:
        InputError: some images could not be read (raised after all others are finished); or, before anything is
            written, ``paths`` is empty, ``threshold`` is not in 0..1, or a drawing would overwrite one of the images.
        OSError: the output cannot be written.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold: expected a number from 0 to 1, got {threshold}")
    sources = [expand_home(path) for path in paths]
    if not sources:
        raise InputError("images: no images were given")
    folder = expand_home(output)
    folder.mkdir(parents=True, exist_ok=True)
    names = output_names(sources, folder)
    _refuse_overwriting(sources, [folder / f"{name}.{suffix}" for name in names for suffix in ("png", "json")])
    written: list[Path] = []
    failed: list[str] = []
    shapes, counts = [], []
    for source, name in zip(sources, names, strict=True):
        try:
            image = read_image(source, channels=detector.channels, max_pixels=max_pixels)
            detections = detector.detect(image, str(source))
        except InputError as error:
            failed.append(str(error))
            continue
        except detector.memory_errors as error:
            failed.append(f"{source}: the memory is too small for it ({reason(error)})")
            continue
        shapes.append((image.height, image.width))
        counts.append(len(detections))
        written.append(folder / f"{name}.json")
        write_text(written[-1], json.dumps(detections, allow_nan=False) + "\n")
        with atomic_path(folder / f"{name}.png") as temporary:
            draw_detections(image, detections, threshold, skeletons=detector.skeletons).save(temporary)
        line = f"{source}: {_describe(detections, threshold, detector.limits.detections)} -> {folder / name}.png"
        report(printable(line))
    detector.limits.warn(shapes, counts, stacklevel)
    if failed:
        listed = "; ".join(failed[:5]) + (f"; and {len(failed) - 5} more" if len(failed) > 5 else "")
        others = f" (the others are in {folder})" if written else ""
        raise InputError(f"{len(failed)} of {len(sources)} images failed{others}: {listed}")
    return written


def _refuse_overwriting(sources: Sequence[Path], targets: Iterable[Path]) -> None:
    # realpath, because Path.resolve raises an error for a link that leads to itself.
    inputs = {os.path.realpath(source) for source in sources if "\0" not in str(source)}
    for target in targets:
        if os.path.realpath(target) in inputs:
            raise InputError(f"output: '{target}' is one of the images and would be overwritten; choose another folder")


def _describe(detections: Sequence[Mapping[str, Any]], threshold: float, limit: int | None) -> str:
    counts = Counter(one["category"] for one in detections if one["score"] >= threshold)
    listed = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    full = ", the limit: model.box_detections_per_img" if len(detections) == limit else ""
    return f"{listed or 'nothing'} with score >= {threshold:g} (of {len(detections)} detections{full})"
