"""Write a dataset as YOLO: ``data.yaml``, ``images/SPLIT`` and ``labels/SPLIT``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from vovnet.detection.config.categories import Category, mirror_order
from vovnet.detection.conversion.dataset import WholeDataset
from vovnet.detection.conversion.parts import clipped_box, joined, polygons, write_labels
from vovnet.detection.data.checked_images import CheckedImage, CheckedObject
from vovnet.errors import InputError

_TEXTS = {
    "crowd": "crowds are left out: YOLO has none",
    "rle": "masks given as run lengths (RLE) are written as polygons around them, without holes",
    "joined": "masks of several polygons are written as one polygon with bridges",
    "box": "objects without a mask stand beside masks: Ultralytics then trains on boxes alone",
}


def write_yolo(folder: Path, dataset: WholeDataset, names: dict[int, str]) -> list[str]:
    """Write the labels of a dataset. Arguments are those of :func:`~.coco_files.write_coco`.

    Returns:
        What YOLO cannot say, a line each.
    """
    numbers = {one["id"]: number for number, one in enumerate(dataset.categories)}
    points = _keypoint_count(dataset.categories)
    lost: Counter[str] = Counter()
    masks = 0
    for split in dataset.splits:
        for image in split.images:
            lines = []
            for one in image.objects:
                if one.crowd:
                    lost["crowd"] += 1
                    continue
                lines.append(_line(one, image, numbers[one.category_id], points, lost))
            masks += sum(line.count(" ") > 4 for line in lines) if points is None else 0
            place = folder / "labels" / split.name / f"{Path(names[id(image)]).stem}.txt"
            write_labels(place, "".join(f"{line}\n" for line in lines))
    if not masks:
        lost.pop("box", None)
    write_labels(folder / "data.yaml", _config(dataset, points))
    notes = [f"{count} {_TEXTS[kind]}" for kind, count in lost.items() if count]
    return notes + ([] if any(one.name == "val" for one in dataset.splits) else ["no split 'val', which YOLO needs"])


def _keypoint_count(categories: Sequence[Category]) -> int | None:
    """Return the number of keypoints of all categories, or None if there are none or they differ."""
    counts = {len(one.get("keypoints", ())) for one in categories}
    return counts.pop() or None if len(counts) == 1 else None


def _line(one: CheckedObject, image: CheckedImage, number: int, points: int | None, lost: Counter[str]) -> str:
    size = (image.width, image.height)
    x, y, w, h = clipped_box(one, image)
    if points is None and (shapes := polygons(one, image)):
        lost["joined"] += len(shapes) > 1
        lost["rle"] += not isinstance(one.segmentation, list)
        shares = (_number(min(max(value / size[at % 2], 0), 1)) for at, value in enumerate(joined(shapes)))
        return " ".join([str(number), *shares])
    lost["box"] += points is None
    values = [(x + w / 2) / size[0], (y + h / 2) / size[1], w / size[0], h / size[1]]
    text = " ".join([str(number), *map(_number, values)])
    if points is None:
        return text
    keypoints = [[0.0, 0.0, 0.0]] * points if one.keypoints is None else one.keypoints.tolist()
    parts = (f"{_number(px / size[0])} {_number(py / size[1])} {int(v)}" for px, py, v in keypoints)
    return " ".join([text, *parts])


def _number(value: float) -> str:
    """Return a fraction with eight digits: a hundredth of a pixel in an image of a million."""
    return f"{value:.8f}".rstrip("0").rstrip(".")


def _config(dataset: WholeDataset, points: int | None) -> str:
    content: dict[str, Any] = {one.name or "train": f"images/{one.name}".rstrip("/") for one in dataset.splits}
    content["names"] = {number: one["name"] for number, one in enumerate(dataset.categories)}
    if points is not None:
        content["kpt_shape"] = [points, 3]
        content["kpt_names"] = {number: list(one.get("keypoints", ())) for number, one in enumerate(dataset.categories)}
        try:
            order = mirror_order(dataset.categories, "data")
        except InputError:
            order = None
        if order is not None:
            content["flip_idx"] = list(order)
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text
