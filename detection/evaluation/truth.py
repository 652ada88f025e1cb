"""The ground truth for pycocotools: a COCO dictionary whose fields are read by value and completed."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vovnet.detection.data import fields
from vovnet.detection.data.masks import sound_segmentation, to_rle
from vovnet.errors import InputError, install_advice, shown

if TYPE_CHECKING:
    from pycocotools.coco import COCO

IouType = Literal["bbox", "segm", "keypoints"]


def coco_ground_truth(ground_truth: Mapping[str, Any], iou_type: IouType, keypoints: int = 0) -> COCO:
    """Return a pycocotools ``COCO`` of copies of the annotations, with every key that ``COCOeval`` reads.

    Annotations get new ids if one is missing, no whole number, repeated or 0 (``COCOeval`` takes a match with id 0 for
    no match). For ``segm``, an object without a usable mask becomes a crowd region of its box, which ``COCOeval``
    ignores. For ``keypoints``, the number of labelled points is counted, and an object without any is ignored. As in
    pycocotools, annotations of other images and categories than the listed ones do not count.

    Args:
        ground_truth: A COCO dictionary.
        iou_type: What is evaluated.
        keypoints: The number of keypoints of an object, for ``keypoints``.

    Raises:
        InputError: An entry has a value that its field cannot have, or two images or categories have the same id.
    """
    coco = empty_coco()
    images = _by_id(ground_truth["images"], "image")
    known = _by_id(ground_truth["categories"], "category")
    annotations = []
    for position, annotation in enumerate(ground_truth["annotations"]):
        where = f"annotations[{position}]"
        image_id = _read(annotation, "image_id", fields.whole_number, "a whole number", where)
        category_id = _read(annotation, "category_id", fields.whole_number, "a whole number", where)
        if image_id in images and category_id in known:
            known_ids = {"image_id": image_id, "category_id": category_id}
            entry = _complete({**annotation, **known_ids}, images[image_id], iou_type, where)
            if iou_type == "keypoints":
                entry |= _keypoints_of(annotation, keypoints, where)
            annotations.append(entry)
    ids = [fields.whole_number(_plain(annotation.get("id"))) for annotation in annotations]
    if len(set(ids)) != len(ids) or not {0, None}.isdisjoint(ids):
        ids = list(range(1, len(annotations) + 1))
    for annotation, number in zip(annotations, ids, strict=True):
        annotation["id"] = number
    coco.dataset = {"images": list(images.values()), "annotations": annotations, "categories": list(known.values())}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _complete(annotation: dict[str, Any], image: Mapping[str, Any], iou_type: IouType, where: str) -> dict[str, Any]:
    """Return an annotation of pycocotools after reading its fields by value."""
    from pycocotools import mask as coco_mask

    read = {
        key: None if annotation.get(key) is None else _read(annotation, key, reader, expected, where)
        for key, reader, expected in _READERS
    }
    filled = annotation | {key: value for key, value in read.items() if value is not None}
    filled["iscrowd"] = int(read["iscrowd"] or False)
    if iou_type == "segm":
        width, height = _size_of(image)
        usable, _ = sound_segmentation(filled.get("segmentation"), height, width)
        if usable is None:
            x, y, w, h = _box_of(filled, where)
            usable = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            filled["iscrowd"] = 1
        rle = to_rle(usable, height, width)
        filled["segmentation"] = rle
        if read["bbox"] is None:
            filled["bbox"] = coco_mask.toBbox(rle).tolist()
        if read["area"] is None:
            filled["area"] = float(coco_mask.area(rle))
    else:
        *_, w, h = _box_of(filled, where)
        if read["area"] is None:
            filled["area"] = w * h
    return filled


def _keypoints_of(annotation: Mapping[str, Any], count: int, where: str) -> dict[str, Any]:
    """Return the keypoints of an annotation, or zeros, and the number of those that are labelled."""
    flat = annotation.get("keypoints")
    if flat is None or len(flat) == 0:
        return {"keypoints": [0.0] * (3 * count), "num_keypoints": 0}
    try:
        numbers = np.asarray(flat, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != (3 * count,) or not np.isfinite(numbers).all():
        raise InputError(
            f"ground truth: {where}: keypoints: expected x, y, v of {count} points, as the detector has, got "
            f"{shown(flat)}"
        )
    return {"keypoints": numbers.tolist(), "num_keypoints": int((numbers[2::3] > 0).sum())}


def _box_of(annotation: dict[str, Any], where: str) -> list[float]:
    if annotation.get("bbox") is None:
        raise InputError(f"ground truth: {where} has no 'bbox'; boxes cannot be evaluated on it")
    return list(annotation["bbox"])


def _size_of(image: Mapping[str, Any]) -> tuple[int, int]:
    """Return the width and height of an image."""
    size = fields.image_size({key: _plain(image.get(key)) for key in ("width", "height")})
    if size is None:
        raise InputError(f"ground truth: image {image['id']}: expected width and height in pixels, got {shown(image)}")
    return size


def _read_box(value: Any) -> list[float] | None:
    box = fields.box([_plain(number) for number in value]) if isinstance(value, list | tuple | np.ndarray) else None
    return None if box is None or min(box[2:]) < 0 else list(box)


def _read_area(value: Any) -> float | None:
    return float(value) if fields.is_number(value) and 0 <= value < 2**63 else None


_READERS: tuple[tuple[str, Callable[[Any], Any], str], ...] = (
    ("iscrowd", fields.flag, "0 or 1"),
    ("bbox", _read_box, "[x, y, width, height], four finite numbers"),
    ("area", _read_area, "a number of pixels"),
)


def _read(entry: Mapping[str, Any], key: str, reader: Callable[[Any], Any], expected: str, where: str) -> Any:
    value = reader(_plain(entry.get(key)))
    if value is None:
        raise InputError(f"ground truth: {where}: {key}: expected {expected}, got {shown(entry.get(key))}")
    return value


def _plain(value: Any) -> Any:
    """Return a scalar of NumPy as Python's, and anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def _by_id(entries: Iterable[Mapping[str, Any]], of: str) -> dict[int, Mapping[str, Any]]:
    found: dict[int, Mapping[str, Any]] = {}
    for position, entry in enumerate(entries):
        number = _read(entry, "id", fields.whole_number, "a whole number", f"{of} {position}")
        if number in found:
            raise InputError(f"ground truth: two entries for {of} {number}; each needs an id of its own")
        found[number] = {**entry, "id": number}
    return found


def empty_coco() -> COCO:
    """Return a ``COCO`` without a file."""
    try:
        from pycocotools.coco import COCO
    except ImportError as error:
        raise InputError(
            f"evaluation needs pycocotools, which is not installed: {install_advice('detection')}"
        ) from error
    return COCO()
