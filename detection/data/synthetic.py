"""Generate a small COCO dataset of drawn shapes with exact masks, for the quickstart, tests and benchmarks.

Circles, rectangles and triangles of random colour, size and rotation are drawn on mottled backgrounds, with shading and
shadows. They may partly cover each other. As in COCO, the mask of a whole shape is a polygon and the mask of a partly
covered one is run lengths. The same arguments give the same bytes (with the same versions of NumPy, Pillow and
pycocotools).

The corners of rectangles and triangles can be keypoints: the highest is ``top``, the others follow clockwise, so that
``left`` and ``right`` change places in a mirror image. A triangle has no ``bottom``, and circles have no keypoints. A
corner under another shape is hidden.
"""

from __future__ import annotations

import colorsys
import json
from dataclasses import dataclass
from math import cos, pi, sin
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from vovnet.detection.config.categories import Category
from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.masks import decode_masks
from vovnet.errors import InputError
from vovnet.files import atomic_path, write_text
from vovnet.folders.temporary import remove_leftovers

CATEGORIES: list[Category] = [
    {"id": 1, "name": "circle"},
    {"id": 2, "name": "rectangle"},
    {"id": 3, "name": "triangle"},
]

CORNERS = ("top", "right", "bottom", "left")
"""The names of keypoints."""
_SKELETONS = {"rectangle": [[1, 2], [2, 3], [3, 4], [4, 1]], "triangle": [[1, 2], [2, 4], [4, 1]]}
_TRIANGLE = (0, 1, 3)
"""Positions of a triangle's corners among the keypoints."""

_FINE = 4
"""Number of sub-pixels per side of a pixel with which outlines are drawn."""
_VISIBLE = 0.6
"""The share of a shape that must not be covered."""

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Polygon = list[tuple[float, float]]


@dataclass
class _Shape:
    category_id: int
    outline: Polygon
    colour: Floats
    """Red, green, blue in 0..255."""
    whole: Bools
    """(height, width): the pixels of the shape."""
    visible: Bools
    """(height, width): the pixels that no other shape covers."""


def generate_shapes(
    folder: str | Path,
    *,
    train: int = 300,
    val: int = 60,
    size: tuple[int, int] = (160, 160),
    max_shapes: int = 5,
    seed: int = 0,
    keypoints: bool = False,
) -> dict[str, DataSource]:
    """Write ``train/*.png``, ``val/*.png``, ``annotations/instances_train.json`` and ``…_val.json`` below a folder.

    Image and annotation files are complete or absent. The annotations of a split are written last, so that a split
    with annotations has all its images.

    Args:
        folder: The folder to write to. It is created if it does not exist; files of the same names are replaced.
        train: The number of training images.
        val: The number of validation images. They differ from the training images.
        size: The (width, height) of the images in pixels, at least 32.
        max_shapes: The largest number of shapes on an image, if there is room for them.
        seed: The seed of the images.
        keypoints: Annotate corners as keypoints. The images are the same.

    Returns:
        The sources ``{"train": …, "val": …}`` as a recipe's ``data.train`` and ``data.val`` list them.

    Raises:
        InputError: An argument is out of range.
        OSError: The folder cannot be written.
    """
    if min(size) < 32:
        raise InputError(f"size: expected at least 32 pixels a side, got {size[0]}x{size[1]}")
    if min(train, val, max_shapes) < 1:
        raise InputError(f"train, val, max_shapes: expected at least 1 of each, got {train}, {val}, {max_shapes}")
    sources, first = {}, 1
    for split, count in (("train", train), ("val", val)):
        images = Path(folder, split)
        annotations = Path(folder, "annotations", f"instances_{split}.json")
        images.mkdir(parents=True, exist_ok=True)
        remove_leftovers(images)
        remove_leftovers(annotations.parent)
        annotations.unlink(missing_ok=True)
        _write_split(images, annotations, range(first, first + count), size, max_shapes, seed, keypoints)
        sources[split] = DataSource(images=str(images), annotations=str(annotations))
        first += count
    return sources


def _write_split(
    images: Path, annotations: Path, ids: range, size: tuple[int, int], max_shapes: int, seed: int, keypoints: bool
) -> None:
    content: dict[str, Any] = {"info": {"description": "vovnet shapes"}, "images": [], "annotations": []}
    for image_id in ids:
        image, shapes = draw_image(np.random.default_rng([seed, image_id]), size, max_shapes, keypoints)
        name = f"{image_id:06d}.png"
        _save(image, images / name)
        content["images"].append({"id": image_id, "file_name": name, "width": size[0], "height": size[1]})
        for shape in shapes:
            number = len(content["annotations"]) + 1
            content["annotations"].append({"id": number, "image_id": image_id, **shape})
    content["categories"] = [
        {**category, "supercategory": "shape", **(_named_corners(category["name"]) if keypoints else {})}
        for category in CATEGORIES
    ]
    write_text(annotations, json.dumps(content) + "\n")


def _named_corners(category: str) -> dict[str, Any]:
    """Return the part of a category that names its keypoints."""
    skeleton = _SKELETONS.get(category)
    return {} if skeleton is None else {"keypoints": list(CORNERS), "skeleton": skeleton}


def _save(image: Image.Image, path: Path) -> None:
    # Waiting for the disk each time would take longer than drawing.
    with atomic_path(path, flush=False) as temporary:
        image.save(temporary, format="PNG")


def draw_image(
    rng: np.random.Generator, size: tuple[int, int], max_shapes: int, keypoints: bool = False
) -> tuple[Image.Image, list[dict[str, Any]]]:
    """Return an image (RGB) and its COCO annotations without ids: category_id, bbox, area, iscrowd, segmentation.

    With ``keypoints``, those of rectangles and triangles have ``keypoints`` and ``num_keypoints``.
    """
    background = _background(rng, size)
    shapes = _place(rng, size, int(rng.integers(1, max_shapes + 1)), background.mean(axis=(0, 1)))
    pixels = background
    for shape in shapes:
        pixels = _paint(rng, pixels, shape, size)
    pixels += rng.normal(0, 4, (size[1], size[0], 1))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image, [_annotation(shape) | (_corners(shape) if keypoints else {}) for shape in shapes]


def _place(rng: np.random.Generator, size: tuple[int, int], wanted: int, background: Floats) -> list[_Shape]:
    """Return shapes from the lowest to the topmost, each with enough pixels that later ones do not cover."""
    shapes: list[_Shape] = []
    for _ in range(wanted * 8):
        category_id = int(rng.integers(1, len(CATEGORIES) + 1))
        outline = _outline(rng, category_id, size)
        whole = _pixels_of(outline, size)
        left = [shape.visible & ~whole for shape in shapes]
        if any(rest.sum() < _VISIBLE * shape.whole.sum() for rest, shape in zip(left, shapes, strict=True)):
            continue
        for shape, rest in zip(shapes, left, strict=True):
            shape.visible = rest
        shapes.append(_Shape(category_id, outline, _colour(rng, background), whole, whole.copy()))
        if len(shapes) == wanted:
            break
    return shapes


def _outline(rng: np.random.Generator, category_id: int, size: tuple[int, int]) -> Polygon:
    """Return the outline of a shape: points in pixels, inside the image."""
    radius = min(size) * rng.uniform(0.09, 0.24)
    turn = rng.uniform(0, 2 * pi)
    if category_id == 1:
        steps, radii = [2 * pi * k / 40 for k in range(40)], [1.0] * 40
        stretch = rng.uniform(0.8, 1.0)
    elif category_id == 2:
        half = rng.uniform(0.45, 0.9)  # Half the angle between two neighbouring corners; π/4 is a square.
        steps, radii = [half, pi - half, pi + half, -half], [1.1] * 4
        stretch = 1.0
    else:
        steps = [2 * pi * k / 3 + rng.uniform(-0.25, 0.25) for k in range(3)]
        radii, stretch = [1.2] * 3, 1.0
    points = [(r * cos(a), stretch * r * sin(a)) for a, r in zip(steps, radii, strict=True)]
    points = [(radius * (x * cos(turn) - y * sin(turn)), radius * (x * sin(turn) + y * cos(turn))) for x, y in points]
    left, top = min(x for x, _ in points), min(y for _, y in points)
    right, bottom = max(x for x, _ in points), max(y for _, y in points)
    x0 = rng.uniform(2 - left, size[0] - 2 - right)
    y0 = rng.uniform(2 - top, size[1] - 2 - bottom)
    return [(round(x0 + x, 2), round(y0 + y, 2)) for x, y in points]


def _pixels_of(outline: Polygon, size: tuple[int, int]) -> Bools:
    flat = [number for point in outline for number in point]
    return decode_masks([[flat]], size[1], size[0])[0].numpy().astype(bool)


def _colour(rng: np.random.Generator, background: Floats) -> Floats:
    """Return a saturated colour that differs from the background's mean. It is independent of the category."""
    while True:
        hue, saturation, value = rng.uniform(0, 1), rng.uniform(0.55, 0.95), rng.uniform(0.55, 1.0)
        colour = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))
        if np.abs(colour - background).sum() > 180:
            return colour


def _background(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    """Return a gradient between two muted colours with soft blotches, (height, width, 3) in 0..255."""
    width, height = size
    ends = [
        255 * np.array(colorsys.hsv_to_rgb(rng.uniform(0, 1), rng.uniform(0.05, 0.3), rng.uniform(0.25, 0.9)))
        for _ in range(2)
    ]
    angle = rng.uniform(0, 2 * pi)
    ys, xs = np.mgrid[0:height, 0:width]
    ramp = (xs / width - 0.5) * cos(angle) + (ys / height - 0.5) * sin(angle) + 0.5
    blotches = np.zeros((height, width))
    for cells, strength in ((4, 16), (12, 8), (40, 5)):
        coarse = Image.fromarray(rng.normal(0, strength, (cells, cells)).astype(np.float32))
        blotches += np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))
    return ends[0] + np.clip(ramp, 0, 1)[..., None] * (ends[1] - ends[0]) + blotches[..., None]


def _paint(rng: np.random.Generator, pixels: Floats, shape: _Shape, size: tuple[int, int]) -> Floats:
    """Draw a shape over the image, with a shadow, light from the upper left and a darker rim."""
    large = (size[0] * _FINE, size[1] * _FINE)
    inside, rim = Image.new("L", large), Image.new("L", large)
    points = [(x * _FINE, y * _FINE) for x, y in shape.outline]
    ImageDraw.Draw(inside).polygon(points, fill=255)
    ImageDraw.Draw(rim).line([*points, *points[:2]], fill=255, width=_FINE + 2, joint="curve")
    inside, rim = (one.resize(size, Image.Resampling.BOX) for one in (inside, rim))
    shadow = inside.filter(ImageFilter.GaussianBlur(2.5))
    cover, edge, dark = (np.asarray(one) / 255 for one in (inside, rim, shadow))
    dark = np.roll(dark, (3, 2), axis=(0, 1))
    pixels = pixels * (1 - 0.45 * dark * (1 - cover))[..., None]
    xs, ys = (np.array(axis) for axis in zip(*shape.outline, strict=True))
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    across = (columns - xs.mean()) / np.ptp(xs) + (rows - ys.mean()) / np.ptp(ys)
    light = 1 - rng.uniform(0.1, 0.3) * np.clip(across, -1, 1) - 0.35 * edge
    face = shape.colour * light[..., None]
    return pixels + cover[..., None] * (face - pixels)


def _corners(shape: _Shape) -> dict[str, Any]:
    """Return the keypoints of an annotation, or nothing for a circle."""
    if shape.category_id == 1:
        return {}
    places = (0, 1, 2, 3) if shape.category_id == 2 else _TRIANGLE
    first = min(range(len(shape.outline)), key=lambda position: shape.outline[position][1])
    flat = [0.0] * (3 * len(CORNERS))
    # The outline runs clockwise, as y points down.
    for place, (x, y) in zip(places, shape.outline[first:] + shape.outline[:first], strict=True):
        flat[3 * place : 3 * place + 3] = [x, y, 2 if _is_seen(shape, x, y) else 1]
    return {"keypoints": flat, "num_keypoints": len(places)}


def _is_seen(shape: _Shape, x: float, y: float) -> bool:
    """True if no other shape covers all pixels of a shape around a point."""
    rows, columns = (slice(max(0, int(value) - 2), int(value) + 3) for value in (y, x))
    return bool(shape.visible[rows, columns].any())


def _annotation(shape: _Shape) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(shape.visible.astype(np.uint8)))
    segmentation: Any = [[number for point in shape.outline for number in point]]
    if shape.visible.sum() < shape.whole.sum():
        segmentation = {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
    return {
        "category_id": shape.category_id,
        "bbox": [float(number) for number in coco_mask.toBbox(rle)],
        "area": int(shape.visible.sum()),
        "iscrowd": 0,
        "segmentation": segmentation,
    }
