"""The kinds of problems that a dataset can have, and the report that counts them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from vovnet.detection.data.images import example_names
from vovnet.errors import shown


@dataclass(frozen=True)
class Kind:
    """A kind of problem."""

    text: str
    """The name of the problem in reports."""
    of: Literal["image", "annotation"]
    """The kind of entry that has the problem."""
    action: str
    """The consequence for training."""


KINDS: dict[str, Kind] = {
    "image_entry": Kind("image entry without a whole-number id or a file_name", "image", "left out"),
    "duplicate_image_id": Kind("image id that an earlier image has", "image", "left out"),
    "path_outside": Kind("file_name that leaves the folder of images", "image", "left out"),
    "missing_image": Kind("missing image file", "image", "left out"),
    "no_size": Kind("image entry without a width and height", "image", "kept, size read from the file"),
    "unreadable_image": Kind("unreadable or truncated image", "image", "left out, when it is met"),
    "size_differs": Kind("width and height that are not the image's", "image", "left out, when it is met"),
    "annotation_entry": Kind("annotation that is not an object", "annotation", "left out"),
    "duplicate_annotation_id": Kind("annotation id that an earlier annotation has", "annotation", "kept, id not used"),
    "unknown_image": Kind("annotation of an image that is not listed", "annotation", "left out"),
    "unknown_category": Kind("category that is not listed", "annotation", "left out"),
    "bad_iscrowd": Kind("iscrowd that is neither 0 nor 1", "annotation", "left out"),
    "bad_box": Kind("box that is not four finite numbers", "annotation", "left out"),
    "empty_box": Kind("box with zero or negative width or height", "annotation", "left out"),
    "box_outside": Kind("box entirely outside the image", "annotation", "left out"),
    "box_partly_outside": Kind("box partly outside the image", "annotation", "clipped"),
    "no_mask": Kind("no segmentation, where others have one", "annotation", "left out of mask training"),
    "bad_polygon": Kind("polygon without three proper points", "annotation", "polygon left out of mask training"),
    "bad_rle": Kind("run lengths (RLE) that are malformed", "annotation", "left out of mask training"),
    "rle_size": Kind("RLE whose size is not the image's", "annotation", "left out of mask training"),
    "rle_sum": Kind("RLE whose sum is not the image's area", "annotation", "left out of mask training"),
    "empty_mask": Kind("mask without area", "annotation", "left out of mask training"),
}

LOST_IMAGE = frozenset({"image_entry", "duplicate_image_id", "path_outside", "missing_image", "unreadable_image"})
"""Kinds that make an image unusable before it is decoded (``unreadable_image`` if its size is read from the file)."""


@dataclass
class DataReport:
    """The contents of a dataset and what is wrong with it."""

    annotation_files: list[str] = field(default_factory=list)
    images: int = 0
    annotations: int = 0
    crowds: int = 0
    masks: int = 0
    images_without_objects: int = 0
    """Number of usable images without a usable annotation other than a crowd."""
    orphans: int = 0
    """Number of annotations that are left out because their image is; they are not counted as problems."""
    objects_per_category: dict[str, int] = field(default_factory=dict)
    """Category name to the number of usable annotations, including crowds."""
    problems: dict[str, list[int | str]] = field(default_factory=dict)
    """Kind (a key of ``KINDS``) to the ids of its images or annotations; ``#n`` is entry n, which has no id."""
    dropped_images: int = 0
    dropped_annotations: int = 0
    """Number of annotations that training leaves out, without orphans."""

    @property
    def ok(self) -> bool:
        """True if nothing is wrong."""
        return not self.problems

    def add(self, kind: str, entry_id: int | str) -> None:
        """Add a problem of an image or annotation."""
        self.problems.setdefault(kind, []).append(entry_id)

    def table(self, examples: int = 5) -> str:
        """Return an overview and a row for each kind of problem, with the first ids, as text of several lines."""
        counts = ", ".join(
            f"{shown(name)} {count}".replace(" ", "\u00a0") for name, count in self.objects_per_category.items()
        )
        categories = textwrap.wrap(
            f"categories   {len(self.objects_per_category)}: {counts}", 110, subsequent_indent=" " * 13
        )
        lines = [
            f"annotations  {', '.join(self.annotation_files)}",
            f"images       {self.images} ({self.images_without_objects} without objects)",
            f"objects      {self.annotations} ({self.crowds} crowds, {self.masks or 'none'} with masks)",
            *(line.replace("\u00a0", " ") for line in categories),
            "",
        ]
        if self.ok:
            return "\n".join([*lines, "nothing is wrong"])
        rows = [("problem", "count", "in training", "ids")]
        for kind, ids in self._rows():
            listed = f"{KINDS[kind].of} {example_names(ids, len(ids), examples)}"
            rows.append((KINDS[kind].text, str(len(ids)), KINDS[kind].action, listed))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for text, count, action, ids_text in rows:
            lines.append(f"{text:<{widths[0]}}  {count:>{widths[1]}}  {action:<{widths[2]}}  {ids_text}")
        return "\n".join(lines)

    def summary(self) -> str:
        """Return one line on what training leaves out or clips; empty if that is nothing."""
        touched = [(kind, ids) for kind, ids in self._rows() if not KINDS[kind].action.startswith("kept")]
        if not touched:
            return ""
        kinds = "; ".join(f"{len(ids)} × {KINDS[kind].text}" for kind, ids in touched)
        lost = f" and {self.orphans} on images left out" if self.orphans else ""
        return (
            f"{self.dropped_images} of {self.images} images and {self.dropped_annotations} of {self.annotations} "
            f"annotations{lost} ({kinds})"
        )

    def _rows(self) -> Iterator[tuple[str, list[int | str]]]:
        return ((kind, self.problems[kind]) for kind in KINDS if kind in self.problems)
