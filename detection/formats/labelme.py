"""labelme's labels: a ``.json`` file for each image (https://github.com/wkentaro/labelme)."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vovnet.detection.formats.drawn import DrawnImage, DrawnObject, read_drawn
from vovnet.detection.formats.folders import Tree
from vovnet.detection.formats.labels import Labels
from vovnet.detection.formats.shapes import ellipse, enclosing_box, flat_points
from vovnet.detection.formats.text import read_json
from vovnet.errors import InputError, shown
from vovnet.images.reading import UnreadableImage, read_image


def read_labelme(path: Path, split: str | None, default: str | None, root: Path | None = None) -> Labels:
    """Read the files of labelme in a folder and below it, or one file.

    Rectangles become boxes, and polygons and circles become masks. Shapes of one label and ``group_id`` are one object.

    Args:
        path: The folder or file.
        split: The name of a subfolder; None takes ``default`` if there is such a subfolder, else all files.
        default: See above.
        root: The folder of the images; None looks beside the files.
    """
    files = [path.name] if path.is_file() else Tree(path).named(suffix=".json")
    return read_drawn(path, files, _read, split, default, root)


def is_labelme(value: object) -> bool:
    """Return True if a JSON value is a file of labelme."""
    return isinstance(value, dict) and isinstance(value.get("shapes"), list) and "imagePath" in value


def _read(folder: Path, file: str) -> Iterable[DrawnImage]:
    content = read_json(folder / file)
    if isinstance(content, dict) and "shapes" not in content:
        return  # a file of something else beside labelme's
    if not is_labelme(content):
        raise InputError(f"{folder / file}: expected labelme's shapes and imagePath, got {shown(content)[:80]}")
    width, height = content.get("imageWidth"), content.get("imageHeight")
    size = (width, height) if type(width) is int and type(height) is int and min(width, height) > 0 else None
    image = DrawnImage(file, str(content["imagePath"]), size)
    groups: dict[tuple[str, Any], DrawnObject] = {}
    for number, shape in enumerate(content["shapes"], start=1):
        one = _object(shape, (file, number))
        group = shape.get("group_id") if isinstance(shape, dict) else None
        first = groups.get((one.name, group)) if isinstance(group, int | str) and not one.problem else None
        if first is not None and first.box is not None and one.box is not None:
            first.box = _union(first.box, one.box)
            first.polygons += one.polygons
            continue
        image.objects.append(one)
        if isinstance(group, int | str) and not one.problem and one.polygons:
            groups[one.name, group] = one
    yield image


def _object(shape: object, place: tuple[str, int]) -> DrawnObject:
    if not isinstance(shape, dict):
        return DrawnObject("", place, None, problem=f"expected a shape, got {shown(shape)}")
    label = shape.get("label")
    one = DrawnObject(label if isinstance(label, str) else "", place, None)
    kind, points = shape.get("shape_type", "polygon"), flat_points(shape.get("points"))
    if points is None:
        one.problem = f"points: expected [[x, y], …], got {shown(shape.get('points'))}"
    elif kind == "polygon" and len(points) >= 6:
        one.box, one.polygons = enclosing_box(points), [points]
    elif kind == "rectangle" and len(points) in (4, 8):
        one.box = enclosing_box(points)
    elif kind == "circle" and len(points) == 4:
        radius = math.dist(points[:2], points[2:])
        one.polygons = [ellipse(points[0], points[1], radius, radius)]
        one.box = [points[0] - radius, points[1] - radius, 2 * radius, 2 * radius]
    elif kind == "mask" and len(points) == 4:
        one.paint(_pixels(shape.get("mask")), points[0], points[1], "a PNG file in base64")
    else:
        one.problem = f"shape_type {shown(kind)} of {len(points) // 2} points"
    return one


def _pixels(text: object) -> NDArray[np.bool_] | None:
    """Return the mask in a PNG file in base64, or None."""
    try:
        data = base64.b64decode(text if isinstance(text, str) else "", validate=True)
        return np.asarray(read_image(io.BytesIO(data), 1)) > 0
    except (binascii.Error, ValueError, UnreadableImage):
        return None


def _union(first: list[float], second: list[float]) -> list[float]:
    return enclosing_box([number for x, y, w, h in (first, second) for number in (x, y, x + w, y + h)])
