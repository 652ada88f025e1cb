"""The folder in which the code blocks of a page run: the files that the pages call photos, slides, runs/mine and so on.

All of it is made of a few generated shapes, and of detectors that were trained for two iterations.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from doc_vovnet import arguments
from PIL import Image
from support import command
from torchvision.models.detection import maskrcnn_resnet50_fpn

from vovnet.detection.data.synthetic import generate_shapes

PHOTOS = ("photo.jpg", "photo1.jpg", "photo2.jpg", "image.jpg", "cat.jpg", "images/a.jpg", "more/b/c.jpg")
COCO = {"slides": "slides.json", "data/val": "data/val.json", "images/val": "val.json"}
"""Folders of images, and the COCO files beside them."""


def vovnet(*given: object) -> None:
    done = command(*arguments([str(word) for word in given]))
    assert done.code == 0, done.err


def write_folder() -> None:
    """Write everything below the current folder."""
    generate_shapes("photos", train=6, val=4, size=(64, 64), max_shapes=2)
    for split in ("train", "val"):
        content = json.loads(Path(f"photos/annotations/instances_{split}.json").read_text())
        for image in content["images"]:
            image["file_name"] = f"{split}/{image['file_name']}"
        Path(f"{split}.json").write_text(json.dumps(content))
    first = next(Path("photos/val").glob("*.png"))
    for name in PHOTOS:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(first).save(name)
    Image.open(first).resize((160, 128)).save("slide.png")
    for path in Path("photos/val").glob("*.png"):
        shutil.copyfile(path, Path("photos") / path.name)
    for folder, labels in COCO.items():
        shutil.copytree("photos/val", folder, dirs_exist_ok=True)
        if not Path(labels).exists():
            shutil.copyfile("photos/annotations/instances_val.json", labels)
    shutil.copytree("photos", "shapes")
    Image.open(first).resize((128, 96)).save("sheet.png")
    _trained_by_torchvision("model_25.pth")
    vovnet("convert-data", "photos", "cells-voc", "--to", "voc")
    vovnet("convert-data", "cells-voc", "cells", "--to", "yolo")  # boxes alone
    vovnet("train", "photos", "--output", "runs/mine")
    vovnet("evaluate", "photos", "--weights", "runs/mine", "--output", "runs/mine-val")
    _copies()


def _trained_by_torchvision(path: str) -> None:
    """Write what torchvision's script saves at the end of an epoch, but for the weights' values."""
    detector = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    torch.save({"model": detector.state_dict(), "optimizer": {}, "lr_scheduler": {}, "epoch": 25}, path)


def _copies() -> None:
    """What has several names, and what the quickstart leaves."""
    for name in ("RUN", "runs/cells", "runs/quickstart"):
        shutil.copytree("runs/mine", name)
    shutil.copytree("runs/mine-val", "OUT")
    Path("runs/quickstart/data/val").mkdir(parents=True)
    shutil.copyfile("photo.jpg", "runs/quickstart/data/val/000402.png")


def write_exported(text: str) -> None:
    """Write the exported files that a page names and that no block of it writes."""
    for name, kind in (("model.onnx", "onnx"), ("model.xml", "openvino")):
        if name in text and f"--output {name}" not in text:
            vovnet("export", "runs/mine", "--format", kind, "--output", name)
