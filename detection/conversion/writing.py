"""Write a dataset as COCO JSON, YOLO or PASCAL VOC, with its images beside the labels."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vovnet.detection.conversion.coco_files import write_coco
from vovnet.detection.conversion.dataset import Split, WholeDataset
from vovnet.detection.conversion.parts import write_labels
from vovnet.detection.conversion.voc_files import write_voc
from vovnet.detection.conversion.yolo_files import write_yolo
from vovnet.detection.data.checked_images import CheckedImage
from vovnet.detection.progress import progress_bar
from vovnet.folders.claim import claimed_folder
from vovnet.folders.temporary import scratch_folder
from vovnet.images.reading import UnreadableImage, read_image, upright_size

Target = Literal["coco", "yolo", "voc"]


@dataclass(frozen=True)
class Layout:
    """Where a format has its images, and the function that writes its labels."""

    images: str
    """Folder of a split's images, with ``{split}``."""
    write: Callable[[Path, WholeDataset, dict[int, str]], list[str]]
    """Writes labels to a folder, given the new name of each image by the ``id`` of the object; returns notes."""
    last: str
    """What is moved to its place last: whoever sees it finds everything else."""


LAYOUTS: dict[Target, Layout] = {
    "coco": Layout("images/{split}", write_coco, "annotations"),
    "yolo": Layout("images/{split}", write_yolo, "data.yaml"),
    "voc": Layout("JPEGImages", write_voc, "Annotations"),
}


@dataclass
class Written:
    """What was written."""

    images: int = 0
    objects: int = 0
    notes: list[str] = field(default_factory=list)
    """What the format cannot say, a line each."""


def write_dataset(
    dataset: WholeDataset,
    output: str | Path,
    to: Target,
    *,
    link: bool,
    overwrite: bool,
    progress: bool = False,
    more_files: Mapping[str, str] | None = None,
) -> Written:
    """Write a dataset and its images. The folder has everything or, after an error, nothing of it.

    Args:
        dataset: The dataset.
        output: The folder to write.
        to: The format.
        link: Make hard links to the images where the file system can, in place of copies.
        overwrite: Replace what a folder that is not empty has of the same names.
        progress: Show a progress bar on stderr.
        more_files: The names and texts of more files in the folder.

    Raises:
        InputError: The folder is not empty and ``overwrite`` is not given, or it cannot be written.
    """
    layout = LAYOUTS[to]
    with claimed_folder(output, overwrite=overwrite) as folder, scratch_folder(folder) as scratch:
        written = Written()
        names: dict[int, str] = {}
        places = [(layout.images.format(split=one.name).strip("/"), one) for one in dataset.splits]
        taken: dict[str, set[str]] = {place: set() for place, _ in places}
        jobs = [(place, image) for place, split in places for image in split.images]
        for place, image in progress_bar(jobs, "write", "image", shown=progress):
            turned = _follows_no_rotation(image)
            name = _free_name(image, taken[place], ".png" if turned else None)
            names[id(image)] = name
            target = scratch / place / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _place(image, target, link, turned)
            written.images += 1
            written.objects += len(image.objects)
        written.notes = layout.write(scratch, dataset, names)
        for name, text in (more_files or {}).items():
            write_labels(scratch / name, text)
        _move(scratch, folder, layout.last)
    return written


def _follows_no_rotation(image: CheckedImage) -> bool:
    """True if the labels are of the image as it is stored, although EXIF data turns it."""
    try:
        return upright_size(image.path) == (image.height, image.width) != (image.width, image.height)
    except UnreadableImage:
        return False


def _free_name(image: CheckedImage, taken: set[str], suffix: str | None) -> str:
    """Return a name in a folder that no earlier image has: without regard to case, and with another stem."""
    stem, own = os.path.splitext(os.path.basename(image.path))
    number, free = 1, stem
    while free.casefold() in taken:
        number += 1
        free = f"{stem}_{number}"
    taken.add(free.casefold())
    return free + (suffix or own)


def _place(image: CheckedImage, target: Path, link: bool, turned: bool) -> None:
    if turned:
        # Readers of YOLO and VOC turn images by their EXIF data; the labels are of the pixels as stored.
        read_image(image.path, size=(image.width, image.height)).save(target)
        return
    if link:
        try:
            os.link(os.path.realpath(image.path), target)
            return
        except OSError:  # another file system, or one without hard links
            pass
    shutil.copyfile(image.path, target)


def _move(scratch: Path, folder: Path, last: str) -> None:
    """Move what was written to its place; what had the same name goes with the scratch folder."""
    names = sorted((one.name for one in scratch.iterdir() if not one.name.startswith(".")), key=lambda one: one == last)
    for number, name in enumerate(reversed(names)):
        if os.path.lexists(folder / name):
            os.rename(folder / name, scratch / f".old-{number}")
    for name in names:
        os.rename(scratch / name, folder / name)


def split_titles(dataset: WholeDataset) -> list[str]:
    """Return a line for each split: its images and objects."""
    return [_title(one) for one in dataset.splits]


def _title(split: Split) -> str:
    objects = sum(len(image.objects) for image in split.images)
    return f"{split.name or 'all'}: {len(split.images)} images, {objects} objects"
