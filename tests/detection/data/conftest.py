"""Small datasets to break."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vovnet.detection.config.sources import DataSource

SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]


def annotation(number: int, image_id: int, /, **fields: Any) -> dict[str, Any]:
    """A sound annotation of a 20 × 20 square, but for what is given; None leaves a field out."""
    entry = {
        "id": number,
        "image_id": image_id,
        "category_id": 7,
        "bbox": [10.0, 10.0, 20.0, 20.0],
        "area": 400.0,
        "iscrowd": 0,
        "segmentation": [SQUARE],
        **fields,
    }
    return {key: value for key, value in entry.items() if value is not None}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., DataSource]:
    """Writes a dataset of 60 × 40 images: sound unless told otherwise."""

    def write_dataset(
        annotations: list[Any] | None = None,
        images: list[Any] | None = None,
        categories: list[Any] | None = None,
        name: str = "data",
        image_count: int = 3,
    ) -> DataSource:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for number in range(1, image_count + 1):
            pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
        content = {
            "images": [image(number) for number in range(1, image_count + 1)] if images is None else images,
            "annotations": [annotation(n, n) for n in range(1, image_count + 1)]
            if annotations is None
            else annotations,
            "categories": [{"id": 7, "name": "cat"}, {"id": 90, "name": "dog"}] if categories is None else categories,
        }
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        return DataSource(images=str(folder), annotations=str(path))

    return write_dataset


def image(number: int, /, **fields: Any) -> dict[str, Any]:
    entry = {"id": number, "file_name": f"{number}.png", "width": 60, "height": 40, **fields}
    return {key: value for key, value in entry.items() if value is not None}


@pytest.fixture
def entries() -> Any:
    """The functions that make an annotation and an image entry."""
    return annotation, image
