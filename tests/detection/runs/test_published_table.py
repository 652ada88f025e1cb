"""The published table's columns, for trained runs, for folders without metrics, and for evaluated detectors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hub_folders import write_run
from PIL import Image
from support import command

from vovnet.detection.runs import published_table
from vovnet.detection.runs.published_table import Row, benchmark_table

PUBLISHED = (
    "| Backbone | Detector | Train mem(GB) | Inference time (ms) | Box AP (AP/APs/APm/APl) | Mask AP (AP/APs/APm/APl) |"
)
"""README.md of maskrcnn-benchmark-vovnet at f705301, without its last column, DOWNLOAD."""
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a small Mask R-CNN, whose log has its memory."""
    folder = write_run(tmp_path_factory.mktemp("run") / "mine", CATEGORIES)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"iteration": 1200, "loss": 1.0, "memory": 7_000_000_000}))
    (folder / "environment.json").write_text(json.dumps({"device_name": "TITAN Xp"}))
    return folder


@pytest.fixture(scope="module")
def bare(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same detector as somebody downloads it."""
    folder = tmp_path_factory.mktemp("bare") / "theirs"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(run / name, folder)
    return folder


def rows_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_columns_of_a_run_and_of_a_folder_without_metrics(
    run: Path, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published_table, "time_calls", lambda runs, rounds: {name: [0.3, 0.1, 0.2] for name in runs})
    done = command("benchmark", "table", run, bare, "--rounds", "3", "--device", "cpu", "--output", tmp_path / "t.md")
    assert done.code == 0, done.err
    head, _, trained, downloaded = rows_of(done.out)
    assert [head] == rows_of(PUBLISHED)
    assert trained == ["vovnet27_slim", "Mask R-CNN", "7.0", "200", "32.1/-/-/-", "28.7/-/-/-"]
    assert downloaded == ["vovnet27_slim", "Mask R-CNN", "-", "200", "-", "-"]
    assert "TITAN Xp" in done.out
    assert (tmp_path / "t.md").read_text().strip() == done.out.strip()


def test_an_image_is_really_detected_in(bare: Path, tmp_path: Path) -> None:
    Image.new("L", (40, 30)).save(tmp_path / "grey.png")
    (row,) = benchmark_table([str(bare)], rounds=1, image=tmp_path / "grey.png", device="cpu", say=lambda text: None)
    assert row.milliseconds is not None
    assert row.milliseconds > 0
    (row,) = benchmark_table([str(bare), str(bare)], rounds=0, device="cpu", say=lambda text: None)
    assert row.milliseconds is None


def test_metrics_of_an_evaluation_beside_the_weights_count(bare: Path, tmp_path: Path) -> None:
    shutil.copytree(bare, tmp_path / "evaluated")
    metrics = {"bbox": {"AP": 0.375, "APs": 0.213, "APm": 0.403, "APl": 0.495}, "segm": {"AP": 0.5}}
    (tmp_path / "evaluated" / "metrics.json").write_text(json.dumps(metrics))
    (row,) = benchmark_table([str(tmp_path / "evaluated")], rounds=0, device="cpu", say=lambda text: None)
    assert row.cells()[4:] == ["37.5/21.3/40.3/49.5", "50.0/-/-/-"]


def test_a_backbone_that_ends_a_cell_is_escaped(run: Path) -> None:
    (row,) = benchmark_table([str(run)], rounds=0, device="cpu", say=lambda text: None)
    row.model.backbone = "a|b\n"
    assert Row(row.name, row.model, None, None, {}).cells()[:2] == ["a\\|b ", "Mask R-CNN"]


def test_what_is_no_detector_is_named(tmp_path: Path) -> None:
    done = command("benchmark", "table", tmp_path)
    assert done.code == 1
    assert str(tmp_path) in done.error()
