"""The images of one visitor, and what detectors found in them. A detector looks at an image once."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

from PIL import Image

from vovnet.detection.demo.bounds import Bounds, RateLimit
from vovnet.errors import InputError
from vovnet.images.reading import TooManyPixels, read_image, upright_size
from vovnet.results.detections import ImageDetections
from vovnet.results.names import distinct
from vovnet.results.scaling import scaled_detections, scaled_size
from vovnet.results.writing import FileDetector
from vovnet.terminal.text import printable

_SMALLEST_SIDE, _LARGEST_SIDE = 640, 1280
"""Longer side in pixels of the images that are shown. Others are resized after the detection and before the drawing, so
that letters can be read."""
_QUALITY = 92
_LONGEST_NAME = 80


@dataclass(frozen=True)
class Found:
    """What a detector found in an image."""

    detections: ImageDetections
    """In pixels of the file's image; without masks and keypoints."""
    entries: list[dict[str, Any]]
    """In pixels of the image that is shown, as :func:`vovnet.results.drawing.draw_detections` takes them."""
    limit_reached: bool
    """True if there may be more: the detector's limit cut them."""


@dataclass
class SessionImage:
    """An image of a visitor."""

    name: str
    content: bytes
    """Of the file, until every detector has seen it."""
    shown: bytes = b""
    """A JPEG of the image that is shown."""
    found: dict[str, Found] = field(default_factory=dict)
    """By the detector's name."""


@dataclass
class Session:
    """What is kept of a visitor: images, and messages about those that could not be used."""

    images: list[SessionImage] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Demo:
    """The detectors that visitors may choose from.

    Attributes:
        detectors: by the names that visitors see.
        bounds: of what visitors may ask.
        rate: counts it.
    """

    detectors: Mapping[str, FileDetector]
    bounds: Bounds
    rate: RateLimit

    def take(self, session: Session, files: Sequence[tuple[str, bytes]]) -> None:
        """Replace the images of a session.

        Args:
            session: it is changed. Messages tell of files that are refused.
            files: the name and the content of each.
        """
        session.images, session.messages = [], []
        most, largest = self.bounds.max_images, self.bounds.max_bytes
        if len(files) > most:
            session.messages.append(f"{len(files)} images are more than {most} at a time: the first {most} are used")
        names = distinct([printable(name)[-_LONGEST_NAME:] for name, _ in files[:most]], str)
        for name, (_, content) in zip(names, files, strict=False):
            if len(content) > largest:
                session.messages.append(f"{name}: the file is larger than {self.bounds.max_size_mb:g} MB")
            else:
                session.images.append(SessionImage(name, content))

    def detect(self, session: Session, names: Sequence[str], client: str) -> Iterator[str]:
        """Let detectors look at those images of a session that they have not seen, and yield a line before each.

        An image that cannot be used leaves the session, and a message of it says why.

        Args:
            session: it is changed.
            names: of the detectors.
            client: who asks; for the rate.
        """
        waiting = [(image, name) for image in session.images for name in names if name not in image.found]
        for number, (image, name) in enumerate(waiting, 1):
            if image not in session.images:
                continue
            if seconds := self.rate.wait_for(client):
                rest = f"in {ceil(seconds)} seconds" if seconds > 1 else "in a second"
                session.messages.append(
                    f"This demo looks at {self.bounds.rate} images a minute for each visitor; try again {rest}"
                )
                session.images = [one for one in session.images if all(name in one.found for name in names)]
                return
            yield f"{name}: {image.name} ({number} of {len(waiting)}) …"
            try:
                _look(image, name, self.detectors[name], self.bounds.max_pixels)
                if len(image.found) == len(self.detectors):
                    image.content = b""  # nobody needs it any more
            except InputError as error:
                session.messages.append(str(error))
                session.images.remove(image)


def _look(image: SessionImage, name: str, detector: FileDetector, max_pixels: int) -> None:
    """Add what a detector finds in an image.

    Raises:
        InputError: the image cannot be used.
    """
    pixels = _read(image, detector.channels, max_pixels)
    try:
        (found,) = detector.detect([pixels], [image.name])
    except detector.memory_errors as error:
        raise InputError(f"{image.name}: the memory of this computer is too small for it") from error
    longest = max(pixels.size)
    scale = min(max(longest, _SMALLEST_SIDE), _LARGEST_SIDE) / longest
    if not image.shown:
        image.shown = _jpeg(pixels, scale)
    entries = found.named(detector.categories)
    if scale != 1:
        entries = scaled_detections(entries, scale, pixels.size)
    small = replace(found, masks=None, keypoints=None)
    image.found[name] = Found(small, entries, detector.limits.reached(found))


def _read(image: SessionImage, channels: int, max_pixels: int) -> Image.Image:
    file = io.BytesIO(image.content)
    file.name = image.name  # messages name it
    width, height = upright_size(file)
    if width * height > max_pixels:
        raise TooManyPixels(
            f"{image.name}: {width} × {height} pixels are more than the {max_pixels:,} that this demo takes; make the "
            "image smaller"
        )
    return read_image(file, channels)


def _jpeg(image: Image.Image, scale: float) -> bytes:
    small = image.convert("RGB")
    if scale != 1:
        small = small.resize(scaled_size(image.size, scale), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=_QUALITY, subsampling=0)
    return file.getvalue()
