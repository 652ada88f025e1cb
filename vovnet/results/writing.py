"""Predict on image files, and write the detections of each as JSON and as a drawing."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from vovnet.errors import InputError, reason
from vovnet.files import atomic_path, write_json, write_text
from vovnet.folders.home import expand_home
from vovnet.images.arrays import Pixels, viewable
from vovnet.images.channels import read_pixels
from vovnet.results.detections import ImageDetections
from vovnet.results.drawing import draw_detections
from vovnet.results.label_files import check_formats, write_labels
from vovnet.results.labels import LabelMode, check_labels
from vovnet.results.limits import Limits
from vovnet.results.names import output_names
from vovnet.results.skeletons import skeletons_of
from vovnet.results.tables import COUNTS, DETECTIONS, DetectedImage, write_tables
from vovnet.results.thresholds import USUAL, Threshold, Thresholds
from vovnet.terminal.streams import echo
from vovnet.terminal.text import printable

Detect = Callable[[Sequence[Image.Image | Pixels], Sequence[str]], Sequence[ImageDetections]]
"""Returns the detections of images; the texts name the images in messages."""


@dataclass(frozen=True)
class FileDetector:
    """A detector as the writing of files needs it."""

    detect: Detect
    channels: int
    """1 (grey), 3 (RGB), or as many as arrays have."""
    limits: Limits
    categories: Sequence[Mapping[str, Any]] | None = None
    """In COCO's form; None names each category by its id."""
    memory_errors: tuple[type[BaseException], ...] = (MemoryError,)
    """What it raises if one image is too large for the memory; smaller ones may fit."""
    batch_size: int = 1
    """The largest number of images that it takes."""


@dataclass(frozen=True)
class Share:
    """The part of the images that one of several processes handles."""

    rank: int = 0
    processes: int = 1
    gather: Callable[[Any], list[Any]] = lambda value: [value]
    """Returns what every process gives it, in the order of their ranks, in every process."""


@dataclass
class _Results:
    """What one process has done."""

    found: list[tuple[int, dict[str, Any], ImageDetections]] = field(default_factory=list)
    """For each finished image: its position, its entry in ``summary.json``, and detections without masks."""
    failed: list[tuple[int, str]] = field(default_factory=list)


def write_predictions(
    detector: FileDetector,
    paths: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    threshold: Threshold = USUAL,
    *,
    max_pixels: int | None = None,
    share: Share | None = None,
    labels: LabelMode = "auto",
    formats: Sequence[str] = (),
    report: Callable[[str], object] = echo,
    stacklevel: int = 2,
) -> list[Path]:
    """Detect objects in image files; write ``STEM.png`` (a drawing) and ``STEM.json`` (every detection) for each.

    ``summary.json`` lists all images: ``[{"image", "detections", "limit_reached"}]``. An image whose detections the
    detector's limit cut says so there and in its line. ``counts.csv`` and ``detections.csv`` are those of
    :func:`vovnet.results.tables.write_tables`.

    Args:
        detector: what is called for the images.
        paths: image files. If several have the same stem, the second gets ``STEM-2``, the third ``STEM-3``, and so on.
            A stem that the file system refuses is replaced (:func:`vovnet.results.names.output_names`).
        output: folder for the files; created if it does not exist.
        threshold: detections with a lower score are neither drawn nor counted; the JSON file has all of them. A
            number, or one for each category's name.
        max_pixels: images with more pixels are refused; None is Pillow's limit.
        share: this process's part of the images; None is all of them.
        labels: as for :func:`vovnet.results.drawing.draw_detections`.
        formats: write the detections from the threshold as labels, too (:mod:`vovnet.results.label_files`).
        report: called with one line for each finished image.
        stacklevel: as in ``warnings.warn``, for a warning of the detector's limits; 2 names the caller.

    Returns:
        The JSON files in the order of ``paths``.

    Raises:
        InputError: some images could not be read (raised after all others are finished, by the first process); or,
            before anything is written, ``paths`` is empty, ``threshold`` is not in 0..1 or names another
            category, or a file would overwrite one of the images.
        OSError: the output cannot be written.
    """
    thresholds = Thresholds.of(threshold, detector.categories)
    check_labels(labels)
    check_formats(formats)
    sources = [expand_home(path) for path in paths]
    if not sources:
        raise InputError("images: no images were given")
    share = share or Share()
    folder = expand_home(output)
    folder.mkdir(parents=True, exist_ok=True)
    # "summary" is taken.
    names = output_names([folder / "summary", *sources], folder)[1:]
    targets = [folder / f"{name}.{suffix}" for name in names for suffix in ("png", "json")]
    _refuse_overwriting(sources, [*targets, *(folder / name for name in (SUMMARY, COUNTS, DETECTIONS))])
    results = _Results()
    writer = _Writer(detector, folder, thresholds, max_pixels, labels, report, results)
    own = [(number, sources[number], names[number]) for number in range(share.rank, len(sources), share.processes)]
    for start in range(0, len(own), detector.batch_size):
        writer.handle(own[start : start + detector.batch_size])
    found = sorted((one for part in share.gather(results.found) for one in part), key=lambda one: one[0])
    failed = [text for _, text in sorted(one for part in share.gather(results.failed) for one in part)]
    if share.rank == 0:
        if found:
            write_json(folder / SUMMARY, [entry for _, entry, _ in found])
            images = [DetectedImage(sources[number], names[number], one) for number, _, one in found]
            write_tables(folder, images, detector.categories, thresholds)
            write_labels(folder, images, detector.categories, thresholds, formats)
        detector.limits.warn_of([one for _, _, one in found], stacklevel)
        _raise_failures(failed, len(sources), folder if found else None)
    return [folder / f"{names[number]}.json" for number, _, _ in found]


SUMMARY = "summary.json"


@dataclass(frozen=True)
class _Writer:
    """Reads images, detects in them, and writes what was found."""

    detector: FileDetector
    folder: Path
    thresholds: Thresholds
    max_pixels: int | None
    labels: LabelMode
    report: Callable[[str], object]
    results: _Results

    @property
    def _failures(self) -> tuple[type[BaseException], ...]:
        return (InputError, *self.detector.memory_errors)

    def handle(self, batch: Sequence[tuple[int, Path, str]]) -> None:
        """Handle images, each given as its position, its file and the name of its results."""
        images: list[Image.Image | Pixels] = []
        readable: list[tuple[int, Path, str]] = []
        for one in batch:
            try:
                images.append(read_pixels(one[1], self.detector.channels, max_pixels=self.max_pixels))
                readable.append(one)
            except InputError as error:
                self.results.failed.append((one[0], str(error)))
        self._detect(readable, images)

    def _detect(self, batch: Sequence[tuple[int, Path, str]], images: Sequence[Image.Image | Pixels]) -> None:
        if not batch:
            return
        try:
            found = self.detector.detect(images, [str(source) for _, source, _ in batch])
        except self._failures as error:
            if len(batch) > 1:  # one of them is the cause; the others may do alone
                for one, image in zip(batch, images, strict=True):
                    self._detect([one], [image])
                return
            number, source, _ = batch[0]
            told = isinstance(error, InputError)
            text = str(error) if told else f"{source}: the memory is too small for it ({reason(error)})"
            self.results.failed.append((number, text))
            return
        for one, image, detections in zip(batch, images, found, strict=True):
            self._write(one, image, detections)

    def _write(self, one: tuple[int, Path, str], image: Image.Image | Pixels, found: ImageDetections) -> None:
        number, source, name = one
        detector = self.detector
        detections = found.named(detector.categories)
        write_text(self.folder / f"{name}.json", json.dumps(detections, allow_nan=False) + "\n")
        with atomic_path(self.folder / f"{name}.png") as temporary:
            skeletons = skeletons_of(detector.categories or [])
            drawn = image if isinstance(image, Image.Image) else viewable(image)
            passed = self.thresholds.passed(detections)
            draw_detections(drawn, passed, 0, labels=self.labels, skeletons=skeletons).save(temporary)
        reached = detector.limits.reached(found)
        entry = {"image": str(source), "detections": len(detections), "limit_reached": reached}
        self.results.found.append((number, entry, replace(found, masks=None, keypoints=None)))
        line = f"{source}: {_describe(detections, self.thresholds, reached)} -> {self.folder / name}.png"
        self.report(printable(line))


def _raise_failures(failed: Sequence[str], count: int, others: Path | None) -> None:
    if not failed:
        return
    listed = "; ".join(failed[:5]) + (f"; and {len(failed) - 5} more" if len(failed) > 5 else "")
    where = f" (the others are in {others})" if others is not None else ""
    raise InputError(f"{len(failed)} of {count} images failed{where}: {listed}")


def _refuse_overwriting(sources: Sequence[Path], targets: Iterable[Path]) -> None:
    # realpath, because Path.resolve raises an error for a link that leads to itself.
    inputs = {os.path.realpath(source) for source in sources if "\0" not in str(source)}
    for target in targets:
        if os.path.realpath(target) in inputs:
            raise InputError(f"output: '{target}' is one of the images and would be overwritten; choose another folder")


def _describe(detections: Sequence[Mapping[str, Any]], thresholds: Thresholds, reached: bool) -> str:
    counts = Counter(one["category"] for one in thresholds.passed(detections))
    listed = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    full = ", the limit: see --max-detections" if reached else ""
    return f"{listed or 'nothing'} with score >= {thresholds} (of {len(detections)} detections{full})"
