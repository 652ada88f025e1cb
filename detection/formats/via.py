"""The labels of the VGG Image Annotator, VIA 2 and 1: a project, or its annotations as JSON or CSV.

https://www.robots.ox.ac.uk/~vgg/software/via/
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vovnet.detection.formats.drawn import DrawnImage, DrawnObject, read_drawn
from vovnet.detection.formats.labels import Labels
from vovnet.detection.formats.shapes import ellipse, enclosing_box
from vovnet.detection.formats.text import number_of, read_json, read_text
from vovnet.errors import InputError, shown

_USUAL = ("class", "label", "category", "name", "type", "object")
"""Attributes that hold the class, if a file has several."""

_ALONE = "object"
"""The class where regions have no attributes."""


def read_via(path: Path, split: str | None, default: str | None, root: Path | None = None) -> Labels:
    """Read a file of VIA.

    Rectangles become boxes; polygons, circles and ellipses become masks. The class is the region's attribute: the only
    one, or else the one called ``class``, ``label``, ``category``, ``name``, ``type`` or ``object``.

    Args:
        path: A project or exported annotations, ``.json`` or ``.csv``.
        split: VIA has no splits: anything but None is refused.
        default: Not used.
        root: The folder of the images; None is the file's own, or ``images`` in it.
    """
    return read_drawn(path, [path.name], _read, split, None, root)


def via_images(value: object) -> list[Mapping[str, Any]] | None:
    """Return the images of a JSON value that is VIA's, or None."""
    if not isinstance(value, dict):
        return None
    entries = value.get("_via_img_metadata", value)
    found = list(entries.values()) if isinstance(entries, dict) else []
    sound = all(isinstance(one, dict) and "filename" in one and "regions" in one for one in found)
    return found if found and sound else None


def _read(folder: Path, file: str) -> Iterable[DrawnImage]:
    path = folder / file
    entries = _from_csv(path) if file.lower().endswith(".csv") else via_images(read_json(path))
    if entries is None:
        raise InputError(f"{path}: expected VIA's images with filename and regions")
    regions = [(entry, _regions(entry)) for entry in entries]
    attribute = _attribute([region for _, some in regions for region in some], path)
    for entry, some in regions:
        image = DrawnImage(file, str(entry["filename"]), None)
        name = shown(image.image)
        image.objects = [_object(region, attribute, (name, number)) for number, region in enumerate(some, start=1)]
        yield image


def _regions(entry: Mapping[str, Any]) -> list[Any]:
    found = entry["regions"]  # VIA 1 has {"0": …} in place of a list
    return list(found.values()) if isinstance(found, dict) else found if isinstance(found, list) else []


def _attributes(region: object) -> Mapping[str, Any]:
    found = region.get("region_attributes") if isinstance(region, dict) else None
    return found if isinstance(found, dict) else {}


def _attribute(regions: Sequence[Any], path: Path) -> str | None:
    """Return the name of the attribute that holds the class, or None if there are no attributes."""
    counts = Counter(key for region in regions for key in _attributes(region))
    usual = [key for name in _USUAL for key in counts if key.lower() == name]
    if len(counts) > 1 and not usual:
        raise InputError(f"{path}: which attribute is the class? Rename one of {', '.join(counts)} to 'class'")
    return usual[0] if usual else next(iter(counts), None)


def _class_of(region: object, attribute: str | None) -> str:
    """Return the class of a region, or nothing. A check box has {"cat": true}."""
    value = _attributes(region).get(attribute) if attribute is not None else _ALONE
    if isinstance(value, dict):
        chosen = [key for key, on in value.items() if on]
        return chosen[0] if len(chosen) == 1 else ""
    return str(value).strip() if isinstance(value, str | int) else ""


def _object(region: object, attribute: str | None, place: tuple[str, int]) -> DrawnObject:
    one = DrawnObject(_class_of(region, attribute), place, None)
    shape = region.get("shape_attributes") if isinstance(region, dict) else None
    if not isinstance(shape, dict):
        one.problem = f"expected shape_attributes, got {shown(region)}"
        return one
    kind = shape.get("name")
    keys = {"rect": ("x", "y", "width", "height"), "circle": ("cx", "cy", "r"), "ellipse": ("cx", "cy", "rx", "ry")}
    numbers = [number_of(shape.get(key)) for key in keys.get(str(kind), ())]
    values = [value for value in numbers if value is not None and math.isfinite(value)]
    if kind in keys and len(values) < len(numbers):
        return one  # a box that is not four finite numbers
    if kind == "rect":
        one.box = values
    elif kind in ("polygon", "polyline") and (points := _points(shape)) is not None and len(points) >= 6:
        if kind == "polyline" and points[:2] != points[-2:]:
            one.problem = "shape polyline, which is not closed"
            return one
        one.box, one.polygons = enclosing_box(points), [points]
    elif kind in ("circle", "ellipse"):
        cx, cy, rx = values[:3]
        outline = ellipse(cx, cy, rx, values[-1], number_of(shape.get("theta")) or 0.0)
        one.box, one.polygons = enclosing_box(outline), [outline]
    else:
        one.problem = f"shape {shown(kind)}"
    return one


def _points(shape: Mapping[str, Any]) -> list[float] | None:
    xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
    if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
        return None
    numbers = [number_of(value) for pair in zip(xs, ys, strict=True) for value in pair]
    sound = [value for value in numbers if value is not None and math.isfinite(value)]
    return sound if len(sound) == len(numbers) else None


def _from_csv(path: Path) -> list[Mapping[str, Any]]:
    """Return the images of VIA's CSV: a row for each region, whose shape and attributes are JSON."""
    rows = csv.DictReader(io.StringIO(read_text(path)))
    names = [name.lstrip("#") for name in rows.fieldnames or ()]
    wanted = {"filename", "region_shape_attributes", "region_attributes"}
    if not wanted <= set(names):
        raise InputError(f"{path}: expected VIA's columns {', '.join(sorted(wanted))}")
    rows.fieldnames = names
    images: dict[str, list[Any]] = {}
    try:
        for row in rows:
            regions = images.setdefault(str(row["filename"]), [])
            shape = json.loads(row["region_shape_attributes"] or "{}")
            if shape:
                attributes = json.loads(row["region_attributes"] or "{}")
                regions.append({"shape_attributes": shape, "region_attributes": attributes})
    except (csv.Error, ValueError, RecursionError) as error:
        raise InputError(f"{path}: line {rows.line_num}: is not VIA's CSV ({error})") from error
    return [{"filename": name, "regions": regions} for name, regions in images.items()]
