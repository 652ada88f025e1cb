"""Programs and libraries of others with our models: `make clients`, never part of `make test`.

What is not installed, or lies in no checkout below ``VOVNET_CLIENT_SOURCES``, skips and says so. The versions that were
tried are the floors of the extra ``clients``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from client_models import Script, Sources, small
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vovnet

ROOT = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave these tests out unless ``-m clients`` asks for them."""
    mine = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in mine:
        item.add_marker("clients")
    if "clients" not in config.option.markexpr:
        config.hook.pytest_deselected(items=mine)
        items[:] = [item for item in items if item not in set(mine)]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no home folder, one thread."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "NO_ALBUMENTATIONS_UPDATE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


@pytest.fixture
def sources() -> Sources:
    """Return where a file of a checkout lies, or skip."""

    def find(path: str) -> Path:
        folder = os.environ.get("VOVNET_CLIENT_SOURCES", "")
        if not folder:
            pytest.skip(f"{path} is in no package: make clients SOURCES=DIR, where DIR has a checkout")
        if not (Path(folder) / path).exists():
            pytest.skip(f"no {path} below {folder}")
        return (Path(folder) / path).resolve()

    return find


@pytest.fixture
def script() -> Script:
    """Run a script of others in a process of its own, after Python statements; return what it printed."""

    def run(path: Path, *arguments: object, first: str = "import vovnet") -> str:
        start = f"import runpy, sys; sys.path.insert(0, {str(path.parent)!r})\n{first}\n"
        code = start + f"runpy.run_path({str(path)!r}, run_name='__main__')"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    return run


@pytest.fixture
def model() -> nn.Module:
    """A classifier that keeps less for its backward pass."""
    return vovnet.memory_efficient(small())


@pytest.fixture
def loader() -> DataLoader[tuple[torch.Tensor, ...]]:
    """Two batches of two images of 64×64 with their classes."""
    return DataLoader(TensorDataset(torch.rand(4, 3, 64, 64), torch.tensor([0, 1, 0, 1])), batch_size=2)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """``SPLIT/CLASS/*.png`` for ``train``, ``validation`` and ``val``: five classes of two images."""
    generator = np.random.default_rng(0)
    for split in ("train", "validation", "val"):
        for label in "abcde":
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for i in range(2):
                pixels = generator.integers(0, 255, (72, 72, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def coco_folder(tmp_path: Path) -> Path:
    """COCO's folders with two images each, of one object each."""
    root, box = tmp_path / "coco", [10, 10, 100, 80]
    outline = [[10, 10, 110, 10, 110, 90, 10, 90]]
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        for i in (1, 2):
            Image.effect_noise((160, 160), 60).convert("RGB").save(root / split / f"{i}.jpg")
        images = [{"id": i, "file_name": f"{i}.jpg", "width": 160, "height": 160} for i in (1, 2)]
        shared = {"bbox": box, "area": 8000, "iscrowd": 0, "segmentation": outline}
        objects = [{"id": i, "image_id": i, "category_id": i, **shared} for i in (1, 2)]
        content = {"info": {}, "images": images, "annotations": objects}
        content["categories"] = [{"id": i, "name": str(i)} for i in (1, 2)]
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root
