"""``vovnet check-data --fix``: a copy of a dataset, as COCO JSON, without what the checks find wrong and can mend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vovnet.detection.config.sources import DataSource
from vovnet.detection.conversion.dataset import Split, read_dataset
from vovnet.detection.conversion.writing import split_titles, write_dataset
from vovnet.detection.data import fields
from vovnet.detection.data.checked_images import CheckedImage, CheckedObject, has_wrong_area, repeated_objects
from vovnet.detection.data.duplicates import fingerprint
from vovnet.detection.data.masks import mask_area
from vovnet.detection.data.report import KINDS
from vovnet.detection.data.sources import SourceFile
from vovnet.detection.data.validation import read_for_checks
from vovnet.detection.progress import progress_bar
from vovnet.errors import InputError, shown
from vovnet.images.folder import OutsideRoot
from vovnet.images.reading import ImageSizeError, UnreadableImage, upright_size

CHANGES_FILE = "changes.txt"
"""The file in the mended copy with a line for each change."""

_ORDER = {"test": 0, "val": 1}
"""The splits that keep an image that another one has, too; what is trained on comes last."""

_STILL_THERE = {"exif_stored", "narrow_image", "tiny_box", "duplicate_name", "no_mask", "no_keypoint_names"}
"""Kinds of problems that a copy has, too: nothing is wrong enough to be changed, or nobody knows how."""


def fix_data(
    title: str,
    splits: Mapping[str, Sequence[DataSource]],
    output: str | Path,
    *,
    link: bool = False,
    overwrite: bool = False,
    max_pixels: int | None = None,
    progress: bool = False,
) -> str:
    """Write a mended copy of a dataset as COCO JSON.

    Boxes are clipped to their images. Empty boxes, malformed and repeated annotations are dropped, and so are images
    that are missing, unreadable or outside of the folder. Wrong areas are computed anew, and wrong widths and heights
    are read from the images; an image whose labels do not follow its EXIF rotation is written without it. Of an image
    that two splits have, pixel by pixel, that in ``train`` is dropped, or else that in ``val``.

    Args:
        title: The format of the files, for people.
        splits: The sources of each split.
        output: The folder to write. It also gets ``changes.txt``.
        link: Make hard links to the images in place of copies where the file system can.
        overwrite: Replace what the folder has of the same names.
        max_pixels: Images with more pixels are unreadable. None is Pillow's limit.
        progress: Show progress bars on stderr.

    Returns:
        What was changed, as text of several lines.

    Raises:
        InputError: The labels cannot be used as a whole, nothing is left, or the folder is not empty.
    """
    changes: list[str] = []

    def look(file: SourceFile) -> None:
        changes.extend(_right_sizes(file))

    dataset = read_dataset(title, splits, look=look)
    elsewhere: dict[bytes, str] = {}
    for split in sorted(dataset.splits, key=lambda one: _ORDER.get(one.name, len(_ORDER))):
        changes += _reported(split)
        kept, prints, leaked = [], dict[bytes, str](), False
        for image in progress_bar(split.images, "decode", "image", shown=progress):
            try:
                pixels = read_for_checks(image.path, (image.width, image.height), max_pixels)
            except (UnreadableImage, ImageSizeError) as error:
                changes.append(f"dropped image: {error}")
                continue
            found = fingerprint(pixels, split.name, image.path).pixels
            if found in elsewhere:
                leaked = True
                changes.append(f"dropped image: of another split, too: {shown(image.path)} is {elsewhere[found]}")
                continue
            prints[found] = shown(image.path)
            kept.append(image)
            changes += _mend_objects(image)
        elsewhere |= prints
        if leaked and not kept:
            raise InputError(
                f"'{split.name}': every image of this split is in another, too; mend it alone (--split {split.name})"
            )
        split.images = kept
    if not any(one.images for one in dataset.splits):
        raise InputError(
            f"nothing usable is left of the data ({len(changes)} problems); `vovnet check-data` lists them"
        )
    files = {CHANGES_FILE: "".join(f"{line}\n" for line in changes)}
    written = write_dataset(
        dataset, output, "coco", link=link, overwrite=overwrite, progress=progress, more_files=files
    )
    lines = [f"mended copy in '{output}': {written.images} images, {written.objects} objects, {len(changes)} changes"]
    lines += [f"  {line}" for line in split_titles(dataset)]
    return "\n".join([*lines, *_counted(changes)])


def _right_sizes(file: SourceFile) -> list[str]:
    """Replace widths and heights that are neither the stored nor the upright image's by those of the image."""
    changes = []
    for entry in file.content.images:
        stated = fields.image_size(entry) if isinstance(entry, dict) else None
        for name in fields.file_names(entry)[:1] if stated is not None else ():
            try:
                path = file.folder.find(name)
                size = upright_size(path) if path is not None else stated
            except (OutsideRoot, UnreadableImage):
                continue
            if size is not None and sorted(size) != sorted(stated or ()):
                entry["width"], entry["height"] = size
                changes.append(
                    f"size from the file: {shown(name)} is {size[0]}x{size[1]}, and the labels said {stated}"
                )
    return changes


def _reported(split: Split) -> list[str]:
    """Return a line for each problem that the checks left out or clipped."""
    lines = []
    for kind, ids in split.report.problems.items():
        if kind in _STILL_THERE or KINDS[kind].of not in ("image", "annotation"):
            continue
        texts = dict(enumerate(split.report.examples.get(kind, [])))
        action = KINDS[kind].action
        verb = "clipped" if action.startswith("clipped") else "mended" if action.startswith("kept") else "dropped"
        for position, number in enumerate(ids):
            where = texts.get(position, f"{KINDS[kind].of} {shown(number)}")
            lines.append(f"{verb} {KINDS[kind].of}: {KINDS[kind].text}: {split.name}{' ' if split.name else ''}{where}")
    return lines


def _mend_objects(image: CheckedImage) -> list[str]:
    """Drop repeated objects of an image and compute wrong areas."""
    changes = []
    repeated = {id(one) for one in repeated_objects(image)}
    changes += [f"dropped annotation: repeated: {shown(image.file_name)}"] * len(repeated)
    objects = []
    for one in image.objects:
        if id(one) in repeated:
            continue
        if has_wrong_area(one):
            area = _area(one, image)
            changes.append(f"area computed: annotation {shown(one.annotation_id)}: {one.area:.6g} is now {area:.6g}")
            one = replace(one, area=area)
        objects.append(one)
    image.objects = objects
    return changes


def _area(one: CheckedObject, image: CheckedImage) -> float:
    if one.segmentation is not None and not one.empty_mask:
        return float(mask_area(one.segmentation, image.height, image.width))
    return one.box[2] * one.box[3]


def _counted(changes: Sequence[str]) -> list[str]:
    """Return how often each kind of change was made, and the first of them."""
    kinds: dict[str, list[str]] = {}
    for line in changes:
        verb, _, rest = line.partition(": ")
        kind = f"{verb}: {rest.partition(': ')[0]}" if verb.startswith(("dropped ann", "clipped", "mended")) else verb
        kinds.setdefault(kind, []).append(line)
    return [f"{len(lines)} × {kind}, such as: {lines[0]}" for kind, lines in kinds.items()]
