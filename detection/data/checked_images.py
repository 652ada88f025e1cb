"""The images that a COCO JSON file lists, as far as they can be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

from vovnet.detection.data import fields
from vovnet.detection.data.keypoints import Points
from vovnet.detection.data.masks import Segmentation
from vovnet.detection.data.missing import looked_for
from vovnet.detection.data.report import DataReport
from vovnet.errors import shown
from vovnet.images.folder import ImageFolder, OutsideRoot
from vovnet.images.reading import UnreadableImage, upright_size

_NARROW = 200
"""Images more than this many times as long as wide are too narrow for some detectors."""


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
    keypoints: Points | None = None
    """None if keypoints were not asked for or there are none."""


@dataclass(slots=True)
class CheckedImage:
    """A usable image with its usable annotations."""

    image_id: int
    file_name: str
    path: str
    width: int
    height: int
    objects: list[CheckedObject] = field(default_factory=list)


def check_images(
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
            if fields.image_size(entry) is None:
                report.add("no_size", found.image_id)
            if max(found.width, found.height) > _NARROW * min(found.width, found.height):
                report.add("narrow_image", found.image_id)
            continue
        report.dropped_images += 1
        report.add(found, identity(entry, position), partial(_described, entry, folder))
        if isinstance(entry, dict):
            lost.add(fields.whole_number(entry.get("id")))
    return images, lost - images.keys() - {None}


def _described(entry: Any, folder: ImageFolder) -> str:
    """Return where the image of an entry was looked for, or the entry if it has no name."""
    names = fields.file_names(entry) if isinstance(entry, dict) else []
    return looked_for(folder.root, names[0]) if names else shown(entry)


def _check_image(entry: Any, images: dict[int, CheckedImage], folder: ImageFolder) -> CheckedImage | str:
    """Return a usable image, or the kind of problem that makes it unusable."""
    image_id = fields.whole_number(entry.get("id")) if isinstance(entry, dict) else None
    names = [] if image_id is None else fields.file_names(entry)
    if image_id is None or not names:
        return "image_entry"
    if image_id in images:
        return "duplicate_image_id"
    try:
        name, path = next(((name, path) for name in names if (path := folder.find(name)) is not None), ("", ""))
    except OutsideRoot:
        return "path_outside"
    if not name:
        return "missing_image"
    try:
        width, height = fields.image_size(entry) or upright_size(path)
    except UnreadableImage:
        return "unreadable_image"
    return CheckedImage(image_id, name, path, width, height)


def identity(entry: Any, position: int) -> int | str:
    """Return the id of an entry for the report, or its position if it has none."""
    value = entry.get("id") if isinstance(entry, dict) else None
    if isinstance(value, float):
        value = fields.whole_number(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else f"#{position}"


def labelled_keypoints(image: CheckedImage) -> int:
    """Return the number of labelled keypoints of an image's objects other than crowds."""
    return sum(
        int((one.keypoints[:, 2] > 0).sum()) for one in image.objects if not one.crowd and one.keypoints is not None
    )


def renumber(images: Sequence[CheckedImage], taken: set[int]) -> None:
    """Give new ids to the images whose ids are taken."""
    used = taken.union(image.image_id for image in images)
    highest = max(used, default=0)
    start = highest + 1 if highest + len(images) < 2**63 else 1
    free = (number for number in count(start) if number not in used)
    for image in images:
        if image.image_id in taken:
            image.image_id = next(free)


def repeated_objects(image: CheckedImage) -> list[CheckedObject]:
    """Return the objects of an image that equal an earlier one: the same category, box, mask and keypoints."""
    seen: set[tuple[object, ...]] = set()
    repeated = []
    for one in image.objects:
        points = None if one.keypoints is None else one.keypoints.tobytes()
        key = (one.category_id, one.box, one.crowd, repr(one.segmentation), points)
        if key in seen:
            repeated.append(one)
        seen.add(key)
    return repeated


def has_wrong_area(one: CheckedObject) -> bool:
    """Return True if an object has a larger area than its box with a border of half a pixel."""
    width, height = one.box[2:]
    return one.area > 1.01 * (width + 1) * (height + 1)
