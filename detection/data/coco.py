"""The dataset of COCO JSON files and their folders of images."""

from __future__ import annotations

import copy
import marshal
import warnings
from array import array
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from vovnet.detection.config.categories import Category, mirror_order
from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.annotations import AnnotationFile
from vovnet.detection.data.category_names import join_categories, match_categories
from vovnet.detection.data.checked_images import CheckedImage, CheckedObject, labelled_keypoints, renumber
from vovnet.detection.data.ground_truth import ground_truth_of
from vovnet.detection.data.masks import EncodedMasks, Segmentation, decode_masks
from vovnet.detection.data.object_sizes import ObjectSizes
from vovnet.detection.data.protocol import Target
from vovnet.detection.data.report import KINDS, LOST_IMAGE, DataReport
from vovnet.detection.data.sources import SourceFile, read_source, take_ids
from vovnet.detection.data.validation import check_content, check_keypoint_names
from vovnet.errors import InputError
from vovnet.images.channels import read_pixels
from vovnet.images.folder import ImageFolder
from vovnet.images.reading import ImageSizeError, UnreadableImage, example_names
from vovnet.images.tensors import to_tensor

D = TypeVar("D")
ATTEMPTS = 100
"""Number of successive images that may fail before training stops: so many mean a broken disk, not a broken file."""


class CocoDataset(Dataset[Any]):
    """One or several COCO JSON files as one dataset. Images are decoded when they are requested.

    In training, unusable images and annotations are left out and counted in ``dropped``, by the rules of ``vovnet
    check-data``. Targets have no crowds, and boxes are clipped to the image. Images are not decoded at the start, which
    would take too long. If an image turns out to be truncated or to have another size than in its entry, the next good
    one is returned in its place, with a warning.

    In evaluation every image is kept. A missing or unreadable image raises an ``InputError`` that names it.

    Image ids are those of the files. If a later file uses an id of an earlier one, its image gets a new id;
    :meth:`source_of` returns the file and the id there. An image in two files counts as two images.

    Args:
        sources: The annotation files and the folders of their images.
        masks: Return masks, and treat annotations without a sound one as unusable. In evaluation, data without any
            segmentation is used for boxes only.
        training: Use the rules of training (see above) or of evaluation.
        keep_empty: In training, keep images without objects other than crowds.
        channels: 3 for RGB, 1 for grey.
        max_pixels: Images with more pixels are unreadable. None is Pillow's limit.
        keypoints: Return keypoints. In evaluation, data without any is used for boxes only.
        min_keypoints: In training with keypoints, leave out images with fewer labelled ones, as torchvision's
            references do. Objects without any are kept: their boxes are trained.
        categories: The categories in label order, such as a detector's. They must include those of the files.
        category_names: If True, the names must agree as well as the ids; if False, the sets of ids must be equal.

    Attributes:
        categories: ``{"id", "name"}`` sorted by id, or as given; label k in 1..K means ``categories[k - 1]``.
        dropped: The report of what was found wrong at the start.
        ground_truth: In evaluation, a COCO JSON object of all files for pycocotools, with crowds, ``area`` and
            ``iscrowd``. None in training.

    Raises:
        InputError: A file cannot be read or is not COCO JSON, files contradict each other, or nothing usable is left.
    """

    def __init__(
        self,
        sources: Sequence[DataSource],
        *,
        masks: bool,
        training: bool,
        keep_empty: bool = True,
        channels: int = 3,
        max_pixels: int | None = None,
        keypoints: bool = False,
        min_keypoints: int = 0,
        categories: Sequence[Mapping[str, Any]] | None = None,
        category_names: bool = True,
    ) -> None:
        if not sources:
            raise InputError("data: no annotation files; expected a list of {images: FOLDER, annotations: FILE.json}")
        self.training, self.channels, self.max_pixels = training, channels, max_pixels
        self.keypoints = self.wants_keypoints = keypoints
        self.encoded = False
        self.dropped = DataReport()
        self._files: list[str] = []
        known: dict[int, tuple[Category, str]] = {}
        images: list[CheckedImage] = []
        origins: list[tuple[int, int]] = []
        any_masks = False
        for file in (one for source in sources for one in read_source(source, "train" if training else "val")):
            content = file.content
            if keypoints and (training or content.has_keypoints):
                check_keypoint_names(content, self.dropped)
            take_ids(file, [*(categories or ()), *(category for category, _ in known.values())])
            join_categories(known, content.categories, file.name, keypoints)
            found = self._check(file, masks)
            any_masks = any_masks or any(one.segmentation for image in found for one in image.objects)
            origins += [(len(self._files), image.image_id) for image in found]
            self._files.append(file.name)
            renumber(found, {image.image_id for image in images})
            images += found
        self.masks = masks and (any_masks or training)
        ours = [category for _, (category, _) in sorted(known.items())]
        self.keypoints = keypoints and any(one.keypoints is not None for image in images for one in image.objects)
        self.categories = ours if categories is None else match_categories(ours, categories, category_names)
        kept = [
            (image, origin)
            for image, origin in zip(images, origins, strict=True)
            if not training or keep_empty or any(not one.crowd for one in image.objects)
            if not (training and self.keypoints) or labelled_keypoints(image) >= min_keypoints
        ]
        self._refuse_nothing([image for image, _ in kept])
        self._origins = [origin for _, origin in kept]
        used = [image for image, _ in kept]
        # Their number, after refusing keypoints that flips could not swap.
        order = mirror_order(self.categories, ", ".join(self._files)) if self.keypoints else None
        count = None if order is None else len(order)
        self.ground_truth = None if training else ground_truth_of(used, self.categories, self.masks, count)
        self._pack(used, count)

    def _check(self, file: SourceFile, masks: bool) -> list[CheckedImage]:
        report = self.dropped
        report.annotation_files.append(file.name)
        if masks and not self.training:
            masks = file.content.has_masks
        found = self._usable(file.content, file.folder, masks)
        for kind in sorted(LOST_IMAGE) if not self.training else ():
            if kind in report.problems:
                examples = example_names(report.examples[kind], len(report.problems[kind]))
                raise InputError(
                    f"{file.name}: {KINDS[kind].text}: {examples}; an evaluation needs every image, "
                    "`vovnet check-data` lists what is wrong"
                )
        return found

    def _usable(self, content: AnnotationFile, folder: ImageFolder, masks: bool) -> list[CheckedImage]:
        """Return the images and objects of a file to use, in the dataset's order, and add the rest to ``dropped``."""
        return check_content(
            content, folder, masks, self.dropped, evaluation=not self.training, keypoints=self.keypoints
        )

    def _refuse_nothing(self, images: Sequence[CheckedImage]) -> None:
        files = ", ".join(map(str, self._files))
        if self.training and self.wants_keypoints and not any(map(labelled_keypoints, images)):
            raise InputError(
                f"{files}: no object has a labelled keypoint, or none is left by data.min_keypoints, and this detector "
                "is trained on keypoints; a model.detector without keypoints needs none"
            )
        if any(not one.crowd for image in images for one in image.objects):
            return
        if self.masks and images and "no_mask" in self.dropped.problems:
            hint = "no annotation has a usable mask; a model.detector without masks needs none"
        else:
            hint = self.dropped.summary() or "there are no annotations"
        raise InputError(f"{files}: empty dataset: no usable object is in it ({hint})")

    def _pack(self, images: Sequence[CheckedImage], keypoints: int | None) -> None:
        """Store images and objects, with their number of keypoints, in flat arrays.

        They need a tenth of the memory of objects, and forked workers do not copy them by changing reference counts.
        """
        labels = {category["id"]: label for label, category in enumerate(self.categories, start=1)}
        objects = [self._targets_of(image) for image in images]
        flat = [one for each in objects for one in each]
        self._paths = [image.path for image in images]
        self._names = [image.file_name for image in images]
        self._ids = np.array([image.image_id for image in images], dtype=np.int64)
        self._sizes = np.array([(image.height, image.width) for image in images], dtype=np.int32)
        self._starts = np.cumsum([0, *map(len, objects)])
        self._boxes = np.array([one.box for one in flat], dtype=np.float64).reshape(-1, 4)
        self._labels = np.array([labels[one.category_id] for one in flat], dtype=np.int64)
        self._areas = np.array([one.area for one in flat], dtype=np.float32)
        self._crowds = np.array([one.crowd for one in flat], dtype=np.int64)
        self._shapes, starts = bytearray(), array("q", [0])
        for one in flat if self.masks else ():
            # marshal is compact and fast. Its output stays in memory; nothing is loaded with it from a file.
            self._shapes += marshal.dumps(one.segmentation)
            starts.append(len(self._shapes))
        self._shape_starts = np.array(starts)
        if keypoints is not None:
            self._points = np.zeros((len(flat), keypoints, 3), dtype=np.float32)
            for points, one in zip(self._points, flat, strict=True):
                points[:] = 0 if one.keypoints is None else one.keypoints

    def _targets_of(self, image: CheckedImage) -> list[CheckedObject]:
        return [one for one in image.objects if not (self.training and one.crowd)]

    @property
    def dropped_summary(self) -> str:
        """Return one line on what was left out at the start; empty if nothing was."""
        # Evaluation does not clip boxes, and keeps those of objects without a mask.
        return self.dropped.summary() if self.training or self.dropped.dropped_annotations else ""

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, Target]:
        index = range(len(self))[index]
        for attempt in range(min(ATTEMPTS, len(self))):
            try:
                return self._load((index + attempt) % len(self))
            except (UnreadableImage, ImageSizeError) as error:
                if not self.training:
                    raise
                # Python shows a warning once per place and text, and so once per image and worker.
                warnings.warn(f"left out of training: {error}", RuntimeWarning, stacklevel=2)
                failure = error
        raise InputError(f"{ATTEMPTS} images in a row cannot be used; check the disk. The last one: {failure}")

    def _load(self, index: int) -> tuple[tv_tensors.Image, Target]:
        height, width = self.image_size(index)
        image = read_pixels(self._paths[index], self.channels, (width, height), max_pixels=self.max_pixels)
        pixels = to_tensor(image)
        start, stop = self._starts[index], self._starts[index + 1]
        boxes = torch.from_numpy(self._corners(start, stop, height, width))
        target: Target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            "labels": torch.from_numpy(self._labels[start:stop].copy()),
            "image_id": int(self._ids[index]),
            "area": torch.from_numpy(self._areas[start:stop].copy()),
            "iscrowd": torch.from_numpy(self._crowds[start:stop].copy()),
        }
        return tv_tensors.Image(pixels), target | self._extras(index)

    def _extras(self, index: int) -> Target:
        """Return the masks and keypoints of a target if the dataset has them."""
        extras: Target = {}
        if self.keypoints:
            points = self._points[self._starts[index] : self._starts[index + 1]]
            extras["keypoints"] = torch.from_numpy(points.copy())
        if not self.masks:
            return extras
        height, width = self.image_size(index)
        nothing = {"size": [height, width], "counts": [height * width]}  # In evaluation an object may have no mask.
        shapes = [shape or nothing for shape in self._segmentations(index)]
        if self.encoded:
            return extras | {"encoded_masks": EncodedMasks(shapes, height, width)}
        return extras | {"masks": tv_tensors.Mask(decode_masks(shapes, height, width))}

    def _segmentations(self, index: int) -> list[Segmentation | None]:
        """Return the segmentation of each object of an image."""
        bounds = self._shape_starts[self._starts[index] : self._starts[index + 1] + 1]
        return [marshal.loads(self._shapes[start:stop]) for start, stop in pairwise(bounds)]

    def _corners(self, start: int, stop: int, height: int, width: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return x0, y0, x1, y1 in pixels, clipped to the image."""
        x, y, w, h = self._boxes[start:stop].T
        corners = np.stack((x, y, x + w, y + h), axis=1)
        return np.clip(corners, 0, (width, height, width, height)).astype(np.float32)

    def image_size(self, index: int) -> tuple[int, int]:
        """Return (height, width) in pixels, from the annotation file."""
        height, width = self._sizes[index]
        return int(height), int(width)

    def object_sizes(self) -> ObjectSizes:
        """Return the size of each object, from the annotation files."""
        images = np.repeat(np.arange(len(self)), np.diff(self._starts))
        return ObjectSizes(self._boxes[:, 2:], images, self._sizes.astype(np.int64))

    def image_id(self, index: int) -> int:
        """Return an image's id."""
        return int(self._ids[index])

    def image_labels(self, index: int) -> list[int]:
        """Return the label of each object of an image, from the annotation file."""
        labels: list[int] = self._labels[self._starts[index] : self._starts[index + 1]].tolist()
        return labels

    def file_name(self, index: int) -> str:
        """Return an image's ``file_name`` in its annotation file."""
        return self._names[index]

    def source_of(self, index: int) -> tuple[str, int]:
        """Return the annotation file of an image and the image's id there."""
        number, image_id = self._origins[index]
        return str(self._files[number]), image_id


def without_masks(dataset: D) -> D:
    """Return a dataset whose targets have no masks, if it is a :class:`CocoDataset`; others are returned as they are.

    An evaluation takes the masks from ``ground_truth``; to draw those of hundreds of objects takes gigabytes.
    """
    if not isinstance(dataset, CocoDataset):
        return dataset
    without = copy.copy(dataset)
    without.masks = False
    return without


def with_encoded_masks(dataset: D) -> D:
    """Return a dataset whose targets have ``encoded_masks``, which are drawn later, if it is a :class:`CocoDataset`."""
    if not isinstance(dataset, CocoDataset):
        return dataset
    encoded = copy.copy(dataset)
    encoded.encoded = True
    return encoded
