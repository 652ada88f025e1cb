"""The kinds of problems that a dataset can have, and the report that counts them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from vovnet.detection.formats.labels import Places
from vovnet.errors import shown
from vovnet.images.reading import example_names


@dataclass(frozen=True)
class Kind:
    """A kind of problem."""

    text: str
    """The name of the problem in reports."""
    of: Literal["image", "annotation", "category", "file"]
    """The kind of entry that has the problem."""
    action: str
    """The consequence for training."""


KINDS: dict[str, Kind] = {
    "image_entry": Kind("image entry without a whole-number id or a file_name", "image", "left out"),
    "duplicate_image_id": Kind("image id that an earlier image has", "image", "left out"),
    "path_outside": Kind("file_name that leaves the folder of images", "image", "left out"),
    "missing_image": Kind("missing image file", "image", "left out"),
    "leaked_image": Kind("image of another split, pixel by pixel", "image", "kept, metrics become too good"),
    "label_file": Kind("file of labels that is missing or cannot be read", "image", "left out with its image"),
    "no_size": Kind("image entry without a whole-number width and height", "image", "kept, size read from the file"),
    "narrow_image": Kind("image more than 200 times as long as wide", "image", "kept, evaluation may refuse it"),
    "unreadable_image": Kind("unreadable or truncated image", "image", "left out, when it is met"),
    "size_differs": Kind("width and height that are not the image's", "image", "left out, when it is met"),
    "exif_stored": Kind("EXIF rotation that width and height do not follow", "image", "kept, not rotated"),
    "bad_line": Kind("line of labels that is malformed", "annotation", "left out"),
    "bad_shape": Kind("shape that is neither a box nor a polygon", "annotation", "left out"),
    "annotation_entry": Kind("annotation that is not an object", "annotation", "left out"),
    "annotation_id": Kind("annotation id that is not a whole number", "annotation", "kept, id not used"),
    "duplicate_annotation_id": Kind("annotation id that an earlier annotation has", "annotation", "kept, id not used"),
    "unknown_image": Kind("annotation of an image that is not listed", "annotation", "left out"),
    "unknown_category": Kind("category that is not listed", "annotation", "left out"),
    "bad_iscrowd": Kind("iscrowd that is neither 0 nor 1", "annotation", "left out"),
    "ignore_set": Kind("ignore that is not 0", "annotation", "kept, ignore not used"),
    "bad_box": Kind("box that is not four finite numbers", "annotation", "left out"),
    "normalized_box": Kind("box in 0..1, where pixels are expected", "annotation", "left out"),
    "pixel_box": Kind("box in pixels, where 0..1 is expected", "annotation", "left out"),
    "empty_box": Kind("box with zero or negative width or height", "annotation", "left out"),
    "box_outside": Kind("box entirely outside the image", "annotation", "left out"),
    "box_partly_outside": Kind("box partly outside the image", "annotation", "clipped"),
    "tiny_box": Kind("box with a side below one pixel", "annotation", "kept, if scaling makes it a pixel"),
    "bad_area": Kind("area that is not a positive number", "annotation", "kept, area computed"),
    "wrong_area": Kind("area larger than the box", "annotation", "kept"),
    "duplicate_annotation": Kind("annotation that equals an earlier one", "annotation", "kept"),
    "no_mask": Kind("no segmentation, where others have one", "annotation", "left out of mask training"),
    "bad_polygon": Kind("polygon without three proper points", "annotation", "polygon left out of mask training"),
    "bad_rle": Kind("run lengths (RLE) that are malformed", "annotation", "left out of mask training"),
    "rle_size": Kind("RLE whose size is not the image's", "annotation", "left out of mask training"),
    "rle_sum": Kind("RLE whose sum is not the image's area", "annotation", "left out of mask training"),
    "empty_mask": Kind("mask without area", "annotation", "left out of mask training"),
    "bad_keypoints": Kind("keypoints that are not x, y, v of each of the category's", "annotation", "not used"),
    "bad_visibility": Kind("visibility v that is not 0, 1 or 2", "annotation", "point not used"),
    "keypoint_outside": Kind("labelled keypoint outside the image", "annotation", "point not used"),
    "num_keypoints": Kind("num_keypoints that is not that of labelled ones", "annotation", "kept, counted anew"),
    "no_keypoint_names": Kind("keypoints without names in their category", "category", "kept, flips swap none"),
    "bad_keypoint_names": Kind("keypoint names or skeleton that are malformed", "category", "not used"),
    "keypoint_counts": Kind("other number of keypoints than the first category", "category", "refused for keypoints"),
    "duplicate_name": Kind("category name that an earlier category has", "category", "kept, a class of its own"),
    "no_objects": Kind("no usable object other than crowds", "file", "refused, in evaluation too"),
    "no_usable_mask": Kind("no object with a usable mask", "file", "refused for detectors of masks"),
    "no_usable_keypoint": Kind("no object with a labelled keypoint", "file", "refused for detectors of keypoints"),
}

EXAMPLES = 5
"""Number of problems of each kind that a report shows in detail."""

LOST_IMAGE = frozenset(
    {"image_entry", "duplicate_image_id", "path_outside", "missing_image", "label_file", "unreadable_image"}
)
"""Kinds that make an image unusable before it is decoded (``unreadable_image`` if its size is read from the file)."""


@dataclass
class DataReport:
    """The contents of a dataset and what is wrong with it."""

    annotation_files: list[str] = field(default_factory=list)
    images: int = 0
    annotations: int = 0
    crowds: int = 0
    masks: int = 0
    keypoints: int = 0
    """Number of usable annotations with a labelled keypoint."""
    images_without_objects: int = 0
    """Number of usable images without a usable annotation other than a crowd."""
    orphans: int = 0
    """Number of annotations that are left out because their image is; they are not counted as problems."""
    objects_per_category: dict[str, int] = field(default_factory=dict)
    """Category name to the number of usable annotations, including crowds."""
    problems: dict[str, list[int | str]] = field(default_factory=dict)
    """Kind (a key of ``KINDS``) to the ids of its images or annotations; ``#n`` is entry n, which has no id."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Kind to what is wrong with the first few, such as the path that was looked for. Not every kind has them."""
    places: Places | None = None
    """Where the annotations of the file that is being checked stand, if its format is not COCO's."""
    notes: list[str] = field(default_factory=list)
    """Facts to know that are not problems, a line each."""
    dropped_images: int = 0
    dropped_annotations: int = 0
    """Number of annotations that are left out, without orphans."""

    @property
    def ok(self) -> bool:
        """True if nothing is wrong."""
        return not self.problems

    def add(self, kind: str, entry_id: int | str, example: str | Callable[[], str] = "") -> None:
        """Add a problem of an image, annotation, category or file.

        Args:
            kind: A key of ``KINDS``.
            entry_id: The id of the entry.
            example: What is wrong with this one. A function is called for the first few of a kind only.
        """
        ids = self.problems.setdefault(kind, [])
        ids.append(entry_id)
        if len(ids) > EXAMPLES:
            return
        parts = [f"{KINDS[kind].of} {shown(entry_id)}", self._place(kind, entry_id)]
        parts.append(example if isinstance(example, str) else example())
        if any(parts[1:]):
            self.examples.setdefault(kind, []).append(": ".join(filter(None, parts)))

    def _place(self, kind: str, entry_id: int | str) -> str:
        """Return where an annotation stands, or nothing if its file is COCO's."""
        if self.places is None or KINDS[kind].of != "annotation" or not isinstance(entry_id, int):
            return ""
        return shown(self.places[entry_id])

    def table(self, examples: int = EXAMPLES) -> str:
        """Return an overview and a row for each kind of problem, with the first ids, as text of several lines.

        Below the rows are the examples of the kinds that have some, and the notes.
        """
        counts = ", ".join(
            f"{shown(name)} {count}".replace(" ", "\u00a0") for name, count in self.objects_per_category.items()
        )
        categories = textwrap.wrap(
            f"categories   {len(self.objects_per_category)}: {counts}", 110, subsequent_indent=" " * 13
        )
        lines = [
            f"annotations  {', '.join(self.annotation_files)}",
            f"images       {self.images} ({self.images_without_objects} without objects)",
            f"objects      {self.annotations} ({self.crowds} crowds, {self.masks or 'none'} with masks"
            f"{f', {self.keypoints} with keypoints' if self.keypoints else ''})",
            *(line.replace("\u00a0", " ") for line in categories),
            "",
        ]
        if self.ok:
            return "\n".join([*lines, "nothing is wrong", *(f"note: {note}" for note in self.notes)])
        rows = [("problem", "count", "in training", "ids")]
        for kind, ids in self._rows():
            listed = f"{KINDS[kind].of} {example_names(ids, len(ids), examples)}"
            rows.append((KINDS[kind].text, str(len(ids)), KINDS[kind].action, listed))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for text, count, action, ids_text in rows:
            lines.append(f"{text:<{widths[0]}}  {count:>{widths[1]}}  {action:<{widths[2]}}  {ids_text}")
        for kind, _ in self._rows():
            if kind in self.examples:
                lines += ["", f"{KINDS[kind].text}:", *(f"  {one}" for one in self.examples[kind][:examples])]
        return "\n".join([*lines, *([""] if self.notes else []), *(f"note: {note}" for note in self.notes)])

    def to_json(self) -> dict[str, Any]:
        """Return the report for programs, with all ids."""
        names = ("annotation_files", "images", "images_without_objects", "annotations", "crowds", "masks", "keypoints")
        return {
            **{name: getattr(self, name) for name in (*names, "objects_per_category", "notes")},
            "problems": [
                {
                    "kind": kind,
                    "text": KINDS[kind].text,
                    "of": KINDS[kind].of,
                    "in_training": KINDS[kind].action,
                    "ids": ids,
                    "examples": self.examples.get(kind, []),
                }
                for kind, ids in self._rows()
            ],
        }

    def summary(self) -> str:
        """Return one line on what training leaves out or clips; empty if that is nothing."""
        touched = [(kind, ids) for kind, ids in self._rows() if not KINDS[kind].action.startswith("kept")]
        if not touched:
            return ""
        kinds = "; ".join(f"{len(ids)} × {KINDS[kind].text}{self._first(kind)}" for kind, ids in touched)
        lost = f" and {self.orphans} on images left out" if self.orphans else ""
        return (
            f"{self.dropped_images} of {self.images} images and {self.dropped_annotations} of {self.annotations} "
            f"annotations{lost} ({kinds})"
        )

    def _first(self, kind: str) -> str:
        return f" ({self.examples[kind][0]})" if kind in self.examples else ""

    def _rows(self) -> Iterator[tuple[str, list[int | str]]]:
        return ((kind, self.problems[kind]) for kind in KINDS if kind in self.problems)
