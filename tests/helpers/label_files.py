"""One small dataset, written in each format of labels."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Thing:
    """An object: its class, and its box or polygon in pixels."""

    name: str
    box: tuple[float, float, float, float]
    polygon: tuple[float, ...] = ()


NAMES = ["cat", "dog", "red cell"]
SIZES = {"a.png": (60, 40), "b.png": (50, 80), "c.png": (64, 64)}
TRIANGLE = (4.0, 4.0, 24.0, 4.0, 4.0, 34.0)
THINGS: dict[str, list[Thing]] = {
    "a.png": [Thing("dog", (6, 8, 30, 20)), Thing("red cell", (4, 4, 20, 30), TRIANGLE)],
    "b.png": [Thing("cat", (0, 0, 50, 80))],
    "c.png": [],
}
"""The objects of each image; the last image has none."""


def write_images(folder: Path, names: Sequence[str] = tuple(SIZES)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", SIZES[name], (40 * number, 90, 10)).save(folder / name)


def yolo_line(thing: Thing, size: tuple[int, int]) -> str:
    width, height = size
    if thing.polygon:
        values = [value / size[axis % 2] for axis, value in enumerate(thing.polygon)]
    else:
        x, y, w, h = thing.box
        values = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
    return " ".join([str(NAMES.index(thing.name)), *map(repr, values)])


def write_yolo(folder: Path, *, splits: Sequence[str] = ("train",), yaml: str | None = None) -> Path:
    """Write Ultralytics' layout ``images/SPLIT``, ``labels/SPLIT``; each split has all images."""
    for split in splits:
        write_images(folder / "images" / split)
        labels = folder / "labels" / split
        labels.mkdir(parents=True)
        for name, things in THINGS.items():
            if things:
                text = "\n".join(yolo_line(one, SIZES[name]) for one in things)
                (labels / name).with_suffix(".txt").write_text(text + "\n")
    lines = [f"{split}: images/{split}" for split in splits]
    (folder / "data.yaml").write_text(yaml or "\n".join([*lines, f"names: {json.dumps(NAMES)}", ""]))
    return folder / "data.yaml"


def voc_xml(name: str, things: Sequence[Thing], **texts: str) -> str:
    width, height = SIZES[name]
    objects = ""
    for one in things:
        x, y, w, h = one.box
        outline = "".join(
            f"<{'xy'[i % 2]}{i // 2 + 1}>{v}</{'xy'[i % 2]}{i // 2 + 1}>" for i, v in enumerate(one.polygon)
        )
        polygon = f"<polygon>{outline}</polygon>" if outline else ""
        box = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
        objects += f"<object><name>{one.name}</name><difficult>0</difficult><bndbox>{box}</bndbox>{polygon}</object>"
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    database = f"<source><database>{texts.get('database', 'Unknown')}</database></source>"
    return f"<annotation><filename>{texts.get('filename', name)}</filename>{database}{size}{objects}</annotation>"


def write_voc(folder: Path, sets: dict[str, Sequence[str]] | None = None) -> Path:
    """Write VOC's layout, with lists of images in ``ImageSets/Main`` if some are given."""
    write_images(folder / "JPEGImages")
    (folder / "Annotations").mkdir()
    for name, things in THINGS.items():
        (folder / "Annotations" / name).with_suffix(".xml").write_text(voc_xml(name, things))
    for split, names in (sets or {}).items():
        (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{Path(one).stem}\n" for one in names))
    return folder


def labelme_json(name: str, things: Sequence[Thing]) -> dict[str, Any]:
    def shape(one: Thing) -> dict[str, Any]:
        x, y, w, h = one.box
        flat = one.polygon or (x, y, x + w, y + h)
        points = [list(pair) for pair in zip(flat[::2], flat[1::2], strict=True)]
        kind = "polygon" if one.polygon else "rectangle"
        return {"label": one.name, "points": points, "group_id": None, "shape_type": kind, "flags": {}}

    width, height = SIZES[name]
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": [shape(one) for one in things],
        "imagePath": name,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def write_labelme(folder: Path) -> Path:
    write_images(folder)
    for name, things in THINGS.items():
        (folder / name).with_suffix(".json").write_text(json.dumps(labelme_json(name, things)))
    return folder


def via_regions(things: Sequence[Thing]) -> list[dict[str, Any]]:
    regions = []
    for one in things:
        x, y, w, h = one.box
        shape: dict[str, Any] = {"name": "rect", "x": x, "y": y, "width": w, "height": h}
        if one.polygon:
            xs, ys = list(one.polygon[::2]), list(one.polygon[1::2])
            shape = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
        regions.append({"shape_attributes": shape, "region_attributes": {"class": one.name}})
    return regions


def write_via(folder: Path, *, project: bool = True) -> Path:
    write_images(folder)
    images = {f"{name}123": {"filename": name, "size": 123, "regions": via_regions(t)} for name, t in THINGS.items()}
    content = {"_via_settings": {}, "_via_img_metadata": images, "_via_attributes": {}} if project else images
    (folder / "via.json").write_text(json.dumps(content))
    return folder / "via.json"


def write_via_csv(folder: Path) -> Path:
    write_images(folder)
    with (folder / "via.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        counts = ("file_size", "file_attributes", "region_count", "region_id")
        rows.writerow(["filename", *counts, "region_shape_attributes", "region_attributes"])
        for name, things in THINGS.items():
            for number, one in enumerate(via_regions(things)):
                shape, attributes = (json.dumps(one[f"{key}_attributes"]) for key in ("shape", "region"))
                rows.writerow([name, 1, "{}", len(things), number, shape, attributes])
            if not things:
                rows.writerow([name, 1, "{}", 0, 0, "{}", "{}"])
    return folder / "via.csv"


def write_cvat(folder: Path) -> Path:
    write_images(folder / "images")
    text = ""
    for number, (name, things) in enumerate(THINGS.items()):
        width, height = SIZES[name]
        text += f'<image id="{number}" name="{name}" width="{width}" height="{height}">'
        for one in things:
            x, y, w, h = one.box
            points = ";".join(f"{a},{b}" for a, b in zip(one.polygon[::2], one.polygon[1::2], strict=True))
            if points:
                text += f'<polygon label="{one.name}" source="manual" points="{points}"/>'
            else:
                text += f'<box label="{one.name}" xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}"/>'
        text += "</image>"
    (folder / "annotations.xml").write_text(f"<annotations><version>1.1</version><meta/>{text}</annotations>")
    return folder / "annotations.xml"


def write_label_studio(folder: Path, *, small: bool = False) -> Path:
    write_images(folder / "images")
    tasks: list[dict[str, Any]] = []
    for name, things in THINGS.items():
        width, height = SIZES[name]
        results = []
        for one in things:
            x, y, w, h = one.box
            value: dict[str, Any] = {"x": 100 * x / width, "y": 100 * y / height, "rotation": 0}
            value |= {"width": 100 * w / width, "height": 100 * h / height, "rectanglelabels": [one.name]}
            if one.polygon:
                pairs = zip(one.polygon[::2], one.polygon[1::2], strict=True)
                points = [[100 * a / width, 100 * b / height] for a, b in pairs]
                value = {"points": points, "closed": True, "polygonlabels": [one.name]}
            size = {"original_width": width, "original_height": height}
            results.append({**value, **size} if small else {"type": "any", "value": value, **size})
        address = f"/data/upload/1/1a2b3c4d-{name}"
        if small:
            tasks.append({"image": address, "id": 1, **({"label": results} if results else {})})
        else:
            annotations = [{"was_cancelled": True, "result": []}, {"was_cancelled": False, "result": results}]
            tasks.append({"id": 1, "data": {"image": address}, "annotations": annotations})
    (folder / "export.json").write_text(json.dumps(tasks))
    return folder / "export.json"


def coco_content(names: Sequence[str] = tuple(SIZES)) -> dict[str, Any]:
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)],
    }
    for image_id, name in enumerate(names, start=1):
        width, height = SIZES[name]
        content["images"].append({"id": image_id, "file_name": name, "width": width, "height": height})
        for one in THINGS[name]:
            entry = {"id": len(content["annotations"]) + 1, "image_id": image_id, "bbox": list(one.box), "iscrowd": 0}
            entry |= {"category_id": NAMES.index(one.name) + 1}
            entry |= {"segmentation": [list(one.polygon)]} if one.polygon else {}
            content["annotations"].append(entry)
    return content
