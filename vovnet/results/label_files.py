"""Detections as labels: COCO, YOLO or labelme, to correct by hand and to train on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from vovnet.errors import InputError, absent_package, install_advice
from vovnet.files import atomic_path, write_json, write_text
from vovnet.results.polygons import outlines
from vovnet.results.rle import decode
from vovnet.results.tables import DetectedImage
from vovnet.results.thresholds import Thresholds

LabelFormat = Literal["coco", "yolo", "labelme"]
FORMATS: tuple[LabelFormat, ...] = get_args(LabelFormat)
"""``coco``: one file, ``annotations.json``, with the score of each object. ``yolo``: ``data.yaml`` and a text file for
each image. ``labelme``: a JSON file beside each image."""


def check_formats(formats: Sequence[str]) -> None:
    """Refuse formats that are unknown, or cannot be written here.

    Raises:
        InputError: see above.
    """
    if unknown := [one for one in formats if one not in FORMATS]:
        raise InputError(f"format: expected {', '.join(FORMATS)}, got '{unknown[0]}'; CSV files are always written")
    if {"yolo", "labelme"} & set(formats) and (missing := absent_package("contourpy")):
        raise InputError(
            f"format: outlines of masks need {missing}, which is not installed: {install_advice('detection')}"
        )


def write_labels(
    folder: Path,
    images: Sequence[DetectedImage],
    categories: Sequence[Mapping[str, Any]] | None,
    thresholds: Thresholds,
    formats: Sequence[str],
) -> None:
    """Write the detections with a score of at least the threshold as labels.

    Each format gets a folder of its name below ``folder``, with copies of the images, so that it can be opened, moved
    and trained on as it is.

    Args:
        folder: has ``NAME.json`` of each image.
        images: what was detected in.
        categories: ``id`` and ``name`` of each; None takes the ids that were found.
        thresholds: lowest scores that are written.
        formats: some of :data:`FORMATS`.

    Raises:
        OSError: an image cannot be copied.
    """
    if categories is None:
        known = sorted({int(number) for one in images for number in one.found.category_ids})
        categories = [{"id": number, "name": str(number)} for number in known]
    writers = {"coco": _write_coco, "yolo": _write_yolo, "labelme": _write_labelme}
    for name in dict.fromkeys(formats):
        writers[name](folder, images, categories, thresholds)


def _kept(folder: Path, image: DetectedImage, thresholds: Thresholds) -> Iterator[Mapping[str, Any]]:
    """Yield the detections of an image as its JSON file has them: one image's masks at a time fit into memory."""
    yield from thresholds.passed(json.loads((folder / f"{image.name}.json").read_text(encoding="utf-8")))


def _copy(image: DetectedImage, folder: Path) -> str:
    """Copy an image; return the name of the copy."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{image.name}{image.source.suffix}"
    with atomic_path(folder / name) as path:
        shutil.copyfile(image.source, path)
    return name


def _write_coco(
    folder: Path, images: Sequence[DetectedImage], categories: Sequence[Mapping[str, Any]], thresholds: Thresholds
) -> None:
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        height, width = image.found.size
        name = _copy(image, folder / "coco" / "images")
        listed.append({"id": number, "file_name": name, "width": width, "height": height})
        for one in _kept(folder, image, thresholds):
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": one["category_id"]}
            entry |= {"bbox": one["bbox"], "area": one["bbox"][2] * one["bbox"][3], "iscrowd": 0}
            entry |= {"score": one["score"]}
            if "segmentation" in one:
                entry |= {"segmentation": one["segmentation"], "area": int(decode(one["segmentation"]).sum())}
            if "keypoints" in one:  # people correct the points, so all are said to be visible
                flat = one["keypoints"]
                points = [value for at in range(0, len(flat), 3) for value in (flat[at], flat[at + 1], 2)]
                entry |= {"keypoints": points, "num_keypoints": len(points) // 3}
            annotations.append(entry)
    content = {"images": listed, "annotations": annotations, "categories": [dict(one) for one in categories]}
    write_json(folder / "coco" / "annotations.json", content)


def _polygons(one: Mapping[str, Any]) -> list[list[float]]:
    return outlines(decode(one["segmentation"])) if "segmentation" in one else []


def _write_yolo(
    folder: Path, images: Sequence[DetectedImage], categories: Sequence[Mapping[str, Any]], thresholds: Thresholds
) -> None:
    numbers = {int(one["id"]): number for number, one in enumerate(categories)}
    target = folder / "yolo"
    (target / "labels").mkdir(parents=True, exist_ok=True)
    for image in images:
        _copy(image, target / "images")
        height, width = image.found.size
        lines = []
        for one in _kept(folder, image, thresholds):
            pieces = _polygons(one)
            x, y, w, h = one["bbox"]
            # YOLO has one polygon for an object: that of its largest piece.
            values = pieces[0] if pieces else [x + w / 2, y + h / 2, w, h]
            shares = [value / (width, height)[place % 2] for place, value in enumerate(values)]
            texts = [f"{min(max(share, 0), 1):.8f}".rstrip("0").rstrip(".") for share in shares]
            lines.append(" ".join([str(numbers[one["category_id"]]), *texts]) + "\n")
        write_text(target / "labels" / f"{image.name}.txt", "".join(lines))
    names = "".join(f"  {number}: {_yaml_text(str(one['name']))}\n" for number, one in enumerate(categories))
    write_text(target / "data.yaml", f"train: images\nnames:\n{names}")


def _yaml_text(text: str) -> str:
    """Return a text in YAML's double quotes."""
    safe = (one if one.isprintable() and one not in '"\\' else f"\\U{ord(one):08x}" for one in text)
    return f'"{"".join(safe)}"'


def _write_labelme(
    folder: Path, images: Sequence[DetectedImage], categories: Sequence[Mapping[str, Any]], thresholds: Thresholds
) -> None:
    for image in images:
        name = _copy(image, folder / "labelme")
        height, width = image.found.size
        shapes = []
        for group, one in enumerate(_kept(folder, image, thresholds), start=1):
            pieces = _polygons(one)
            x, y, w, h = one["bbox"]
            common = {"label": one["category"], "description": f"score {one['score']:.3f}", "flags": {}}
            # The pieces of one object have one group.
            common |= {"group_id": group if len(pieces) > 1 else None}
            corners = [[x, y], [x + w, y + h]]
            if not pieces:
                shapes.append({**common, "shape_type": "rectangle", "points": corners})
            for piece in pieces:
                points = [piece[at : at + 2] for at in range(0, len(piece), 2)]
                shapes.append({**common, "shape_type": "polygon", "points": points})
        content: dict[str, Any] = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imageData": None}
        content |= {"imagePath": name, "imageHeight": height, "imageWidth": width}
        write_json(folder / "labelme" / f"{image.name}.json", content)
