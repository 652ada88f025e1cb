"""``vovnet convert-data``: a dataset of any format as COCO JSON, YOLO or PASCAL VOC."""

from __future__ import annotations

import os
from pathlib import Path

from vovnet.detection.conversion.dataset import read_dataset
from vovnet.detection.conversion.writing import LAYOUTS, Target, split_titles, write_dataset
from vovnet.detection.data.sources import splits_of
from vovnet.errors import InputError
from vovnet.folders.home import output_folder


def convert_data(
    path: str | Path,
    output: str | Path,
    to: Target,
    *,
    split: str | None = None,
    link: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> str:
    """Write a dataset of any format that is read here in another.

    What cannot be used is left out, and boxes are clipped to their images, by the rules of ``vovnet check-data``.
    Images are not decoded.

    Args:
        path: A folder or file; see :func:`vovnet.detection.formats.finding.contents_of`.
        output: The folder to write.
        to: ``coco``, ``yolo`` or ``voc``.
        split: Convert this split alone.
        link: Make hard links to the images in place of copies where the file system can.
        overwrite: Replace what the folder has of the same names.
        progress: Show a progress bar on stderr.

    Returns:
        What was written and what was left out, as text of several lines.

    Raises:
        InputError: The labels cannot be used, nothing usable is in them, the folder is not empty or lies in the data.
    """
    if to not in LAYOUTS:
        raise InputError(f"to: expected one of {', '.join(LAYOUTS)}, got '{to}'")
    refuse_overlap(path, output)
    dataset = read_dataset(*splits_of(path, split))
    if not any(one.images for one in dataset.splits):
        left = "; ".join(filter(None, (one.report.summary() for one in dataset.splits)))
        raise InputError(f"'{path}': no usable image is in it ({left or 'there are none'})")
    written = write_dataset(dataset, output, to, link=link, overwrite=overwrite, progress=progress)
    lines = [f"{dataset.title} → {to}: {written.images} images, {written.objects} objects in '{output}'"]
    lines += [f"  {line}" for line in split_titles(dataset)]
    for one in dataset.splits:
        if summary := one.report.summary():
            lines.append(f"left out or clipped{f' in {one.name}' if one.name else ''}: {summary}")
    return "\n".join([*lines, *(f"note: {note}" for note in written.notes)])


def refuse_overlap(path: str | Path, output: str | Path) -> None:
    """Refuse an output that is the data, lies in it, or has it in itself.

    Raises:
        InputError: It is so.
    """
    data, target = os.path.realpath(path), os.path.realpath(output_folder(output))
    if os.path.isfile(data):
        data = os.path.dirname(data)
    if target == data or target.startswith(os.path.join(data, "")) or data.startswith(os.path.join(target, "")):
        raise InputError(f"'{output}': expected a folder outside of the data, '{path}'; name another")
