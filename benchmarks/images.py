"""Generate data like COCO's for the loader: JPEGs of 640x480 pixels and about COCO's file size, with polygons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from vovnet.detection.config.sources import DataSource

CATEGORIES = 80
QUALITY = 90


def generate_images(
    folder: Path, *, count: int, size: tuple[int, int] = (640, 480), objects: int = 7, points: int = 24
) -> DataSource:
    """Write ``images/*.jpg`` and ``annotations.json`` below ``folder``.

    COCO's training images have 7 objects on average and polygons of about 25 points.

    Args:
        folder: must exist.
        count: number of images.
        size: (width, height) in pixels; swapped for every fourth image.
        objects: number of objects per image.
        points: number of points per polygon.
    """
    images = folder / "images"
    images.mkdir()
    content: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, CATEGORIES + 1)],
    }
    for number in range(1, count + 1):
        random = np.random.default_rng(number)
        width, height = size[::-1] if number % 4 == 0 else size
        polygons = [_polygon(random, width, height, points) for _ in range(objects)]
        name = f"{number:06d}.jpg"
        _image(random, width, height, polygons).save(images / name, quality=QUALITY)
        content["images"].append({"id": number, "file_name": name, "width": width, "height": height})
        for polygon in polygons:
            entry = {"id": len(content["annotations"]) + 1, "image_id": number, "iscrowd": 0}
            category = int(random.integers(1, CATEGORIES + 1))
            content["annotations"].append({**entry, "category_id": category, **_shape(polygon)})
    annotations = folder / "annotations.json"
    annotations.write_text(json.dumps(content), encoding="utf-8")
    return DataSource(images=str(images), annotations=str(annotations))


def _polygon(random: np.random.Generator, width: int, height: int, points: int) -> npt.NDArray[np.float64]:
    """Return the points (points, 2) of an irregular disc inside the image."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radius = min(width, height) * random.uniform(0.05, 0.3)
    radii = radius * random.uniform(0.7, 1.0, points)
    centre = random.uniform((radius, radius), (width - radius, height - radius))
    return np.round(centre + radii[:, None] * np.stack((np.cos(angles), np.sin(angles)), axis=1), 2)


def _image(
    random: np.random.Generator, width: int, height: int, polygons: list[npt.NDArray[np.float64]]
) -> Image.Image:
    """Return soft blotches with fine noise, whose JPEG is about as large as a photograph's."""
    coarse = random.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for polygon in polygons:
        draw.polygon([(float(x), float(y)) for x, y in polygon], fill=tuple(random.integers(0, 256, 3).tolist()))
    grain = random.normal(0, 9, (height, width, 1))
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


def _shape(polygon: npt.NDArray[np.float64]) -> dict[str, Any]:
    low, high = polygon.min(axis=0), polygon.max(axis=0)
    x, y = polygon.T
    area = 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))
    return {"bbox": [*low.tolist(), *(high - low).tolist()], "area": area, "segmentation": [polygon.ravel().tolist()]}
