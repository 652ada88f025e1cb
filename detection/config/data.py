"""The keys of a recipe's ``data``: the images for training and evaluation, and how they are varied."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from pydantic import Field

from vovnet.detection.config.fields import Flag, Integer, Number, Pixels, Positive
from vovnet.detection.config.parts import recipe_part
from vovnet.detection.config.sources import PathOrSource


@recipe_part("data")
class DataRecipe:
    """The data for training and evaluation, and how images are varied."""

    train: list[PathOrSource] = field(default_factory=list)
    """Training data: a list of ``{images: FOLDER, annotations: FILE.json}``, of ``{yolo: data.yaml}``, of
    ``{voc: FOLDER}`` or of folders whose format is found out (docs/reference/data.md)."""
    val: list[PathOrSource] = field(default_factory=list)
    """Validation data in the same form. Without any, nothing is evaluated and the last weights are published."""
    keep_empty: Flag = True
    """Keep training images without objects."""
    min_keypoints: Integer = Field(default=0, ge=0, le=1_000_000)
    """For detectors of keypoints: leave out training images with fewer labelled keypoints. torchvision's references
    have 10 for COCO."""
    crop: Annotated[Integer, Field(ge=32, le=20_000)] | None = None
    """Side in pixels of squares that are cut out of larger images before the resize, another each time that an image
    comes; nine of ten show an object. Evaluations in the training cut tiles of this size. null takes images whole."""
    train_min_sizes: list[Pixels] = Field(default_factory=[800].copy, min_length=1, max_length=1024)
    """Short sides in pixels; one is drawn for each image."""
    train_max_size: Pixels = 1333
    """Upper limit of the long side, in pixels."""
    flip: Number = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    vertical_flip: Number = Field(default=0.0, ge=0, le=1)
    """Probability of a vertical flip."""
    scale_jitter: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None = None
    """``[low, high]`` for large-scale jitter (arXiv:2012.07177): a random scale, then a crop to ``train_max_size``.
    It replaces ``train_min_sizes``."""
    colour: Number = Field(default=0.0, ge=0, le=1)
    """Strength of brightness, contrast, saturation and hue jitter, from 0 to 1."""
    mosaic: Number = Field(default=0.0, ge=0, le=1)
    """Probability that an image becomes a mosaic of itself and three others (arXiv:2004.10934), after the transforms
    above."""
    mosaic_off: Number = Field(default=0.15, ge=0, le=1)
    """Last part of the training, as a fraction, that has no mosaics (arXiv:2107.08430)."""
    copy_paste: Number = Field(default=0.0, ge=0, le=1)
    """Probability that objects of another image are pasted into an image by their masks, each with probability 0.5
    (arXiv:2012.07177). It needs masks."""
    repeat_threshold: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Fraction of the images below which a category is rare. Images with rare categories come more often in an epoch,
    sqrt(threshold / fraction) times on average (repeat-factor sampling, arXiv:1908.03195). null takes each once."""
    aspect_ratio_groups: Flag = True
    """Fill each batch with only wide or only high images."""
    workers: Integer = Field(default=2, ge=0, le=1024)
    """Data loader processes of each training process."""
    timeout: Number = Field(default=600.0, ge=0, le=31_536_000)
    """Seconds to wait for a batch from the loader processes, and for the other processes of a run; after that the run
    ends with an error. 0 waits forever."""
    max_pixels: Annotated[Integer, Field(ge=1, le=2**62)] | None = None
    """Images with more pixels (width × height) are not read. null is Pillow's limit of 178,956,970, which protects from
    files that fill the memory."""
