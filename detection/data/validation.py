"""Read and validate COCO JSON. ``vovnet check-data`` prints what is wrong; training leaves out the same things."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from vovnet.detection.config.schema import Category
from vovnet.detection.data.image_folder import ImageFolder, OutsideRoot
from vovnet.detection.data.images import ImageSizeError, UnreadableImage, read_image, upright_size
from vovnet.detection.data.masks import Segmentation, mask_area, sound_segmentation
from vovnet.detection.data.report import DataReport
from vovnet.detection.progress import progress_bar
from vovnet.errors import InputError, is_text, reason, shown

TOLERANCE = 0.5
"""A box may leave the image by this many pixels without being counted: files round to two decimals or whole pixels."""

SMALLEST = 0.01
"""A box with a side below this many pixels counts as empty."""

_LARGEST = 2**31
"""No coordinate of a box reaches this many pixels."""


@dataclass(slots=True)
class AnnotationFile:
    """The three lists of a COCO JSON file. Images and annotations are as in the file, categories are validated."""

    images: list[Any]
    annotations: list[Any]
    categories: list[Category]

    @property
    def has_masks(self) -> bool:
        """True if any annotation has a segmentation."""
        return any(isinstance(entry, dict) and entry.get("segmentation") for entry in self.annotations)


@dataclass(slots=True)
class CheckedObject:
    """A usable annotation."""

    category_id: int
    box: tuple[float, float, float, float]
    """x, y, width, height in pixels as in the file, not clipped."""
    area: float
    crowd: bool
    segmentation: Segmentation | None
    """Sound polygons or run lengths; None if masks were not asked for or there is none."""
    annotation_id: int | str
    empty_mask: bool = False


@dataclass(slots=True)
class CheckedImage:
    """A usable image with its usable annotations."""

    image_id: int
    file_name: str
    path: str
    width: int
    height: int
    objects: list[CheckedObject] = field(default_factory=list)


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
        decode: Also decode every image. Without it, truncated files and wrong sizes are not found.
        max_pixels: Images with more pixels are unreadable. None is Pillow's limit.
        progress: Show a progress bar on stderr while images are decoded.

    Raises:
        InputError: The folder is missing, or the file is not COCO JSON at all.
    """
    content = read_annotations(annotations)
    report = DataReport([str(annotations)])
    checked = check_content(content, ImageFolder(images), content.has_masks, report)
    for image in progress_bar(checked if decode else (), "check", "image", shown=progress):
        try:
            read_image(image.path, size=(image.width, image.height), max_pixels=max_pixels)
        except ImageSizeError:
            report.add("size_differs", image.image_id)
        except UnreadableImage:
            report.add("unreadable_image", image.image_id)
    return report


def read_annotations(path: str | Path) -> AnnotationFile:
    """Read a COCO JSON file and validate its form and its categories, but not the images and annotations.

    Raises:
        InputError: The file as a whole cannot be used.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file)
    except OSError as error:
        raise InputError(f"{path}: annotations cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:  # ValueError includes integers of thousands of digits.
        raise InputError(f"{path}: is not valid JSON ({reason(error)})") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: expected a COCO JSON object with images, annotations and categories, got {_type(content)}"
        )
    for key in ("images", "annotations", "categories"):
        if key not in content:
            raise InputError(f"{path}: key '{key}' is missing (COCO JSON has images, annotations and categories)")
        if not isinstance(content[key], list):
            raise InputError(f"{path}: key '{key}' must be a list, got {_type(content[key])}")
        if key != "annotations" and not content[key]:
            raise InputError(f"{path}: empty dataset: key '{key}' is an empty list")
    return AnnotationFile(content["images"], content["annotations"], _check_categories(content["categories"], path))


def _check_categories(categories: Sequence[Any], path: str | Path) -> list[Category]:
    names: dict[int, str] = {}
    for position, entry in enumerate(categories):
        where = f"{path}: categories[{position}]"
        if not isinstance(entry, dict) or not _is_whole(entry.get("id")) or not is_text(entry.get("name")):
            raise InputError(
                f"{where}: expected an object with a whole-number 'id' and a text 'name', got {shown(entry)}"
            )
        number, name = int(entry["id"]), entry["name"]
        if names.setdefault(number, name) != name:
            raise InputError(f"{where}: id {number} is both '{shown(names[number])}' and '{shown(name)}'")
    return [{"id": number, "name": name} for number, name in names.items()]


def check_content(
    content: AnnotationFile, folder: ImageFolder, masks: bool, report: DataReport, *, evaluation: bool = False
) -> list[CheckedImage]:
    """Return the usable images and annotations of a file in its order, and add everything else to the report.

    Args:
        content: The file, as :func:`read_annotations` returns it.
        folder: The folder of the images. They are looked up but not opened, unless an entry has no width and height.
        masks: If True, an annotation needs a sound segmentation to be usable.
        report: The report to add to.
        evaluation: Keep masks that cover no pixel, which pycocotools counts among the objects to be found, and boxes
            without a sound mask.
    """
    images, lost = _check_images(content.images, folder, report)
    names = {category["id"]: category["name"] for category in content.categories}
    for name in names.values():
        report.objects_per_category.setdefault(name, 0)
    seen: set[int | str] = set()
    for position, entry in enumerate(content.annotations):
        report.annotations += 1
        if not isinstance(entry, dict):
            report.add("annotation_entry", f"#{position}")
            report.dropped_annotations += 1
            continue
        annotation_id = _identity(entry, position)
        if annotation_id in seen:
            report.add("duplicate_annotation_id", annotation_id)
        seen.add(annotation_id)
        image_id = _key(entry.get("image_id"))
        if image_id in lost:
            report.orphans += 1
            continue
        image = None if image_id is None else images.get(image_id)
        checked = _check_annotation(entry, annotation_id, image, names, masks, report, evaluation)
        if image is None or checked is None or (checked.empty_mask and not evaluation):
            report.dropped_annotations += 1
            continue
        image.objects.append(checked)
        report.objects_per_category[names[checked.category_id]] += 1
        report.crowds += checked.crowd
        report.masks += bool(entry.get("segmentation"))
    report.images_without_objects += sum(all(one.crowd for one in image.objects) for image in images.values())
    return list(images.values())


def _check_images(
    entries: Sequence[Any], folder: ImageFolder, report: DataReport
) -> tuple[dict[int, CheckedImage], set[int | None]]:
    """Return the usable images by id, and the ids of unusable ones."""
    images: dict[int, CheckedImage] = {}
    lost: set[int | None] = set()
    for position, entry in enumerate(entries):
        report.images += 1
        found = _check_image(entry, images, folder)
        if isinstance(found, CheckedImage):
            images[found.image_id] = found
            if _stated_size(entry) is None:
                report.add("no_size", found.image_id)
            continue
        report.dropped_images += 1
        report.add(found, _identity(entry, position))
        if isinstance(entry, dict):
            lost.add(_key(entry.get("id")))
    return images, lost - images.keys() - {None}


def _check_image(entry: Any, images: dict[int, CheckedImage], folder: ImageFolder) -> CheckedImage | str:
    """Return a usable image, or the kind of problem that makes it unusable."""
    if not isinstance(entry, dict) or not _is_whole(entry.get("id")) or not is_text(entry.get("file_name")):
        return "image_entry"
    if entry["id"] in images:
        return "duplicate_image_id"
    try:
        path = folder.find(entry["file_name"])
    except OutsideRoot:
        return "path_outside"
    if path is None:
        return "missing_image"
    try:
        width, height = _stated_size(entry) or upright_size(path)
    except UnreadableImage:
        return "unreadable_image"
    return CheckedImage(int(entry["id"]), entry["file_name"], path, width, height)


def _check_annotation(
    entry: dict[str, Any],
    annotation_id: int | str,
    image: CheckedImage | None,
    names: dict[int, str],
    masks: bool,
    report: DataReport,
    evaluation: bool,
) -> CheckedObject | None:
    """Return a usable annotation, or None after adding the reason to the report."""
    if image is None:
        report.add("unknown_image", annotation_id)
        return None
    category_id = _key(entry.get("category_id"))
    if category_id is None or category_id not in names:
        report.add("unknown_category", annotation_id)
        return None
    crowd = entry.get("iscrowd") or 0
    if crowd not in (0, 1):
        report.add("bad_iscrowd", annotation_id)
        return None
    problem = box_problem(entry.get("bbox"), image.width, image.height)
    if problem:
        report.add(problem, annotation_id)
        if problem != "box_partly_outside":
            return None
    x, y, width, height = entry["bbox"]
    segmentation = None
    area = _area(entry.get("area"))
    if masks or area is None:
        segmentation, problem = sound_segmentation(entry.get("segmentation"), image.height, image.width)
        if masks and problem:
            report.add(problem, annotation_id)
            # Evaluation keeps the box of an object without a sound mask.
            if segmentation is None and not evaluation:
                return None
    empty_mask = masks and problem == "empty_mask"
    if area is None:
        area = mask_area(segmentation, image.height, image.width) if segmentation else width * height
    return CheckedObject(
        category_id=category_id,
        box=(float(x), float(y), float(width), float(height)),
        area=area,
        crowd=bool(crowd),
        segmentation=segmentation if masks else None,
        annotation_id=annotation_id,
        empty_mask=empty_mask,
    )


def _area(area: object) -> float | None:
    """Return an annotation's own area in pixels if it is a usable number."""
    return float(area) if _is_number(area) and 0 < area < 2**63 else None


def box_problem(box: object, width: int, height: int) -> str | None:
    """Return the kind of problem of a box (x, y, width, height in pixels) in an image of this size, or None."""
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(number) for number in box):
        return "bad_box"
    if not all(-_LARGEST < number < _LARGEST for number in box):  # False for NaN
        return "bad_box"
    x, y, w, h = box
    if min(w, h) < SMALLEST:
        return "empty_box"
    if min(x + w, width) - max(x, 0) < SMALLEST or min(y + h, height) - max(y, 0) < SMALLEST:
        return "box_outside"
    overhang = max(-x, -y, x + w - width, y + h - height)
    return "box_partly_outside" if overhang > TOLERANCE else None


def _stated_size(entry: dict[str, Any]) -> tuple[int, int] | None:
    """Return the width and height of an image entry, or None if it has none that an image can have."""
    width, height = entry.get("width"), entry.get("height")
    if not _is_whole(width) or not _is_whole(height) or min(width, height) < 1:
        return None
    # pycocotools counts the pixels of an image in 32 bits.
    return (int(width), int(height)) if max(width, height) < 2**31 and width * height < 2**32 else None


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> TypeGuard[int | float]:
    """True if a value is a whole number that fits 64 bits, as ids must."""
    return _is_number(value) and abs(value) < 2**63 and (isinstance(value, int) or value.is_integer())


def _key(value: object) -> int | None:
    """Return an id to look up, or None for a value that cannot be one."""
    return int(value) if _is_whole(value) else None


def _identity(entry: Any, position: int) -> int | str:
    """Return the id of an entry for the report, or its position if it has none."""
    value = entry.get("id") if isinstance(entry, dict) else None
    return value if isinstance(value, int | str) else f"#{position}"


def _type(value: object) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number")
