"""Draw detections into images: translucent masks, boxes, skeletons, and labels on a ground of their own."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vovnet.errors import InputError
from vovnet.files import atomic_path
from vovnet.results.lettering import Font, Rgb, category_colour, drawable, label_font
from vovnet.results.rle import decode, encode_part
from vovnet.results.skeletons import Skeleton, draw_keypoints

Rectangle = tuple[float, float, float, float]

_MASK_OPACITY = 0.42
_SIDE = 384
"""Longer side of an image on a sheet, in pixels."""


def draw_detections(
    image: Image.Image,
    detections: Sequence[Mapping[str, Any]],
    threshold: float = 0.5,
    *,
    labels: bool = True,
    scores: bool = True,
    skeletons: Mapping[int, Skeleton] | None = None,
) -> Image.Image:
    """Draw detections into a copy of an image, the best on top. A category has the same colour in every image.

    Args:
        image: in any mode; it is not changed.
        detections: as :func:`vovnet.detection.predict` returns them: ``bbox`` [x, y, width, height] in pixels,
            ``category_id``, ``category`` and ``score``; optional ``segmentation`` (an RLE of the image's size) and
            ``keypoints``, of which those with a score of at least
            :data:`~vovnet.results.skeletons.POINT_SCORE` are drawn.
        threshold: detections with a lower score are not drawn.
        labels: write category and score beside each box.
        scores: False leaves out the score.
        skeletons: :func:`~vovnet.results.skeletons.skeletons_of` the categories; points are joined by its lines. Where
            some categories have a skeleton, the points of others, which mean nothing, are not drawn.

    Returns:
        A new ``RGB`` image of the same size. Lines and letters scale with it.

    Raises:
        InputError: ``threshold`` is not in 0..1.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold: expected a number from 0 to 1, got {threshold}")
    shown = sorted((one for one in detections if one["score"] >= threshold), key=lambda one: float(one["score"]))
    line = line_width(image.size)
    pixels = np.array(image.convert("RGB"))
    for one in shown:
        if "segmentation" in one:
            _paint_mask(pixels, decode(one["segmentation"]), category_colour(int(one["category_id"])), line)
    drawn = Image.fromarray(pixels)
    draw = ImageDraw.Draw(drawn)
    for one in shown:
        draw.rectangle(_corners(one["bbox"], drawn.size), outline=category_colour(int(one["category_id"])), width=line)
    for one in shown:
        skeleton = (skeletons or {}).get(int(one["category_id"]), None if skeletons else Skeleton())
        if "keypoints" in one and skeleton is not None:
            draw_keypoints(draw, one["keypoints"], skeleton, line)
    if labels:
        font = label_font(max(10, round(max(image.size) / 55)))
        taken: list[Rectangle] = []
        # The best detections come first, so that their labels get the best places.
        for one in reversed(shown):
            text = drawable(one["category"]) + (f" {one['score']:.2f}" if scores else "")
            _label(draw, text, _corners(one["bbox"], drawn.size), category_colour(int(one["category_id"])), font, taken)
    return drawn


def draw_truth(image: Image.Image, annotations: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Draw annotations into a copy of an image: boxes as dashed white lines with a dark outline, keypoints as rings."""
    drawn = image.convert("RGB").copy()
    draw = ImageDraw.Draw(drawn)
    line = line_width(image.size)
    for annotation in annotations:
        left, top, right, bottom = _corners(annotation["bbox"], drawn.size)
        for start, end in (
            ((left, top), (right, top)),
            ((right, top), (right, bottom)),
            ((right, bottom), (left, bottom)),
            ((left, bottom), (left, top)),
        ):
            _dashes(draw, start, end, line)
        flat = annotation.get("keypoints", ())
        for x, y, visible in zip(flat[0::3], flat[1::3], flat[2::3], strict=True):
            if visible > 0:
                for radius, colour in ((line + 4, (0, 0, 0)), (line + 3, (255, 255, 255))):
                    draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=1)
    return drawn


def prediction_sheet(
    samples: Sequence[tuple[Image.Image, Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]],
    out_png: str | os.PathLike[str],
    threshold: float = 0.5,
    columns: int = 4,
    skeletons: Mapping[int, Skeleton] | None = None,
) -> None:
    """Write one image that shows several images with their detections (coloured, labelled) and the truth.

    True boxes are dashed, and true keypoints are rings.

    Args:
        samples: for each image: the image, its detections as :func:`vovnet.detection.predict` returns them, and its
            annotations in COCO's format (``bbox`` and optional ``keypoints`` in pixels; may be empty).
        out_png: written atomically.
        threshold: detections with a lower score are not drawn.
        columns: largest number of images in a row.
        skeletons: as for :func:`draw_detections`.

    Raises:
        InputError: ``samples`` is empty.
    """
    if not samples:
        raise InputError("prediction_sheet: no images were given")
    cells = [_cell(image, detections, truth, threshold, True, skeletons) for image, detections, truth in samples]
    _write_sheet(cells, f"Detections with score ≥ {threshold:g}; dashed: the truth", out_png, columns)


def object_sheet(
    samples: Sequence[tuple[Image.Image, Sequence[Mapping[str, Any]]]],
    title: str,
    out_png: str | os.PathLike[str],
    columns: int = 4,
    skeletons: Mapping[int, Skeleton] | None = None,
) -> None:
    """Write one image that shows several images with their objects, drawn like detections without scores.

    Args:
        samples: for each image: the image, and its objects as in :func:`prediction_sheet`, but for the score.
        title: a line above the images.
        out_png: written atomically.
        columns: largest number of images in a row.
        skeletons: as for :func:`draw_detections`.
    """
    cells = [
        _cell(image, [{**one, "score": 1.0} for one in objects], [], 0.0, False, skeletons)
        for image, objects in samples
    ]
    _write_sheet(cells, title, out_png, columns)


def _write_sheet(cells: Sequence[Image.Image], title: str, out_png: str | os.PathLike[str], columns: int) -> None:
    side, gap, head = _SIDE, 10, 44
    columns = min(columns, len(cells))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    sheet = Image.new("RGB", (columns * (side + gap) + gap, head + sum(heights) + gap * len(rows)), "white")
    top = head
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            left = gap + column * (side + gap)
            sheet.paste(cell, (left + (side - cell.width) // 2, top + (height - cell.height) // 2))
        top += height + gap
    ImageDraw.Draw(sheet).text((gap, 12), drawable(title, 80), fill="#222222", font=label_font(20))
    with atomic_path(out_png) as temporary:
        sheet.save(temporary)


def _cell(
    image: Image.Image,
    detections: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    threshold: float,
    scores: bool,
    skeletons: Mapping[int, Skeleton] | None,
) -> Image.Image:
    """Return one image of the sheet. It is resized before drawing, so that lines and letters stay sharp."""
    scale = _SIDE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    resized = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    scaled = []
    for one in detections:
        entry = _scaled(one, scale)
        if "segmentation" in one and one["score"] >= threshold:
            mask = Image.fromarray(decode(one["segmentation"]).astype(np.uint8) * 255)
            smooth = np.asarray(mask.resize(size, Image.Resampling.BILINEAR)) > 127
            counts = encode_part(smooth, (0, 0), (size[1], size[0]))
            entry["segmentation"] = {"size": [size[1], size[0]], "counts": counts}
        scaled.append(entry)
    truth = [_scaled(one, scale) for one in annotations]
    return draw_detections(draw_truth(resized, truth), scaled, threshold, scores=scores, skeletons=skeletons)


def _scaled(one: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Return a detection or annotation with its box and keypoints scaled."""
    entry = {**one, "bbox": [value * scale for value in one["bbox"]]}
    if "keypoints" in one:
        factors = itertools.cycle((scale, scale, 1))
        entry["keypoints"] = [value * factor for value, factor in zip(one["keypoints"], factors, strict=False)]
    return entry


def line_width(size: tuple[int, int]) -> int:
    """Return the width of lines in pixels: 1 in a small image, 3 at 1200 pixels."""
    return max(1, round(max(size) / 400))


def _paint_mask(pixels: NDArray[np.uint8], mask: NDArray[np.bool_], colour: Rgb, line: int) -> None:
    """Tint the pixels (H, W, 3) of a mask (H, W) and draw its inner outline, in place."""
    if mask.shape != pixels.shape[:2]:
        raise InputError(f"segmentation: its size is {mask.shape}, the image's {pixels.shape[:2]} (height, width)")
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return
    # Only the mask's bounding box is processed: images may be large and objects many.
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    part, inside = pixels[window], mask[window]
    tint = np.asarray(colour, dtype=np.float32)
    part[inside] = (part[inside] * (1 - _MASK_OPACITY) + tint * _MASK_OPACITY).astype(np.uint8)
    core = inside
    for _ in range(line):
        padded = np.pad(core, 1)
        core = core & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    part[inside & ~core] = colour


def _corners(box: Sequence[float], size: tuple[int, int]) -> Rectangle:
    """Return the corner pixels of an [x, y, width, height] box, clipped to an image of (width, height)."""
    x, y, width, height = box
    left, top = min(max(x, 0), size[0] - 1), min(max(y, 0), size[1] - 1)
    return left, top, min(max(x + width - 1, left), size[0] - 1), min(max(y + height - 1, top), size[1] - 1)


def _label(
    draw: ImageDraw.ImageDraw, text: str, box: Rectangle, colour: Rgb, font: Font, taken: list[Rectangle]
) -> None:
    """Write a text on a filled ground above the box, or at the first other place that no label has taken."""
    # Every label is as tall as the tallest letters, so that labels line up.
    _, top, _, bottom = draw.textbbox((0, 0), "Äg", font=font)
    pad = max(2, (bottom - top) // 6)
    width, height = draw.textlength(text, font=font) + 2 * pad, bottom - top + 2 * pad
    image_width, image_height = draw.im.size

    def at(x: float, y: float) -> Rectangle:
        x = max(0, min(x, image_width - width))
        y = max(0, min(y, image_height - height))
        return x, y, x + width, y + height

    # Above; inside at the top; below; inside at the bottom.
    places = [at(box[0], box[1] - height), at(box[0], box[1]), at(box[0], box[3] + 1), at(box[0], box[3] - height)]
    place = next((one for one in places if not any(_overlap(one, other) for other in taken)), places[0])
    taken.append(place)
    draw.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=colour)
    # Relative luminance (ITU-R BT.601 weights) decides between black and white letters.
    dark_ground = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 140
    draw.text((place[0] + pad, place[1] + pad - top), text, fill="white" if dark_ground else "black", font=font)


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _dashes(draw: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], line: int) -> None:
    length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
    step = 4.0 * line
    count = max(1, int(length / step))
    for index in range(0, count, 2):
        one, other = index / count, (index + 1) / count
        ends = [
            (start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share) for share in (one, other)
        ]
        draw.line(ends, fill=(0, 0, 0), width=line + 2)
        draw.line(ends, fill=(255, 255, 255), width=line)
