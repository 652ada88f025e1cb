"""Label Studio's own labels, "JSON" and "JSON-MIN". Its COCO, YOLO and VOC exports are read as those."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from vovnet.detection.formats.drawn import DrawnImage, DrawnObject, read_drawn
from vovnet.detection.formats.labels import Labels
from vovnet.detection.formats.painted import brush_pixels
from vovnet.detection.formats.shapes import ellipse, enclosing_box, flat_points
from vovnet.detection.formats.text import number_of, read_json
from vovnet.errors import InputError, is_text, shown

_KINDS = ("rectanglelabels", "polygonlabels", "ellipselabels", "brushlabels")
_OTHERS = ("keypointlabels",)


def read_label_studio(path: Path, split: str | None, default: str | None, root: Path | None = None) -> Labels:
    """Read a file of Label Studio. Rectangles become boxes; polygons, ellipses and brushes become masks.

    Of several annotations of a task the first that was not cancelled counts. Label Studio exports no images with this
    format: they are looked for beside the file and in ``images``, also without the eight letters that it puts before
    the name of an uploaded file.

    Args:
        path: The file.
        split: Label Studio has no splits: anything but None is refused.
        default: Not used.
        root: The folder of the images; None is the file's own.
    """
    return read_drawn(path, [path.name], _read, split, None, root)


def is_label_studio(value: object) -> bool:
    """Return True if a JSON value is a list of Label Studio's tasks."""
    return isinstance(value, list) and bool(value) and all(_is_task(one) for one in value[:20])


def _is_task(value: object) -> bool:
    return isinstance(value, dict) and (("annotations" in value and "data" in value) or _image_of(value) != "")


def _image_of(task: Mapping[str, Any]) -> str:
    """Return the path or address of a task's image, or nothing."""
    data = task.get("data") if isinstance(task.get("data"), dict) else task
    values = [data.get("image"), *data.values()] if isinstance(data, dict) else []
    return next((one for one in values if is_text(one) and re.search(r"\.\w{2,5}$", one.split("?")[0])), "")


def _read(folder: Path, file: str) -> Iterable[DrawnImage]:
    tasks = read_json(folder / file)
    if not is_label_studio(tasks):
        raise InputError(f"{folder / file}: expected Label Studio's list of tasks with data and annotations")
    for number, task in enumerate(tasks, start=1):
        if not isinstance(task, dict):
            raise InputError(f"{folder / file}: task {number}: expected an object, got {shown(task)}")
        results = _results(task)
        size = next((found for one in results if (found := _size(one))), None)
        image = DrawnImage(file, _file_of(_image_of(task), folder), size)
        shapes = [one for one in results if "value" not in one or _kind(one) is not None]
        image.objects = [_object(one, (image.image, place)) for place, one in enumerate(shapes, start=1)]
        yield image


def _file_of(address: str, folder: Path) -> str:
    """Return the name of the file that an address leads to, without what Label Studio puts before it if need be."""
    query = urlsplit(address).query  # /data/local-files/?d=cells/a.jpg
    path = unquote(query.partition("d=")[2] or urlsplit(address).path)
    name = path.split("/")[-1]
    short = re.sub(r"^[0-9a-f]{8}-", "", name)
    there = [one for one in (name, short) for place in (folder, folder / "images") if (place / one).is_file()]
    return there[0] if there else name


def _results(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "annotations" not in task:  # JSON-MIN has the shapes in the key of the control, usually "label"
        found = next((one for one in task.values() if isinstance(one, list) and one and isinstance(one[0], dict)), [])
        return [one for one in found if isinstance(one, dict)]
    for one in task["annotations"] if isinstance(task["annotations"], list) else ():
        if isinstance(one, dict) and not one.get("was_cancelled") and isinstance(one.get("result"), list):
            return [result for result in one["result"] if isinstance(result, dict)]
    return []


def _size(result: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = result.get("original_width"), result.get("original_height")
    return (width, height) if type(width) is int and type(height) is int and min(width, height) > 0 else None


def _shape(result: Mapping[str, Any]) -> Mapping[str, Any]:
    value = result.get("value", result)
    return value if isinstance(value, dict) else {}


def _kind(result: Mapping[str, Any]) -> str | None:
    return next((kind for kind in (*_KINDS, *_OTHERS) if kind in _shape(result)), None)


def _object(result: Mapping[str, Any], place: tuple[str, int]) -> DrawnObject:
    shape, kind, size = _shape(result), _kind(result), _size(result)
    names = shape.get(kind) if kind else None
    name = names[0] if isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) else ""
    one = DrawnObject(name, place, None)
    if kind not in _KINDS:
        one.problem = f"shape {shown(kind or list(shape))}"
    elif size is None:
        one.problem = "no original_width and original_height, of which coordinates are percents"
    elif kind == "polygonlabels":
        points = flat_points(shape.get("points"))
        if points is not None and len(points) >= 6:
            scaled = [value / 100 * size[axis % 2] for axis, value in enumerate(points)]
            one.box, one.polygons = enclosing_box(scaled), [scaled]
    elif kind == "brushlabels":
        one.paint(brush_pixels(shape.get("rle"), *size), 0, 0, "Label Studio's bytes (rle) of the image's size")
    else:
        _set_box(one, shape, kind, size)
    return one


def _set_box(one: DrawnObject, shape: Mapping[str, Any], kind: str, size: tuple[int, int]) -> None:
    if number_of(shape.get("rotation") or 0):
        one.problem = f"{kind} turned by {shown(shape['rotation'])} degrees"
        return
    keys = ("x", "y", "width", "height") if kind == "rectanglelabels" else ("x", "y", "radiusX", "radiusY")
    numbers = [number_of(shape.get(key)) for key in keys]
    values = [value for value in numbers if value is not None and math.isfinite(value)]
    if len(values) < 4:
        return
    scaled = [value / 100 * size[axis % 2] for axis, value in enumerate(values)]
    if kind == "rectanglelabels":
        one.box = scaled
        return
    outline = ellipse(*scaled)
    one.box, one.polygons = enclosing_box(outline), [outline]
