"""What can be wrong with an image file."""

from __future__ import annotations

from vovnet.errors import InputError


class UnreadableImage(InputError):
    """An image is missing, truncated, not an image at all, or of a kind that is not supported."""


class TooManyPixels(UnreadableImage):
    """An image has more pixels than the limit. Only its header was read."""


class ImageSizeError(InputError):
    """An image's width and height differ from those in its annotation file."""
