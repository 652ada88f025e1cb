"""The labels of CVAT's own format "CVAT for images": one ``annotations.xml`` and a folder of images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from vovnet.detection.formats.drawn import DrawnImage, DrawnObject, read_drawn
from vovnet.detection.formats.labels import Labels
from vovnet.detection.formats.painted import cvat_pixels
from vovnet.detection.formats.shapes import ellipse, enclosing_box
from vovnet.detection.formats.text import number_of, read_xml
from vovnet.errors import InputError


def read_cvat(path: Path, split: str | None, default: str | None, root: Path | None = None) -> Labels:
    """Read an ``annotations.xml`` of CVAT. Boxes stay boxes; polygons, ellipses and masks become masks.

    Args:
        path: The file, or its folder.
        split: CVAT's format has none here: anything but None is refused.
        default: Not used.
        root: The folder of the images; None is the file's own, or ``images`` in it.
    """
    file = path / "annotations.xml" if path.is_dir() else path
    return read_drawn(file, [file.name], _read, split, None, root)


def _read(folder: Path, file: str) -> Iterable[DrawnImage]:
    document = read_xml(folder / file)
    if document.tag != "annotations":
        raise InputError(f"{folder / file}: expected CVAT's <annotations>, got <{document.tag}>")
    if document.find("track") is not None:
        raise InputError(f"{folder / file}: 'CVAT for video' is not read; export it as 'CVAT for images' or COCO")
    for entry in document.iter("image"):
        width, height = (number_of(entry.get(key)) for key in ("width", "height"))
        size = (int(width), int(height)) if width and height and min(width, height) >= 1 else None
        image = DrawnImage(file, entry.get("name") or "", size)
        shapes = [one for one in entry if one.tag not in ("tag", "attribute")]
        image.objects = [_object(one, (image.image, number)) for number, one in enumerate(shapes, start=1)]
        yield image


def _object(shape: Element, place: tuple[str, int]) -> DrawnObject:
    one = DrawnObject((shape.get("label") or "").strip(), place, None)
    if number_of(shape.get("rotation") or 0):
        one.problem = f"<{shape.tag}> turned by {shape.get('rotation')} degrees"
    elif shape.tag == "box":
        corners = _numbers(shape, ("xtl", "ytl", "xbr", "ybr"))
        if corners is not None:
            x0, y0, x1, y1 = corners
            one.box = [x0, y0, x1 - x0, y1 - y0]
    elif shape.tag == "ellipse":
        values = _numbers(shape, ("cx", "cy", "rx", "ry"))
        if values is not None:
            outline = ellipse(*values)
            one.box, one.polygons = enclosing_box(outline), [outline]
    elif shape.tag == "mask":
        values = _numbers(shape, ("left", "top", "width", "height"))
        if values is not None:
            left, top, width, height = values
            pixels = cvat_pixels(shape.get("rle") or "", round(width), round(height))
            one.paint(pixels, left, top, "run lengths (rle) whose sum is width × height")
    elif shape.tag == "polygon":
        points = _points(shape.get("points") or "")
        if len(points) >= 6:
            one.box, one.polygons = enclosing_box(points), [points]
    else:
        one.problem = f"shape <{shape.tag}>"
    return one


def _numbers(shape: Element, keys: Sequence[str]) -> list[float] | None:
    numbers = [number_of(shape.get(key)) for key in keys]
    found = [one for one in numbers if one is not None]
    return found if len(found) == len(keys) else None


def _points(text: str) -> list[float]:
    """Return "x,y;x,y" as x, y, x, y, or nothing if it is something else."""
    numbers = [number_of(part) for pair in text.split(";") for part in pair.split(",")]
    found = [one for one in numbers if one is not None]
    return found if len(found) == len(numbers) and len(found) % 2 == 0 else []
