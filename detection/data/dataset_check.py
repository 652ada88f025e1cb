"""Check a whole dataset: each split, what it consists of, images that are there twice, and what a recipe should say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.channel_statistics import ChannelStatistics, spread_positions
from vovnet.detection.data.checked_images import CheckedImage, has_wrong_area, repeated_objects
from vovnet.detection.data.duplicates import Fingerprint, Twins, find_twins, fingerprint
from vovnet.detection.data.report import DataReport
from vovnet.detection.data.sources import read_source, take_ids
from vovnet.detection.data.statistics import sizes_of_images, statistics_lines
from vovnet.detection.data.suggestions import LARGE, SMALL, Suggestion, suggest
from vovnet.detection.data.validation import check_file
from vovnet.errors import InputError, shown
from vovnet.images.arrays import read_array
from vovnet.images.channels import many_channels
from vovnet.processes.devices import default_device

_SHOWN = 5


@dataclass
class CheckedSplit:
    """One file of labels."""

    name: str
    """Its split; empty if the data has none."""
    report: DataReport
    statistics: list[str]
    """What it consists of, as lines for people."""


@dataclass
class DatasetCheck:
    """What is known of a dataset after a check."""

    splits: list[CheckedSplit] = field(default_factory=list)
    twins: list[Twins] = field(default_factory=list)
    """Images that are there twice."""
    suggestions: list[Suggestion] = field(default_factory=list)
    """Values of a recipe that follow from the training data."""

    @property
    def ok(self) -> bool:
        """True if nothing is wrong."""
        return all(one.report.ok for one in self.splits)

    def to_json(self) -> dict[str, Any]:
        """Return everything for programs."""
        return {
            "ok": self.ok,
            "splits": [{"name": one.name, **one.report.to_json(), "statistics": one.statistics} for one in self.splits],
            "same_images": [
                {
                    "images": [one.first.name, one.second.name],
                    "splits": [one.first.split, one.second.split],
                    "exact": one.exact,
                }
                for one in self.twins
            ],
            "recipe": {one.key: one.value for one in self.suggestions},
        }

    def text(self) -> str:
        """Return everything as text of several lines."""
        lines: list[str] = []
        for one in self.splits:
            lines += [*([f"== {one.name}"] if one.name else []), one.report.table(), "", *one.statistics, ""]
        lines += _twin_lines(self.twins)
        if self.suggestions:
            lines.append("a recipe for this data (override what it says otherwise):")
            lines += [f"  {one}" for one in self.suggestions]
        return "\n".join(lines).rstrip()


def check_dataset(
    splits: Mapping[str, Sequence[DataSource]],
    *,
    decode: bool = True,
    max_pixels: int | None = None,
    progress: bool = False,
) -> DatasetCheck:
    """Check the splits of a dataset.

    Args:
        splits: The sources of each split, as :func:`vovnet.detection.data.sources.splits_of` returns them.
        decode: Also decode every image. Without it neither unreadable images nor images that two splits share are
            found.
        max_pixels: Images with more pixels are unreadable. None is Pillow's limit.
        progress: Show a progress bar on stderr.

    Raises:
        InputError: The data as a whole cannot be used.
    """
    found, prints = DatasetCheck(), list[Fingerprint]()
    ids: dict[tuple[str, str], tuple[DataReport, int]] = {}
    training: list[CheckedImage] = []
    known: list[Mapping[str, object]] = []
    for split, sources in splits.items():
        for file in (one for source in sources for one in read_source(source)):
            take_ids(file, known)
            known += file.content.categories

            def look(image: CheckedImage, pixels: Image.Image, split: str = split) -> None:
                prints.append(fingerprint(pixels, split, image.path))

            report, images = check_file(file, decode=decode, max_pixels=max_pixels, progress=progress, look=look)
            _check_objects(images, report)
            ids |= {(split, image.path): (report, image.image_id) for image in images}
            names = {one["id"]: one["name"] for one in file.content.categories}
            found.splits.append(CheckedSplit(split, report, statistics_lines(images, names)))
            training += images if split in ("train", "") else []
    found.twins = find_twins(prints)
    for twins in found.twins:
        if twins.exact and twins.across:
            report, image_id = ids[twins.second.split, twins.second.name]
            report.add("leaked_image", image_id, f"{shown(twins.second.name)} is {shown(twins.first.name)}")
    sizes = sizes_of_images(training)
    if sizes is not None:
        found.suggestions = suggest(sizes, SMALL if default_device().type == "cpu" else LARGE)
        found.suggestions += _channels(training) if decode else []
    return found


def _check_objects(images: Sequence[CheckedImage], report: DataReport) -> None:
    """Add objects that an image has twice, and areas that no object of their box can have."""
    for image in images:
        for one in repeated_objects(image):
            report.add("duplicate_annotation", one.annotation_id)
        for one in image.objects:
            if has_wrong_area(one):
                width, height = one.box[2:]
                report.add(
                    "wrong_area", one.annotation_id, f"area {one.area:.6g}, and the box has {width * height:.6g}"
                )


def _channels(images: Sequence[CheckedImage]) -> list[Suggestion]:
    """Return the number of channels of the training images and their statistics, if they are not grey or colour."""
    channels = many_channels(images[0].path)
    if channels is None:
        return []
    found = ChannelStatistics()
    for position in spread_positions(len(images)):
        with suppress(InputError):  # a row of the report
            found.add(read_array(images[position].path, channels))
    reason = f"measured on {found.count} images"
    return [
        Suggestion("model.in_chans", channels, "of the first image"),
        Suggestion("model.image_mean", found.mean, reason),
        Suggestion("model.image_std", found.std, reason),
    ]


def _twin_lines(twins: Sequence[Twins]) -> list[str]:
    """Return a line for each group of images that are there twice, and the first of them."""
    groups = [
        ("nearly the same image in two splits (leakage: metrics become too good)", True, False),
        ("the same image twice in a split", False, True),
        ("nearly the same image twice in a split", False, False),
    ]
    lines = []
    for title, across, exact in groups:
        some = [one for one in twins if (one.across, one.exact) == (across, exact)]
        if some:
            lines.append(f"{title}: {len(some)}")
            lines += [f"  {shown(one.first.name)} and {shown(one.second.name)}" for one in some[:_SHOWN]]
    return [*lines, ""] if lines else []
