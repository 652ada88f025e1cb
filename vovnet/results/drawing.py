"""Draw detections into images: translucent masks, boxes, skeletons, and labels that can be read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vovnet.errors import InputError
from vovnet.files import atomic_path
from vovnet.results.labels import LabelMode, Labels, Rectangle, check_labels, draw_legend, needs_legend, paint
from vovnet.results.lettering import category_colour, drawable, label_font
from vovnet.results.rle import decode_part
from vovnet.results.scaling import scaled_detections, scaled_entry, scaled_size
from vovnet.results.skeletons import Skeleton, draw_keypoints
from vovnet.results.thresholds import USUAL, Threshold, Thresholds

_SIDE = 384
"""Longer side of an image on a sheet, in pixels."""


def draw_detections(
    image: Image.Image,
    detections: Sequence[Mapping[str, Any]],
    threshold: Threshold = USUAL,
    *,
    labels: LabelMode | bool = "auto",
    scores: bool = True,
    skeletons: Mapping[int, Skeleton] | None = None,
    truth: Sequence[Mapping[str, Any]] = (),
    boxes: bool = True,
) -> Image.Image:
    """Draw detections into a copy of an image, the best on top. A category has the same colour in every image.

    Args:
        image: in any mode; it is not changed.
        detections: as :func:`vovnet.detection.predict` returns them: ``bbox`` [x, y, width, height] in pixels,
            ``category_id``, ``category`` and ``score``; optional ``segmentation`` (an RLE of the image's size) and
            ``keypoints``, of which those with a score of at least
            :data:`~vovnet.results.skeletons.POINT_SCORE` are drawn.
        threshold: detections with a lower score are not drawn; a number, or one for each category's name.
        labels: ``auto`` writes category and score beside a box where there is a free place, else the category alone,
            and nothing if that would hide another label or object; letters are small where boxes are. A legend then
            counts the categories in the emptiest corner. ``all`` writes every label, ``none`` no text. True means
            ``auto``, and False ``none``.
        scores: False leaves out the score.
        skeletons: :func:`~vovnet.results.skeletons.skeletons_of` the categories; points are joined by its lines. Where
            some categories have a skeleton, the points of others, which mean nothing, are not drawn.
        truth: annotations in COCO's format, drawn by :func:`draw_truth`, with the name of those that have a
            ``category``.
        boxes: False leaves out the boxes.

    Returns:
        A new ``RGB`` image of the same size. Lines and letters scale with it.

    Raises:
        InputError: ``threshold`` is not in 0..1.
    """
    passed = Thresholds.of(threshold).passed(detections)
    mode: LabelMode = {True: "auto", False: "none"}.get(labels, labels)  # type: ignore[arg-type, assignment]
    check_labels(mode)
    shown = sorted(passed, key=lambda one: float(one["score"]))
    line = _line_of(shown, image.size)
    pixels = np.array(draw_truth(image, truth) if truth else image.convert("RGB"))
    for one in shown:
        if "segmentation" in one:
            if tuple(one["segmentation"]["size"]) != pixels.shape[:2]:
                size = tuple(one["segmentation"]["size"])
                raise InputError(f"segmentation: its size is {size}, the image's {pixels.shape[:2]} (height, width)")
            paint(pixels, *decode_part(one["segmentation"]), category_colour(int(one["category_id"])), line)
    drawn = Image.fromarray(pixels)
    draw = ImageDraw.Draw(drawn)
    corners = [_corners(one["bbox"], drawn.size) for one in shown]
    for one, box in zip(shown, corners, strict=True) if boxes else ():
        draw.rectangle(box, outline=category_colour(int(one["category_id"])), width=line)
    for one in shown:
        skeleton = (skeletons or {}).get(int(one["category_id"]), None if skeletons else Skeleton())
        if "keypoints" in one and skeleton is not None:
            draw_keypoints(draw, one["keypoints"], skeleton, line)
    _write(draw, shown, corners, [one for one in truth if one.get("category")], mode, scores)
    return drawn


def _write(
    draw: ImageDraw.ImageDraw,
    shown: Sequence[Mapping[str, Any]],
    corners: Sequence[Rectangle],
    truth: Sequence[Mapping[str, Any]],
    mode: LabelMode,
    scores: bool,
) -> None:
    """Write labels, those of the best detections first, so that they get the best places, and a legend."""
    known = [_corners(one["bbox"], draw.im.size) for one in truth]
    labels = Labels(draw, [*corners, *known], mode)
    for one, box in zip(reversed(shown), reversed(corners), strict=True):
        name = drawable(one["category"])
        texts = [f"{name} {one['score']:.2f}", name] if scores else [name]
        labels.write(texts, box, category_colour(int(one["category_id"])))
    for one, box in zip(truth, known, strict=True):
        labels.write([drawable(str(one["category"]))], box, (255, 255, 255))
    if needs_legend(labels, shown):
        draw_legend(draw, shown, corners)


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
    threshold: Threshold = USUAL,
    columns: int = 4,
    skeletons: Mapping[int, Skeleton] | None = None,
    title: str | None = None,
) -> None:
    """Write one image that shows several images with their detections (coloured, labelled) and the truth.

    True boxes are dashed and named in white, and true keypoints are rings.

    Args:
        samples: for each image: the image, its detections as :func:`vovnet.detection.predict` returns them, and its
            annotations in COCO's format (``bbox`` and optional ``keypoints`` in pixels, ``category`` for its name; may
            be empty).
        out_png: written atomically.
        threshold: detections with a lower score are not drawn; a number, or one for each category's name.
        columns: largest number of images in a row.
        skeletons: as for :func:`draw_detections`.
        title: a line above the images; None explains what is drawn.

    Raises:
        InputError: ``samples`` is empty.
    """
    if not samples:
        raise InputError("prediction_sheet: no images were given")
    cells = [_cell(image, detections, truth, threshold, True, skeletons) for image, detections, truth in samples]
    title = title or f"Detections with score ≥ {Thresholds.of(threshold)}; dashed, with white names: the truth"
    _write_sheet(cells, title, out_png, columns)


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
    threshold: Threshold,
    scores: bool,
    skeletons: Mapping[int, Skeleton] | None,
) -> Image.Image:
    """Return one image of the sheet. It is resized before drawing, so that lines and letters stay sharp."""
    scale = _SIDE / max(image.size)
    resized = image.convert("RGB").resize(scaled_size(image.size, scale), Image.Resampling.BICUBIC)
    scaled = scaled_detections(Thresholds.of(threshold).passed(detections), scale, image.size)
    truth = [scaled_entry(one, scale) for one in annotations]
    return draw_detections(resized, scaled, threshold, scores=scores, skeletons=skeletons, truth=truth)


def _line_of(shown: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> int:
    """Return the width of the lines of some detections: that of the image, but thinner around small boxes."""
    sides = [min(one["bbox"][2:]) for one in shown]
    return max(1, min(line_width(size), round(float(np.median(sides)) / 20))) if sides else line_width(size)


def line_width(size: tuple[int, int]) -> int:
    """Return the width of lines in pixels: 1 in a small image, 3 at 1200 pixels."""
    return max(1, round(max(size) / 400))


def _corners(box: Sequence[float], size: tuple[int, int]) -> Rectangle:
    """Return the corner pixels of an [x, y, width, height] box, clipped to an image of (width, height)."""
    x, y, width, height = box
    left, top = min(max(x, 0), size[0] - 1), min(max(y, 0), size[1] - 1)
    return left, top, min(max(x + width - 1, left), size[0] - 1), min(max(y + height - 1, top), size[1] - 1)


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
