"""Folders that the tests of the way to the Hub share, made once."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_folders import CLASSES, SLIM, Made, converted, write_run


@pytest.fixture(scope="session")
def slim(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """VoVNet-27-slim with 7 classes, converted, stored for plain timm; not to be changed."""
    return converted(tmp_path_factory.mktemp("slim"), SLIM, CLASSES)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run's folder: a tiny Mask R-CNN; not to be changed."""
    categories = [{"id": 4, "name": "cat"}, {"id": 2, "name": "dog"}]
    return write_run(tmp_path_factory.mktemp("run"), categories)


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """A function that gives a copy of a folder that a test may damage."""

    def copy(folder: Path) -> Path:
        return shutil.copytree(folder, Path(tempfile.mkdtemp(dir=tmp_path)) / "copy")

    return copy
