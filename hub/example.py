"""The drawn example of a model card: one image, chosen by the publisher, with a detector's detections."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from PIL import Image

from vovnet.detection.inference_mode import input_channels
from vovnet.detection.prediction.predictor import predict
from vovnet.files import atomic_path
from vovnet.images.reading import read_image
from vovnet.results.drawing import draw_detections
from vovnet.results.limits import LimitWarning

EXAMPLE_THRESHOLD = 0.5
"""The lowest score of a detection that is drawn."""

_LONGEST_SIDE = 1280  # pixels, so that the page loads fast
_JPEG_QUALITY = 90


def draw_example(detector: Any, image: Path, out: Path) -> int:
    """Write a JPEG of an image with a detector's detections, and return how many are drawn.

    The file holds pixels alone: no EXIF data, such as the place of a photo, and not the image's name.

    Args:
        detector: As :func:`vovnet.detection.load_detector` returns it.
        image: An image file. It is turned upright, and shrunk if it is large.
        out: The file to write.

    Raises:
        InputError: The image cannot be read.
        OSError: ``out`` cannot be written.
    """
    pixels = read_image(image, channels=input_channels(detector))
    pixels.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LimitWarning)  # those above the threshold are what counts here
        (detections,) = predict(detector, [pixels])
    drawn = draw_detections(pixels, detections, EXAMPLE_THRESHOLD)
    with atomic_path(out) as temporary:
        drawn.save(temporary, quality=_JPEG_QUALITY)
    return sum(one["score"] >= EXAMPLE_THRESHOLD for one in detections)
