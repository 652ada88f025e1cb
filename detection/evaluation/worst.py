"""The images with the most errors on one sheet."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from torchvision.transforms.v2 import functional

from vovnet.detection.analysis.explaining import Analysis
from vovnet.detection.data.pixels import as_bytes, to_pixels
from vovnet.detection.data.protocol import DetectionDataset
from vovnet.results.detections import ImageDetections
from vovnet.results.drawing import prediction_sheet

if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval

WORST = 20
"""The number of images on the sheet."""


def plot_worst(
    analysis: Analysis,
    evaluated: COCOeval,
    detections: Mapping[int, ImageDetections],
    dataset: DetectionDataset,
    places: Mapping[int, int],
    out_png: str | os.PathLike[str],
) -> None:
    """Draw the images with the most missed objects and false detections, the worst first, with the truth.

    A detection is drawn if its score reaches the best threshold of its class. If no image has an error, nothing is
    drawn, and what an earlier evaluation drew is removed.

    Args:
        analysis: has the images in this order.
        evaluated: what was analysed; has the ground truth.
        detections: of each image, by its id.
        dataset: has the pixels.
        places: the index in the dataset of an image's id.
        out_png: written atomically.
    """
    chosen = [one.image_id for one in analysis.images[:WORST] if one.total]
    if not chosen:
        Path(out_png).unlink(missing_ok=True)
        return
    ids = [int(number) for number in evaluated.params.catIds]
    categories = [{"id": number, "name": name} for number, name in zip(ids, analysis.names, strict=True)]
    names = dict(zip(ids, analysis.names, strict=True))
    thresholds = {number: point.threshold for number, point in zip(ids, analysis.best, strict=True)}
    samples = []
    for image_id in chosen:
        listed = detections[image_id].named(categories)
        found = [one for one in listed if one["score"] >= thresholds[one["category_id"]]]
        truth = [
            {"bbox": one["bbox"], "category": names[one["category_id"]]}
            for one in evaluated.cocoGt.imgToAnns[image_id]
            if one["category_id"] in names
        ]
        samples.append((_image(dataset, places[image_id]), found, truth))
    title = f"The {len(samples)} images with the most errors; dashed, with white names: the truth"
    prediction_sheet(samples, out_png, 0.0, title=title)


def _image(dataset: DetectionDataset, index: int) -> Image.Image:
    image, _ = dataset[index]
    channels = int(image.shape[-3])
    pixels = to_pixels(image, channels, f"dataset[{index}]").cpu()
    drawn: Image.Image = functional.to_pil_image(as_bytes(pixels if channels == 3 else pixels[:1]))
    return drawn
