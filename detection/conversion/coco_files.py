"""Write a dataset as COCO JSON: ``annotations/instances_SPLIT.json`` and ``images/SPLIT``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vovnet.detection.conversion.dataset import Split, WholeDataset
from vovnet.detection.conversion.parts import clipped_box
from vovnet.detection.data.checked_images import CheckedImage, CheckedObject
from vovnet.files import write_json


def write_coco(folder: Path, dataset: WholeDataset, names: dict[int, str]) -> list[str]:
    """Write the labels of a dataset.

    Args:
        folder: Where to write them.
        dataset: The dataset.
        names: The new name of each image, by its ``id()``.

    Returns:
        Nothing: COCO says everything.
    """
    for split in dataset.splits:
        name = f"instances_{split.name}.json" if split.name else "instances.json"
        write_json(folder / "annotations" / name, _content(split, dataset, names))
    return []


def _content(split: Split, dataset: WholeDataset, names: dict[int, str]) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(split.images, start=1):
        images.append({"id": image_id, "file_name": names[id(image)], "width": image.width, "height": image.height})
        for one in image.objects:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **_entry(one, image)})
    return {"images": images, "annotations": annotations, "categories": [dict(one) for one in dataset.categories]}


def _entry(one: CheckedObject, image: CheckedImage) -> dict[str, Any]:
    box = clipped_box(one, image)
    area = box[2] * box[3] if one.segmentation is None and box != list(one.box) else one.area
    entry: dict[str, Any] = {"category_id": one.category_id, "bbox": box, "area": area, "iscrowd": int(one.crowd)}
    if one.segmentation is not None and not one.empty_mask:
        entry["segmentation"] = one.segmentation
    if one.keypoints is not None:
        entry["keypoints"] = one.keypoints.ravel().tolist()
        entry["num_keypoints"] = int((one.keypoints[:, 2] > 0).sum())
    return entry
