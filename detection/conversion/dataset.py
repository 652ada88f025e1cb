"""A dataset in memory, with everything that is usable in it, whatever the format of its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from vovnet.detection.config.categories import Category
from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.category_names import join_categories
from vovnet.detection.data.checked_images import CheckedImage
from vovnet.detection.data.report import DataReport
from vovnet.detection.data.sources import SourceFile, read_source, take_ids
from vovnet.detection.data.validation import check_content, check_keypoint_names


@dataclass
class Split:
    """The images of one split and their objects."""

    name: str
    """``train``, ``val``, ``test``, or nothing for data without splits."""
    images: list[CheckedImage] = field(default_factory=list)
    report: DataReport = field(default_factory=DataReport)
    """What was left out of the split, and why."""


@dataclass
class WholeDataset:
    """All splits of a dataset, with one list of categories."""

    title: str
    """The format of its files."""
    categories: list[Category] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)


def read_dataset(
    title: str, splits: Mapping[str, Sequence[DataSource]], *, look: Callable[[SourceFile], object] | None = None
) -> WholeDataset:
    """Read the sources of the splits of a dataset. Images are not decoded.

    Crowds, masks and keypoints are kept where there are some, and boxes also without a sound mask.

    Args:
        title: The format of the files, for people.
        splits: The sources of each split; :func:`~vovnet.detection.data.sources.splits_of` returns both.
        look: Called with each file of labels before it is checked; it may change its content.

    Raises:
        InputError: The labels cannot be used as a whole, or files contradict each other.
    """
    dataset = WholeDataset(title)
    known: dict[int, tuple[Category, str]] = {}
    for name, sources in splits.items():
        part = Split(name)
        for file in (one for source in sources for one in read_source(source)):
            if look is not None:
                look(file)
            _add(part, file, known)
        dataset.splits.append(part)
    dataset.categories = [category for _, (category, _) in sorted(known.items())]
    return dataset


def _add(part: Split, file: SourceFile, known: dict[int, tuple[Category, str]]) -> None:
    content = file.content
    keypoints = content.has_keypoints
    if keypoints:
        check_keypoint_names(content, part.report)
    take_ids(file, [category for category, _ in known.values()])
    join_categories(known, content.categories, file.name, keypoints)
    part.report.annotation_files.append(file.name)
    # evaluation=True keeps boxes without a sound mask.
    part.images += check_content(
        content, file.folder, content.has_masks, part.report, evaluation=True, keypoints=keypoints
    )
