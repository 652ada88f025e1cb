"""Datasets of the user's own, held to the protocol in training and in evaluation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from vovnet.detection.config.categories import mirror_order
from vovnet.detection.data.coco import with_encoded_masks, without_masks
from vovnet.detection.data.cropping import random_crop
from vovnet.detection.data.declared import GroundTruth, check_categories, check_ground_truth
from vovnet.detection.data.joined import Concatenation, Selection, with_attributes
from vovnet.detection.data.object_sizes import ObjectSizes, sizes_of_truth
from vovnet.detection.data.samples import Sample, check_sample
from vovnet.errors import InputError, shown


def checked(
    dataset: Any,
    name: str = "dataset",
    *,
    channels: int | None = None,
    needs_masks: bool = False,
    needs_keypoints: bool = False,
) -> CheckedDataset:
    """Return a dataset whose samples are checked and have one form. A checked dataset is returned as it is.

    Args:
        dataset: Follows the protocol of :mod:`vovnet.detection.data`; or a ``Subset`` or ``ConcatDataset`` of such.
        name: What messages call the dataset.
        channels: The channels of a detector's input; grey and colour images are converted to it.
        needs_masks: Refuse objects without masks.
        needs_keypoints: Refuse objects without keypoints, and categories that do not name them.

    Raises:
        InputError: The dataset as a whole does not follow the protocol.
    """
    if isinstance(dataset, CheckedDataset):
        return dataset
    return CheckedDataset(dataset, name, channels, needs_masks, needs_keypoints)


class CheckedDataset(Dataset[Any]):
    """A dataset whose samples are checked when they are loaded; :func:`checked` makes it.

    An error in a sample names it by index, and by file name if the dataset knows it.

    Attributes:
        categories: ``{"id", "name"}`` in label order.
        image_size: The dataset's own function, or None; see :class:`vovnet.detection.data.DetectionDataset`.
        image_labels: The same.
    """

    def __init__(self, dataset: Any, name: str, channels: int | None, needs_masks: bool, needs_keypoints: bool) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
            raise InputError(
                f"{name}: expected a dataset with a length and dataset[i], got {type(dataset).__name__}; the order of "
                "the images is drawn here"
            )
        self.name, self.channels = name, channels
        self.needs_masks, self.needs_keypoints = needs_masks, needs_keypoints
        self.dataset = with_attributes(dataset, name)
        self.categories = check_categories(getattr(self.dataset, "categories", None), name)
        self.mirror: tuple[int, ...] | None = None
        """For each keypoint the one whose place it takes in a mirror image; None without keypoints."""
        try:
            self.mirror = mirror_order(self.categories, name)
        except InputError:
            if needs_keypoints:
                raise
        if needs_keypoints and self.mirror is None:
            raise InputError(
                f"{name}: no category names its keypoints, and this detector is trained on them; give "
                'categories = [{"id", "name", "keypoints": ["nose", …]}], or another model.detector'
            )
        self.image_size: Callable[[int], tuple[int, int]] | None = None
        if getattr(self.dataset, "image_size", None) is not None:
            self.image_size = self._image_size
        self.crop: int | None = None
        """The side in pixels of the crops that samples are, one drawn for each; None leaves images whole."""
        self.image_labels: Callable[[int], Iterable[int]] | None = getattr(self.dataset, "image_labels", None)
        len(self)

    @property
    def ground_truth(self) -> GroundTruth | None:
        """The COCO JSON object to evaluate against, or None."""
        truth = getattr(self.dataset, "ground_truth", None)
        return None if truth is None else check_ground_truth(truth, self.categories, self.name)

    def object_sizes(self) -> ObjectSizes | None:
        """Return the size of each object, or None if the dataset does not know it without loading images.

        With crops, images have the size of these, and objects are as they are in them unless a border cuts them.
        """
        own = getattr(self.dataset, "object_sizes", None)
        if own is not None:
            sizes: ObjectSizes | None = own()
            return self._cropped_sizes(sizes)
        # A part of a dataset may have to load its images for the ids in its ground truth.
        truth = None if isinstance(self.dataset, Selection | Concatenation) else self.ground_truth
        return self._cropped_sizes(None if truth is None else sizes_of_truth(truth))

    def _cropped_sizes(self, sizes: ObjectSizes | None) -> ObjectSizes | None:
        return sizes if sizes is None or self.crop is None else sizes.cropped(self.crop)

    @property
    def dropped_summary(self) -> str:
        """One line on what the dataset left out; empty if nothing was."""
        return getattr(self.dataset, "dropped_summary", "") or ""

    def __len__(self) -> int:
        try:
            return len(self.dataset)
        except (TypeError, NotImplementedError) as error:
            raise InputError(f"{self.name}: expected a dataset with a length, got one of unknown length") from error

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[index]
        try:
            checked_sample = check_sample(
                sample,
                index,
                len(self.categories),
                channels=self.channels,
                needs_masks=self.needs_masks,
                needs_keypoints=self.needs_keypoints,
                mirror=self.mirror,
            )
        except InputError as error:
            raise InputError(f"{self.described(index)}: {error}") from error
        return checked_sample if self.crop is None else random_crop(checked_sample, self.crop)

    def with_crops(self, side: int) -> CheckedDataset:
        """Return the dataset with samples that are random crops, see :func:`~.cropping.random_crop`.

        Args:
            side: Of a crop in pixels.
        """
        if self.crop == side:
            return self
        cut = copy.copy(self)
        cut.crop, cut.dataset = side, _changed(self.dataset, with_encoded_masks)
        if self.image_size is not None:
            cut.image_size = cut._image_size
        return cut

    def without_masks(self) -> CheckedDataset:
        """Return the dataset without the masks of COCO files, which are drawn when a sample is loaded."""
        without = copy.copy(self)
        without.dataset = _changed(self.dataset, without_masks)
        return without

    def described(self, index: int) -> str:
        """Return the name of a sample for messages."""
        file_name = getattr(self.dataset, "file_name", None)
        return f"{self.name}[{index}]" + (f" ({shown(file_name(index))})" if file_name is not None else "")

    def _image_size(self, index: int) -> tuple[int, int]:
        size = self.dataset.image_size(index)
        try:
            height, width = (int(side) for side in size)
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.name}.image_size({index}): expected (height, width), got {shown(size)}") from error
        return (height, width) if self.crop is None else (min(height, self.crop), min(width, self.crop))


def _changed(dataset: Any, change: Callable[[Any], Any]) -> Any:
    """Return a dataset with a change to each of the datasets in it, which stay as they are."""
    if not isinstance(dataset, Selection | Concatenation):
        return change(dataset)
    changed = copy.copy(dataset)
    if isinstance(changed, Selection):
        changed.inner = _changed(changed.inner, change)
    else:
        changed.parts = [_changed(part, change) for part in changed.parts]
    return changed


class ImageIds:
    """The ids of the images that an evaluation has seen. Images that share an id would count as one.

    Args:
        dataset: The dataset of the images.
        truth: Its ``ground_truth``, which must have each of the images.
    """

    def __init__(self, dataset: CheckedDataset, truth: GroundTruth | None) -> None:
        self.dataset = dataset
        self.known = None if truth is None else {image["id"] for image in truth["images"]}
        self.seen: dict[int, int] = {}
        """Id to index."""

    def add(self, image_id: int, index: int) -> None:
        """Add an image.

        Raises:
            InputError: Another image has the id, or the ground truth has no such image.
        """
        other = self.seen.setdefault(image_id, index)
        if other != index:
            first, second = (self.dataset.described(one) for one in sorted((other, index)))
            raise InputError(f"image_id: expected a different one for each image; {first} and {second} have {image_id}")
        if self.known is not None and image_id not in self.known:
            raise InputError(
                f"{self.dataset.described(index)}: image_id {image_id} is not in {self.dataset.name}.ground_truth"
            )

    def join(self, parts: Iterable[Mapping[int, int]]) -> None:
        """Add the images that other processes have seen."""
        for part in parts:
            for image_id, index in part.items():
                self.add(image_id, index)
