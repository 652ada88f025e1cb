"""Validate COCO JSON. ``vovnet check-data`` prints what is wrong; training and evaluation leave out the same things."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from vovnet.detection.config.categories import Category
from vovnet.detection.config.sources import DataSource
from vovnet.detection.data import fields
from vovnet.detection.data.annotation_rules import AnnotationRules, are_normalized
from vovnet.detection.data.annotations import AnnotationFile, has_segmentation, name_keypoints
from vovnet.detection.data.checked_images import CheckedImage, check_images, identity
from vovnet.detection.data.report import KINDS, DataReport
from vovnet.detection.data.sources import SourceFile, read_source
from vovnet.detection.progress import progress_bar
from vovnet.errors import shown
from vovnet.images.arrays import read_array, viewable
from vovnet.images.channels import many_channels
from vovnet.images.folder import ImageFolder
from vovnet.images.reading import ImageSizeError, UnreadableImage, read_image, upright_size


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
    source = DataSource(images=str(images), annotations=str(annotations))
    return check_source(source, decode=decode, max_pixels=max_pixels, progress=progress)[0]


def check_source(
    source: DataSource, *, decode: bool = True, max_pixels: int | None = None, progress: bool = False
) -> list[DataReport]:
    """Look for everything that is wrong with the data of a source, of any format.

    Arguments are those of :func:`check_data`.

    Returns:
        A report for each file; most sources have one.

    Raises:
        InputError: The data as a whole cannot be used.
    """
    return [
        check_file(file, decode=decode, max_pixels=max_pixels, progress=progress)[0] for file in read_source(source)
    ]


def check_file(
    file: SourceFile,
    *,
    decode: bool = True,
    max_pixels: int | None = None,
    progress: bool = False,
    look: Callable[[CheckedImage, Image.Image], object] | None = None,
) -> tuple[DataReport, list[CheckedImage]]:
    """Return the report of a file and its usable images.

    Arguments are those of :func:`check_data`; ``look`` is called with each image that could be decoded, in RGB.
    """
    content, name = file.content, file.name
    report = DataReport([name], notes=list(content.notes))
    keypoints = content.has_keypoints
    if keypoints:
        check_keypoint_names(content, report)
    checked = check_content(content, file.folder, content.has_masks, report, keypoints=keypoints)
    _check_names(content.categories, report)
    if keypoints and not report.keypoints:
        report.add("no_usable_keypoint", name)
    if not _has_objects(checked):
        boxes = check_content(content, file.folder, False, DataReport())
        report.add("no_usable_mask" if _has_objects(boxes) else "no_objects", name)
    elif not content.has_masks:
        report.notes.append("no annotation has a segmentation; a detector of masks cannot be trained on this file")
    for image in progress_bar(checked if decode else (), "check", "image", shown=progress):
        pixels = _check_pixels(image, max_pixels, report)
        if look is not None and pixels is not None:
            look(image, pixels)
    return report, checked


def _has_objects(images: Sequence[CheckedImage]) -> bool:
    return any(not one.crowd for image in images for one in image.objects)


def read_for_checks(path: str, size: tuple[int, int], max_pixels: int | None) -> Image.Image:
    """Return an image in RGB; of one with more channels what people can look at.

    Raises:
        InputError: As for :func:`read_image`.
    """
    channels = many_channels(path)
    if channels is None:
        return read_image(path, size=size, max_pixels=max_pixels)
    return viewable(read_array(path, channels, size, max_pixels=max_pixels)).convert("RGB")


def _check_pixels(image: CheckedImage, max_pixels: int | None, report: DataReport) -> Image.Image | None:
    """Decode an image and add what is wrong with it. Returns the image if it could be decoded."""
    size = (image.width, image.height)
    try:
        pixels = read_for_checks(image.path, size, max_pixels)
        if upright_size(image.path) != size:
            report.add("exif_stored", image.image_id, lambda: f"{shown(image.path)} is {size[0]}x{size[1]} as stored")
        return pixels
    except ImageSizeError as error:
        report.add("size_differs", image.image_id, str(error))
    except UnreadableImage as error:
        report.add("unreadable_image", image.image_id, str(error))
    return None


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
    report.places = content.places
    for problem in content.problems:
        report.add(*problem)
        of_image = KINDS[problem.kind].of == "image"
        report.images += of_image
        report.dropped_images += of_image
        report.annotations += not of_image
        report.dropped_annotations += not of_image
    images, lost = check_images(content.images, folder, report)
    names = {category["id"]: category["name"] for category in content.categories}
    for name in names.values():
        report.objects_per_category.setdefault(name, 0)
    counts = {one["id"]: len(one.get("keypoints", ())) for one in content.categories} if keypoints else {}
    rules = AnnotationRules(names, masks, evaluation, are_normalized(content.annotations), report, counts)
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
