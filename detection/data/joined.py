"""torch's ``Subset`` and ``ConcatDataset`` with the attributes that the datasets in them have."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from torch.utils.data import ConcatDataset, Subset

from vovnet.detection.data.declared import GroundTruth, check_categories
from vovnet.errors import InputError, shown


def with_attributes(dataset: Any, name: str) -> Any:
    """Return the dataset; with the protocol's attributes if it is torch's subset or concatenation of such datasets.

    Args:
        dataset: Any dataset, also a subset of a concatenation of subsets.
        name: What messages call the dataset.

    Raises:
        InputError: The parts of a concatenation have different categories.
    """
    if isinstance(dataset, Subset):
        return Selection(dataset, name)
    if isinstance(dataset, ConcatDataset):
        return Concatenation(dataset, name)
    return dataset


class Selection:
    """A ``Subset``. Attributes that it has itself come before those of the dataset that it selects from."""

    def __init__(self, subset: Subset[Any], name: str) -> None:
        self.inner, self.subset = with_attributes(subset.dataset, name), subset
        self.indices = [int(index) for index in subset.indices]
        # A subclass of the user may change the samples.
        self._plain = type(subset).__getitem__ is Subset.__getitem__
        self.categories = getattr(subset, "categories", None) or getattr(self.inner, "categories", None)
        self.dropped_summary = getattr(self.inner, "dropped_summary", "")
        for attribute in ("image_size", "file_name", "image_id", "image_labels"):
            if getattr(subset, attribute, None) is not None:
                setattr(self, attribute, getattr(subset, attribute))
            elif getattr(self.inner, attribute, None) is not None:
                setattr(self, attribute, _Mapped(getattr(self.inner, attribute), self.indices))

    def __len__(self) -> int:
        return len(self.subset)

    def __getitem__(self, index: int) -> Any:
        return self.inner[self.indices[index]] if self._plain else self.subset[index]

    @property
    def ground_truth(self) -> GroundTruth | None:
        own: GroundTruth | None = getattr(self.subset, "ground_truth", None)
        truth = getattr(self.inner, "ground_truth", None)
        if own is not None or truth is None:
            return own
        known = getattr(self, "image_id", None) or (lambda index: _loaded_id(self, index))
        return _restricted(truth, {number: [number] for number in map(known, range(len(self)))})


class Concatenation:
    """A ``ConcatDataset`` of datasets with the same categories.

    If an image's id is that of an image of an earlier part, it gets a new one, as in :class:`CocoDataset`. If a part
    does not know the ids without loading its images, all ids are those of the order here.
    """

    def __init__(self, whole: ConcatDataset[Any], name: str) -> None:
        self.parts = [with_attributes(part, f"{name}.datasets[{number}]") for number, part in enumerate(whole.datasets)]
        found = [
            check_categories(getattr(part, "categories", None), f"{name}.datasets[{number}]")
            for number, part in enumerate(self.parts)
        ]
        for number, categories in enumerate(found):
            if categories != found[0]:
                raise InputError(
                    f"{name}: datasets[{number}] has categories {shown(categories)}, datasets[0] {shown(found[0])}; "
                    "datasets that are joined need the same, in the same order"
                )
        self.categories = found[0]
        self.dropped_summary = "; ".join(filter(None, (getattr(part, "dropped_summary", "") for part in self.parts)))
        self._ends = list(accumulate(len(part) for part in self.parts))
        self._ids = self._own_ids()
        for attribute in ("image_size", "file_name", "image_labels"):
            if all(getattr(part, attribute, None) is not None for part in self.parts):
                setattr(self, attribute, _Delegated(self, attribute))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Any:
        part, local = self.place(index)
        sample = part[local]
        try:
            image, target = sample
            return image, {**target, "image_id": self.image_id(index)}
        except (TypeError, ValueError):
            return sample  # the check of samples says what is wrong with it

    def place(self, index: int) -> tuple[Any, int]:
        """Return the part that an image is in, and its index there."""
        number = bisect_right(self._ends, index)
        return self.parts[number], index - (self._ends[number - 1] if number else 0)

    def image_id(self, index: int) -> int:
        """Return the id of an image."""
        return index if self._ids is None else self._ids[index]

    def _own_ids(self) -> list[int] | None:
        if any(getattr(part, "image_id", None) is None for part in self.parts):
            return None
        wanted = [int(part.image_id(local)) for part in self.parts for local in range(len(part))]
        free, seen = max(wanted, default=0) + 1, set[int]()
        ids = []
        for number in wanted:
            if number in seen:
                number, free = free, free + 1
            seen.add(number)
            ids.append(number)
        return ids

    @property
    def ground_truth(self) -> GroundTruth | None:
        truths = [truth for part in self.parts if (truth := getattr(part, "ground_truth", None)) is not None]
        if len(truths) < len(self.parts):
            return None
        joined: dict[str, Any] = {"images": [], "annotations": [], "categories": list(self.categories)}
        start = 0
        for part, truth in zip(self.parts, truths, strict=True):
            known = getattr(part, "image_id", None) or (lambda index, part=part: _loaded_id(part, index))
            ids: dict[int, list[int]] = {}
            for local in range(len(part)):
                ids.setdefault(known(local), []).append(self.image_id(start + local))
            start += len(part)
            some = _restricted(truth, ids)
            joined["images"] += some["images"]
            joined["annotations"] += some["annotations"]
        return joined


class _Mapped:
    """A function of an index of a selection. (A class, because loader processes may get a pickled copy.)"""

    def __init__(self, function: Callable[[int], Any], indices: Sequence[int]) -> None:
        self.function, self.indices = function, indices

    def __call__(self, index: int) -> Any:
        return self.function(self.indices[index])


class _Delegated:
    """A function of an index of a concatenation."""

    def __init__(self, whole: Concatenation, attribute: str) -> None:
        self.whole, self.attribute = whole, attribute

    def __call__(self, index: int) -> Any:
        part, local = self.whole.place(index)
        return getattr(part, self.attribute)(local)


def _loaded_id(dataset: Any, index: int) -> int:
    """Return the id of a sample by loading it."""
    number = dataset[index][1]["image_id"]
    return int(number)


def _restricted(truth: GroundTruth, ids: Mapping[int, Iterable[int]]) -> dict[str, Any]:
    """Return the images of a COCO JSON object under new ids, with their annotations, which get no ids."""
    return {
        "images": [{**one, "id": new} for one in truth["images"] for new in ids.get(one["id"], ())],
        "annotations": [
            {**{key: value for key, value in one.items() if key != "id"}, "image_id": new}
            for one in truth["annotations"]
            for new in ids.get(one["image_id"], ())
        ],
        "categories": list(truth["categories"]),
    }
