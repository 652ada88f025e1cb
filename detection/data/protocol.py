"""The types of a dataset, as training and evaluation use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from vovnet.detection.config.categories import Category

Target = dict[str, Any]
"""The objects of an image; :class:`DetectionDataset` lists the keys."""


class DetectionDataset(Protocol):
    """A dataset for training or evaluation. Any object with these attributes can be used; no base class is needed.

    ``dataset[i]`` returns ``(image, target)``. The image is a ``tv_tensors.Image``, uint8 (C, H, W), RGB or with as
    many channels as the model takes, or another kind that :func:`vovnet.detection.data.pixels.to_pixels` converts. The
    target is a dict with

    - ``boxes``: ``tv_tensors.BoundingBoxes`` or a tensor, float32 (N, 4), x0, y0, x1, y1 in absolute pixels. Boxes are
      clipped to the image; one that is outside, or has no width or height, is an error;
    - ``labels``: int64 (N,) in 1..K. 0 is the background, and label k means ``dataset.categories[k - 1]``;
    - ``image_id``: int, different for each image; without it, the index is the id;
    - ``masks``, if there are masks: ``tv_tensors.Mask`` or a tensor, uint8 (N, H, W) of 0 and 1;
    - ``keypoints``, if the categories name keypoints: float32 (N, P, 3), x, y in pixels and v of each of the P
      points: 0 if it is not labelled, 1 if it is labelled but hidden, 2 if it is visible. A point outside of the image
      counts as not labelled. Objects without any labelled point have zeros; only their boxes are trained;
    - ``iscrowd``, 0 or 1 (N,), and ``area``, float32 (N,) in pixels: optional. Training leaves out crowds.

    Other integers and floats, arrays and lists are converted. Other keys are ignored. Training and evaluation check
    each sample in the same way (:func:`vovnet.detection.data.samples.check_sample`); an error names the sample.

    These attributes are optional:

    - ``dataset.image_size(i)`` returns ``(height, width)`` in pixels without decoding the image. Training then puts
      wide and high images into separate batches.
    - ``dataset.ground_truth`` is a COCO JSON object (``images``, ``annotations``, ``categories``) to evaluate against.
      Without it, evaluation uses the targets.
    - ``dataset.file_name(i)`` returns the image's name for messages.
    - ``dataset.image_id(i)`` returns the image's id without loading it, for parts and concatenations of datasets.
    - ``dataset.image_labels(i)`` returns the labels (1..K) of the image's objects without decoding it, for
      ``data.repeat_threshold``.

    ``Subset`` and ``ConcatDataset`` of torch take these attributes from the datasets in them. A concatenation needs
    datasets with the same categories; images whose ids an earlier part has get new ones.

    A dataset is copied into loader processes, so it should open files when a sample is requested, not before.
    """

    @property
    def categories(self) -> Sequence[Category]:
        """``[{"id": int, "name": str}, ...]`` sorted by id. The ids are arbitrary and are used in results.

        A category may name its ``keypoints``; all that do need as many, with left and right at the same positions.
        Names with the words left and right, or l and r, are swapped in mirror images. ``skeleton`` has pairs of their
        positions, from 1.
        """
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitem__(self, index: int, /) -> tuple[Any, Target]:
        """Return an image and its target."""
        ...
