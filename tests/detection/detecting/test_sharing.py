"""``predict`` and ``evaluate`` in several processes leave what one process leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from small_networks import MODEL, detector

from vovnet.detection import load_recipe
from vovnet.detection.checkpoints.folder import save_detector

ROOT = Path(__file__).resolve().parents[3]
CATEGORIES = [{"id": one, "name": f"class {one}"} for one in (1, 2, 3, 4)]


def launched(*arguments: object, processes: int) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*start, "-m", "vovnet.cli", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    values = [f"model.{key}={value}" for key, value in MODEL.items()]
    model = load_recipe("faster_rcnn_vovnet39_fpn", values).model
    save_detector(folder / "run", detector("faster_rcnn_vovnet39_fpn"), model, CATEGORIES)
    (folder / "images").mkdir()
    images, objects = [], []
    for number in range(1, 6):
        Image.linear_gradient("L").resize((90 + number, 70)).convert("RGB").save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 90 + number, "height": 70})
        objects.append({"id": number, "image_id": number, "category_id": 1, "bbox": [5, 5, 50, 60], "area": 3000})
    truth = {"images": images, "annotations": objects, "categories": CATEGORIES}
    (folder / "truth.json").write_text(json.dumps(truth))
    return folder


@pytest.mark.parametrize("name", ["predict", "evaluate"])
def test_two_processes_leave_what_one_leaves(data: Path, tmp_path: Path, name: str) -> None:
    given = sorted((data / "images").iterdir())
    if name == "evaluate":
        given = ["--images", data / "images", "--annotations", data / "truth.json", "--workers", "0"]
    run = [name, *given, "--weights", data / "run", "--device", "cpu", "--tile", 64]
    for processes in (1, 2):
        done = launched(*run, "--output", tmp_path / str(processes), processes=processes)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("AR100") <= 1, "each process printed the table"
    one, two = ({path.name: path for path in (tmp_path / part).iterdir()} for part in "12")
    assert set(one) == set(two)
    for file in one:
        if file.endswith(".json"):
            assert json.loads(one[file].read_text()) == json.loads(two[file].read_text()), file


def test_all_processes_end_where_the_folder_is_taken(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    image = data / "images" / "1.png"
    done = launched("predict", image, "--weights", data / "run", "--output", tmp_path, processes=2)
    assert done.returncode != 0
    assert "not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
