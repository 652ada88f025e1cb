"""Training rules are chosen by name, imported when a recipe asks for them, and refused if unknown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from house import room_graph, source_files

from vovnet.detection.checkpoints.folder import load_detector, save_detector
from vovnet.detection.config.conventions import CONVENTIONS
from vovnet.detection.config.loading import load_recipe
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.models.build import build_detector
from vovnet.detection.training.rules import RULES, TrainingRules, rules_of
from vovnet.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[3]
MODEL = ModelRecipe(backbone="vovnet27_slim", fpn_channels=8, box_representation_size=8, num_classes=1)


def test_every_name_of_conventions_has_rules() -> None:
    assert set(RULES) == set(CONVENTIONS)
    for name in CONVENTIONS:
        assert isinstance(rules_of(ModelRecipe(conventions=name)), TrainingRules)


def test_a_recipe_has_torchvisions_unless_it_says_so() -> None:
    assert ModelRecipe().conventions == "torchvision"
    assert load_recipe("quickstart").model.conventions == "torchvision"


def test_an_unknown_name_in_a_recipe_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.conventions"):
        load_recipe("faster_rcnn_vovnet39_fpn", ["model.conventions=detectron"])


def test_an_unknown_name_in_a_stored_detector_is_refused(tmp_path: Path) -> None:
    save_detector(tmp_path, build_detector(MODEL), MODEL, [{"id": 1, "name": "thing"}])
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for value in ("detectron", "vovnet.detection.legacy.rules", "", None, 3):
        config["model"]["conventions"] = value
        path.write_text(json.dumps(config))
        with pytest.raises(InputError, match=r"config\.json.*conventions") as caught:
            load_detector(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_detector_stored_before_there_were_conventions_loads(tmp_path: Path) -> None:
    save_detector(tmp_path, build_detector(MODEL), MODEL, [{"id": 1, "name": "thing"}])
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for key in ("conventions", "box_head_convs", "box_head_channels", "head_norm"):
        del config["model"][key]
    path.write_text(json.dumps(config))
    assert load_detector(tmp_path).recipe.conventions == "torchvision"  # type: ignore[union-attr]


MODERN_LIFE = """
import sys
from pathlib import Path
import vovnet.adapters, vovnet.cli, vovnet.detection, vovnet.hub
from vovnet.detection import evaluate, predict
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.training.engine import train
from vovnet.detection.config.loading import load_recipe
from vovnet.detection.data.synthetic import generate_shapes
folder = Path(sys.argv[1])
sources = generate_shapes(folder, train=2, val=1, size=(64, 64), max_shapes=1)
keys = [f"data.{name}=[{{images: '{one.images}', annotations: '{one.annotations}'}}]" for name, one in sources.items()]
keys += ["model.backbone=vovnet27_slim", "model.fpn_channels=8", "model.box_representation_size=8", "model.min_size=64",
    "model.max_size=64", "data.train_min_sizes=[64]", "data.train_max_size=64", "data.workers=0", "solver.batch_size=2",
    "solver.max_iterations=1", "model.mask_head_channels=8", "model.pretrained=false", "model.norm=bn"]
train(load_recipe("mask_rcnn_vovnet39_fpn", keys), folder / "run", progress=False)
detector = vovnet.hub.load_detector(folder / "run")
predict(detector, [next(Path(sources["val"].images).glob("*.png"))])
print([name for name in sys.modules if name.startswith("vovnet.") and "legacy" in name])
"""


def test_the_modern_path_imports_nothing_of_the_legacy_one(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", MODERN_LIFE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_modern_path_names_the_legacy_one_only_where_it_is_looked_up() -> None:
    folder = REPOSITORY / "detection"
    importing = {
        str(path.relative_to(folder))
        for path in folder.rglob("*.py")
        if "legacy" not in path.parts
        for line in path.read_text(encoding="utf-8").splitlines()
        if "detection.legacy" in line
    }
    # An exported file has the arithmetic of both: one module asks for a detector's, one for a file's.
    exporting = {"export/graph.py", "export/detector.py"}
    assert importing == {"__init__.py", "models/build.py", "zoo/weights.py"} | exporting


def test_only_training_imports_training() -> None:
    rooms = room_graph(source_files(REPOSITORY))
    users = {room.removeprefix("vovnet.") for room, used in rooms.items() if "vovnet.detection.training" in used}
    entries = {"cli", "detection", "detection.quickstart", "detection.train"}
    # hub reads metrics.jsonl for model cards, and runs to compare them
    assert users == {*entries, "detection.legacy", "detection.runs", "hub"}


def test_evaluation_and_prediction_do_not_import_each_other() -> None:
    rooms = room_graph(source_files(REPOSITORY))
    assert "vovnet.detection.prediction" not in rooms["vovnet.detection.evaluation"]
    assert "vovnet.detection.evaluation" not in rooms["vovnet.detection.prediction"]
