"""Validate COCO JSON. ``vovnet check-data`` prints what is wrong; training and evaluation leave out the same things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vovnet.detection.config.schema import Category
from vovnet.detection.data import fields
from vovnet.detection.data.annotations import AnnotationFile, has_segmentation, name_keypoints, read_annotations
from vovnet.detection.data.checked_images import CheckedImage, CheckedObject, check_images, identity
from vovnet.detection.data.keypoints import Points, read_keypoints
from vovnet.detection.data.masks import mask_area, sound_segmentation
from vovnet.detection.data.report import DataReport
from vovnet.detection.progress import progress_bar
from vovnet.errors import shown
from vovnet.images.folder import ImageFolder
from vovnet.images.reading import ImageSizeError, UnreadableImage, read_image, upright_size

TOLERANCE = 0.5
"""A box may leave the image by this many pixels without being counted: files round to two decimals or whole pixels."""

SMALLEST = 0.01
"""A box with a side below this many pixels counts as empty."""

_LARGEST = 2**31
"""No coordinate of a box reaches this many pixels."""

_NEARLY_ALL = 0.9
"""Part of the boxes of a file that lie in 0..1 if the file has fractions of the image's size in place of pixels."""


def check_data(
    images: str | Path,
    annotations: str | Path,
    *,
    decode: bool = True,
    max_pixels: int | None = None,
    progress: bool = False,
) -> DataReport:
    """Look for everything that is wrong with a dataset.

    Args:
        images: The folder that ``file_name`` entries are relative to.
        annotations: A COCO JSON file.
        decode: Also decode every image. Without it, truncated files, wrong sizes and rotations are not found.
        max_pixels: Images with more pixels are unreadable. None is Pillow's limit.
        progress: Show a progress bar on stderr while images are decoded.

    Raises:
        InputError: The folder is missing, or the file is not COCO JSON at all.
    """
    content = read_annotations(annotations)
    report = DataReport([str(annotations)])
    keypoints = content.has_keypoints
    if keypoints:
        check_keypoint_names(content, report)
    checked = check_content(content, ImageFolder(images), content.has_masks, report, keypoints=keypoints)
    _check_names(content.categories, report)
    if keypoints and not report.keypoints:
        report.add("no_usable_keypoint", str(annotations))
    if not _has_objects(checked):
        boxes = check_content(content, ImageFolder(images), False, DataReport())
        report.add("no_usable_mask" if _has_objects(boxes) else "no_objects", str(annotations))
    elif not content.has_masks:
        report.notes.append("no annotation has a segmentation; a detector of masks cannot be trained on this file")
    for image in progress_bar(checked if decode else (), "check", "image", shown=progress):
        _check_pixels(image, max_pixels, report)
    return report


def _has_objects(images: Sequence[CheckedImage]) -> bool:
    return any(not one.crowd for image in images for one in image.objects)


def _check_pixels(image: CheckedImage, max_pixels: int | None, report: DataReport) -> None:
    """Decode an image and add what is wrong with it."""
    size = (image.width, image.height)
    try:
        read_image(image.path, size=size, max_pixels=max_pixels)
        if upright_size(image.path) != size:
            report.add("exif_stored", image.image_id, lambda: f"{shown(image.path)} is {size[0]}x{size[1]} as stored")
    except ImageSizeError as error:
        report.add("size_differs", image.image_id, str(error))
    except UnreadableImage as error:
        report.add("unreadable_image", image.image_id, str(error))


def _check_names(categories: Sequence[Category], report: DataReport) -> None:
    """Add names that two categories have, and mention those that differ in case or spaces alone."""
    first: dict[str, int] = {}
    alike: dict[str, Category] = {}
    for one in categories:
        number, name = one["id"], one["name"]
        if first.setdefault(name, number) != number:
            report.add("duplicate_name", number, f"{shown(name)!r} is also category {first[name]}")
            continue
        other = alike.setdefault("".join(name.split()).casefold(), one)
        if other is not one:
            report.notes.append(
                f"categories {other['id']} {shown(other['name'])!r} and {number} {shown(name)!r} "
                "differ in case or spaces alone"
            )


def check_keypoint_names(content: AnnotationFile, report: DataReport) -> None:
    """Add what is wrong with the keypoints that categories name. Those without names get numbers as names."""
    for number, problem in content.unsound_keypoints.items():
        report.add("bad_keypoint_names", number, problem)
    for number in name_keypoints(content):
        if number not in content.unsound_keypoints:
            report.add("no_keypoint_names", number)
    counts = [(one["id"], len(one["keypoints"])) for one in content.categories if "keypoints" in one]
    for number, count in counts:
        if count != counts[0][1]:
            report.add("keypoint_counts", number, f"{count}, and category {counts[0][0]} has {counts[0][1]}")


def check_content(
    content: AnnotationFile,
    folder: ImageFolder,
    masks: bool,
    report: DataReport,
    *,
    evaluation: bool = False,
    keypoints: bool = False,
) -> list[CheckedImage]:
    """Return the usable images and annotations of a file in its order, and add everything else to the report.

    Args:
        content: The file, as :func:`read_annotations` returns it.
        folder: The folder of the images. They are looked up but not opened, unless an entry has no width and height.
        masks: If True, an annotation needs a sound segmentation to be usable.
        report: The report to add to.
        evaluation: Keep masks that cover no pixel, which pycocotools counts among the objects to be found, and boxes
            without a sound mask.
        keypoints: If True, read keypoints. An annotation without sound ones is used as an object without any.
    """
    images, lost = check_images(content.images, folder, report)
    names = {category["id"]: category["name"] for category in content.categories}
    for name in names.values():
        report.objects_per_category.setdefault(name, 0)
    counts = {one["id"]: len(one.get("keypoints", ())) for one in content.categories} if keypoints else {}
    rules = _Rules(names, masks, evaluation, _are_normalized(content.annotations), report, counts)
    seen: set[int | str] = set()
    for position, entry in enumerate(content.annotations):
        report.annotations += 1
        if not isinstance(entry, dict):
            report.add("annotation_entry", f"#{position}")
            report.dropped_annotations += 1
            continue
        annotation_id = identity(entry, position)
        if annotation_id in seen:
            report.add("duplicate_annotation_id", annotation_id)
        seen.add(annotation_id)
        image_id = fields.whole_number(entry.get("image_id"))
        if image_id in lost:
            report.orphans += 1
            continue
        image = None if image_id is None else images.get(image_id)
        checked = rules.check(entry, annotation_id, image)
        if image is None or checked is None or (checked.empty_mask and not evaluation):
            report.dropped_annotations += 1
            continue
        image.objects.append(checked)
        report.objects_per_category[names[checked.category_id]] += 1
        report.crowds += checked.crowd
        report.masks += has_segmentation(entry)
        report.keypoints += checked.keypoints is not None and bool(checked.keypoints[:, 2].any())
    report.images_without_objects += sum(all(one.crowd for one in image.objects) for image in images.values())
    return list(images.values())


@dataclass(slots=True)
class _Rules:
    """The rules by which the annotations of one file are usable or not."""

    names: dict[int, str]
    """Category id to name."""
    masks: bool
    evaluation: bool
    normalized: bool
    """True if the boxes of the file are fractions of the image's size."""
    report: DataReport
    keypoints: dict[int, int]
    """Category id to the number of its keypoints; empty if keypoints are not read."""

    def check(
        self, entry: dict[str, Any], annotation_id: int | str, image: CheckedImage | None
    ) -> CheckedObject | None:
        """Return a usable annotation, or None after adding the reason to the report."""
        add = self.report.add
        if image is None:
            add("unknown_image", annotation_id, lambda: f"image_id {_value(entry, 'image_id')}")
            return None
        category_id = fields.whole_number(entry.get("category_id"))
        if category_id is None or category_id not in self.names:
            add("unknown_category", annotation_id, lambda: f"category_id {_value(entry, 'category_id')}")
            return None
        crowd = False if entry.get("iscrowd") is None else fields.flag(entry["iscrowd"])
        if crowd is None:
            add("bad_iscrowd", annotation_id, lambda: f"iscrowd {_value(entry, 'iscrowd')}")
            return None
        box = fields.box(entry.get("bbox"))
        problem = "bad_box" if box is None else self._box_problem(box, image)
        if problem:
            add(problem, annotation_id)
        if box is None or problem not in (None, "box_partly_outside", "tiny_box"):
            return None
        segmentation, area, mask_problem = None, fields.area(entry.get("area")), None
        self._check_the_rest(entry, annotation_id, area)
        if self.masks or area is None:
            segmentation, mask_problem = sound_segmentation(entry.get("segmentation"), image.height, image.width)
        if self.masks and mask_problem:
            add(mask_problem, annotation_id)
            # Evaluation keeps the box of an object without a sound mask.
            if segmentation is None and not self.evaluation:
                return None
        if area is None:
            area = mask_area(segmentation, image.height, image.width) if segmentation else box[2] * box[3]
        return CheckedObject(
            category_id=category_id,
            box=box,
            area=area,
            crowd=crowd,
            segmentation=segmentation if self.masks else None,
            annotation_id=annotation_id,
            empty_mask=self.masks and mask_problem == "empty_mask",
            keypoints=self._keypoints(entry, category_id, annotation_id, image) if self.keypoints else None,
        )

    def _keypoints(
        self, entry: dict[str, Any], category_id: int, annotation_id: int | str, image: CheckedImage
    ) -> Points | None:
        """Return an annotation's keypoints after adding what is wrong with them."""
        value, size = entry.get("keypoints"), (image.width, image.height)
        points, problems = read_keypoints(value, self.keypoints[category_id], size, TOLERANCE)
        for kind in problems:
            self.report.add(kind, annotation_id, lambda: _keypoints_example(value, self.keypoints[category_id]))
        stated = entry.get("num_keypoints")
        labelled = 0 if points is None else int((points[:, 2] > 0).sum())
        if stated is not None and not problems and fields.whole_number(stated) != labelled:
            self.report.add("num_keypoints", annotation_id, lambda: f"{shown(stated)}, and {labelled} are labelled")
        return points

    def _box_problem(self, box: fields.Box, image: CheckedImage) -> str | None:
        if self.normalized and _in_unit_square(box) and max(image.width, image.height) > 1:
            return "normalized_box"
        return box_problem(box, image.width, image.height)

    def _check_the_rest(self, entry: dict[str, Any], annotation_id: int | str, area: float | None) -> None:
        """Add what is wrong with the fields that an annotation can do without."""
        if entry.get("id") is not None and fields.whole_number(entry["id"]) is None:
            self.report.add("annotation_id", annotation_id)
        if area is None and entry.get("area") is not None:
            self.report.add("bad_area", annotation_id, lambda: f"area {_value(entry, 'area')}")
        if entry.get("ignore") is not None and fields.flag(entry["ignore"]) is not False:
            self.report.add("ignore_set", annotation_id, lambda: f"ignore {_value(entry, 'ignore')}")


def _keypoints_example(value: Any, count: int) -> str:
    if isinstance(value, list) and len(value) != 3 * count:
        return f"{len(value)} numbers where {3 * count} are expected"
    return shown(value)


def box_problem(box: fields.Box, width: int, height: int) -> str | None:
    """Return the kind of problem of a box (x, y, width, height in pixels) in an image of this size, or None."""
    if max(box) >= _LARGEST or min(box) <= -_LARGEST:
        return "bad_box"
    x, y, w, h = box
    if min(w, h) < SMALLEST:
        return "empty_box"
    if min(x + w, width) - max(x, 0) < SMALLEST or min(y + h, height) - max(y, 0) < SMALLEST:
        return "box_outside"
    if max(-x, -y, x + w - width, y + h - height) > TOLERANCE:
        return "box_partly_outside"
    return "tiny_box" if min(w, h) < 1 else None


def _in_unit_square(box: fields.Box) -> bool:
    return min(box) >= 0 and max(box) <= 1


def _are_normalized(annotations: Sequence[Any]) -> bool:
    """True if nearly all boxes of a file lie in 0..1, and not all of their numbers are whole."""
    inside, outside, fractions = 0, 0, False
    for entry in annotations:
        box = fields.box(entry.get("bbox")) if isinstance(entry, dict) else None
        if box is None:
            continue
        if _in_unit_square(box):
            inside += 1
            fractions = fractions or not all(number.is_integer() for number in box)
        else:
            outside += 1
            if outside > (1 - _NEARLY_ALL) * len(annotations):
                return False
    return fractions and inside >= _NEARLY_ALL * (inside + outside)


def _value(entry: dict[str, Any], key: str) -> str:
    """Return a field as JSON writes it, but short."""
    value = entry.get(key)
    return f'"{shown(value)}"' if isinstance(value, str) else shown(value)
