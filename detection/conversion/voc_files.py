"""Write a dataset as PASCAL VOC: ``Annotations``, ``JPEGImages`` and ``ImageSets/Main/SPLIT.txt``."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from vovnet.detection.conversion.dataset import WholeDataset
from vovnet.detection.conversion.parts import clipped_box, write_labels
from vovnet.detection.data.checked_images import CheckedImage


def write_voc(folder: Path, dataset: WholeDataset, names: dict[int, str]) -> list[str]:
    """Write the labels of a dataset. Crowds become ``difficult``. Arguments are those of ``write_coco``.

    Returns:
        What VOC cannot say, a line each.
    """
    titles = {one["id"]: one["name"] for one in dataset.categories}
    masks = points = 0
    for split in dataset.splits:
        for image in split.images:
            masks += sum(one.segmentation is not None for one in image.objects)
            points += sum(one.keypoints is not None for one in image.objects)
            name = names[id(image)]
            write_labels(folder / "Annotations" / f"{Path(name).stem}.xml", _document(image, name, titles))
        stems = [Path(names[id(image)]).stem for image in split.images]
        write_labels(folder / "ImageSets" / "Main" / f"{split.name or 'train'}.txt", "".join(f"{s}\n" for s in stems))
    notes = [f"{masks} masks are left out: VOC's files of boxes have none"] if masks else []
    return notes + ([f"keypoints of {points} objects are left out: VOC has none"] if points else [])


def _document(image: CheckedImage, name: str, titles: dict[int, str]) -> str:
    root = Element("annotation")
    _add(root, "folder", "JPEGImages")
    _add(root, "filename", name)
    size = SubElement(root, "size")
    for key, value in (("width", image.width), ("height", image.height), ("depth", 3)):
        _add(size, key, str(value))
    _add(root, "segmented", "0")
    for one in image.objects:
        entry = SubElement(root, "object")
        for key, text in (("name", titles[one.category_id]), ("pose", "Unspecified"), ("truncated", "0")):
            _add(entry, key, text)
        _add(entry, "difficult", str(int(one.crowd)))
        x, y, w, h = clipped_box(one, image)
        box = SubElement(entry, "bndbox")
        for key, number in (("xmin", x), ("ymin", y), ("xmax", x + w), ("ymax", y + h)):
            _add(box, key, f"{number:.3f}".rstrip("0").rstrip("."))
    indent(root)
    return tostring(root, encoding="unicode") + "\n"


def _add(parent: Element, key: str, text: str) -> None:
    SubElement(parent, key).text = text
