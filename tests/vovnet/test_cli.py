"""The command ``vovnet`` as a user types it: what each subcommand prints, leaves and refuses."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import timm
import torch
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import load_file
from support import Outcome, command, contents
from timm.models import save_for_hf
from tiny_runs import lines_of, losses_of

import vovnet  # noqa: F401 (registers our models)

CATEGORIES = [{"id": 7, "name": "square"}, {"id": 90, "name": "bar"}]
TWELVE = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
RUN_FILES = ("recipe.yaml", "metrics.jsonl", "last.pt", "best.pt", "model.safetensors", "config.json", "curves.png")
ITERATIONS = 4

RECIPE = """
model:
  detector: mask_rcnn
  backbone: vovnet27_slim
  fpn_channels: 8
  min_size: 64
  max_size: 64
  box_representation_size: 16
  box_score_thresh: 0.001
  box_batch_size_per_image: 8
  rpn_pre_nms_top_n_train: 50
  rpn_post_nms_top_n_train: 20
  rpn_pre_nms_top_n_test: 50
  rpn_post_nms_top_n_test: 20
  mask_head_convs: 1
  mask_head_channels: 8
data:
  train: [{{images: '{root}/images', annotations: '{root}/instances.json'}}]
  val: [{{images: '{root}/images', annotations: '{root}/instances.json'}}]
  train_min_sizes: [56, 64]
  train_max_size: 64
  colour: 0.2
  workers: 0
solver:
  base_lr: 0.001
  batch_size: 2
  reference_batch_size: 2
  max_iterations: {iterations}
  steps: []
  warmup_iterations: 2
log: {{log_every: 1, evaluate_every: 0, checkpoint_every: 100}}
"""


def rectangle(left: int, top: int, width: int, height: int) -> dict[str, Any]:
    right, bottom = left + width, top + height
    polygon = [left, top, right, top, right, bottom, left, bottom]
    return {"bbox": [left, top, width, height], "area": width * height, "segmentation": [polygon], "iscrowd": 0}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and six images of a large square and a thin bar, under ids that are no labels."""
    root = tmp_path_factory.mktemp("workplace")
    (root / "images").mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(6):
        image = Image.new("RGB", (64, 64), (20, 20 * number, 60))
        objects = {7: rectangle(2 + number, 4, 44, 40), 90: rectangle(4, 50, 50, 8 + number % 3)}
        for category, entry in objects.items():
            left, top, width, height = entry["bbox"]
            corners = (left, top, left + width - 1, top + height - 1)
            ImageDraw.Draw(image).rectangle(corners, fill=(220, 200, 40) if category == 7 else (240, 240, 240))
            annotations.append(
                {"id": len(annotations) + 11, "image_id": 500 + number, "category_id": category, **entry}
            )
        image.save(root / "images" / f"image{number}.png")
        images.append({"id": 500 + number, "file_name": f"image{number}.png", "width": 64, "height": 64})
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (root / "instances.json").write_text(json.dumps(content))
    (root / "tiny.yaml").write_text(RECIPE.format(root=root, iterations=ITERATIONS))
    return root


@pytest.fixture(scope="module")
def trained(workplace: Path) -> tuple[Path, Outcome]:
    run = workplace / "run"
    return run, command("train", workplace / "tiny.yaml", "--output", run)


@pytest.fixture(scope="module")
def run_folder(trained: tuple[Path, Outcome]) -> Path:
    run, outcome = trained
    assert outcome.code == 0, outcome.err
    return run


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("quickstart", ["--output", "--overwrite"]),
        ("train", ["--output", "--resume", "--overwrite"]),
        ("evaluate", ["--weights", "--images", "--annotations", "--output", "--overwrite", "--fuse", "@REVISION"]),
        ("predict", ["--weights", "--output", "--folder", "--threshold", "--overwrite", "--fuse"]),
        ("predict", ["torchvision:", "vovnet39", "predictions", "@REVISION"]),
        ("check-data", ["--images", "--annotations"]),
        ("env", []),
    ],
)
def test_every_command_explains_itself(name: str, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert name in command("--help").out
    outcome = command(name, "--help")
    assert outcome.code == 0
    for option in options:
        assert option in outcome.out


def test_training_leaves_its_files_and_says_where(trained: tuple[Path, Outcome]) -> None:
    run, outcome = trained
    assert outcome.code == 0, outcome.err
    assert str(run) in outcome.out
    for name in (
        "recipe.yaml",
        "metrics.jsonl",
        "last.pt",
        "best.pt",
        "model.safetensors",
        "config.json",
        "curves.png",
    ):
        assert (run / name).stat().st_size > 0, name
    assert not list(run.glob(".tmp-*"))
    # The linear scaling of the learning rate is printed.
    assert "learning rate" in outcome.err + outcome.out
    for line in losses_of(run):
        assert {"iteration", "loss", "lr", "loss_mask", "loss_classifier", "loss_objectness"} <= set(line)
    assert [line["iteration"] for line in losses_of(run)] == list(range(1, ITERATIONS + 1))
    last = lines_of(run)[-1]
    assert last["iteration"] == ITERATIONS
    for kind in ("box", "mask"):
        assert {f"{kind}_{name.lower()}" for name in TWELVE} <= set(last)


def test_the_config_holds_the_model_and_no_paths(run_folder: Path, workplace: Path) -> None:
    text = (run_folder / "config.json").read_text()
    config = json.loads(text)
    assert (config["format"], config["format_version"]) == ("vovnet-detector", 1)
    assert config["categories"] == CATEGORIES
    assert config["model"]["backbone"] == "vovnet27_slim"
    assert "preprocessing" in config
    assert str(workplace) not in text
    assert "instances" not in text


def test_the_recipe_that_is_left_repeats_the_run(run_folder: Path, tmp_path: Path) -> None:
    outcome = command("train", run_folder / "recipe.yaml", "--output", tmp_path / "again")
    assert outcome.code == 0, outcome.err
    assert losses_of(tmp_path / "again") == losses_of(run_folder)
    assert (tmp_path / "again" / "recipe.yaml").read_bytes() == (run_folder / "recipe.yaml").read_bytes()
    first, second = (load_file(run / "model.safetensors") for run in (run_folder, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@contextmanager
def ctrl_c_after_the_first_iteration(run: Path) -> Iterator[None]:
    """Send SIGINT as soon as the run has logged something: a timer looks every 50 ms."""

    def look(number: int, frame: FrameType | None) -> None:
        if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.raise_signal(signal.SIGINT)

    former = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def test_ctrl_c_saves_and_the_printed_command_goes_on(run_folder: Path, workplace: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with ctrl_c_after_the_first_iteration(run):
        stopped = command("train", workplace / "tiny.yaml", "solver.max_iterations=300", "--output", run)
    assert stopped.code == 130
    assert "--resume" in stopped.error()
    done = len(losses_of(run))
    assert 1 <= done < 300
    wanted = max(done + 1, ITERATIONS)
    words = stopped.error().partition("vovnet ")[2].split()
    assert words[0] == "train"
    resumed = command(*words, f"solver.max_iterations={wanted}")
    assert resumed.code == 0, resumed.err
    assert losses_of(run)[:ITERATIONS] == losses_of(run_folder)
    assert [line["iteration"] for line in losses_of(run)] == list(range(1, wanted + 1))


@pytest.fixture(scope="module")
def evaluated(run_folder: Path, workplace: Path) -> tuple[Path, Outcome]:
    output = workplace / "evaluated"
    data = ("--images", workplace / "images", "--annotations", workplace / "instances.json", "--workers", 0)
    outcome = command("evaluate", "--weights", run_folder, *data, "--output", output)
    assert outcome.code == 0, outcome.err
    return output, outcome


def test_evaluation_leaves_cocos_numbers_and_prints_them(
    evaluated: tuple[Path, Outcome], run_folder: Path, workplace: Path
) -> None:
    output, outcome = evaluated
    metrics = json.loads((output / "metrics.json").read_text())
    last = lines_of(run_folder)[-1]
    for kind, prefix in (("bbox", "box"), ("segm", "mask")):
        assert set(TWELVE) <= set(metrics[kind])
        # What the run itself measured at its end.
        assert {name: metrics[kind][name] for name in TWELVE} == pytest.approx(
            {name: last[f"{prefix}_{name.lower()}"] for name in TWELVE}
        )
        # And what COCO's own tool says about the results that are left.
        truth = COCO(str(workplace / "instances.json"))
        reference = COCOeval(truth, truth.loadRes(str(output / f"results_{kind}.json")), kind)
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
        assert [metrics[kind][name] for name in TWELVE] == pytest.approx(list(reference.stats))
    for word in ("AP50", "square", "bar"):
        assert word in outcome.out
    assert list(output.glob("*precision*.png"))


def test_results_have_cocos_form_and_the_datas_ids(evaluated: tuple[Path, Outcome]) -> None:
    output, _ = evaluated
    boxes = json.loads((output / "results_bbox.json").read_text())
    masks = json.loads((output / "results_segm.json").read_text())
    assert len(boxes) == len(masks) > 0
    for entry in boxes + masks:
        assert entry["image_id"] in range(500, 506)
        assert entry["category_id"] in (7, 90)
        assert 0 <= entry["score"] <= 1
    assert all(len(entry["bbox"]) == 4 for entry in boxes)
    for entry in masks:
        assert isinstance(entry["segmentation"]["counts"], str)
        assert coco_mask.decode(entry["segmentation"]).shape == (64, 64)


def test_evaluating_the_fused_copy(
    evaluated: tuple[Path, Outcome], run_folder: Path, workplace: Path, tmp_path: Path, way: str
) -> None:
    data = ("--images", workplace / "images", "--annotations", workplace / "instances.json", "--workers", 0)
    outcome = command("evaluate", "--weights", run_folder, *data, "--output", tmp_path / "out", "--fuse")
    assert outcome.code == 0, outcome.err
    plain, fused = (json.loads((folder / "metrics.json").read_text()) for folder in (evaluated[0], tmp_path / "out"))
    for kind in ("bbox", "segm"):
        assert {name: fused[kind][name] for name in TWELVE} == pytest.approx(
            {name: plain[kind][name] for name in TWELVE}, abs=0.01
        )


def check_predictions(path: Path) -> list[dict[str, Any]]:
    """A file of predictions in the form that the design fixes."""
    found: list[dict[str, Any]] = json.loads(path.read_text())
    for entry in found:
        assert set(entry) == {"bbox", "score", "category_id", "category", "segmentation"}
        left, top, width, height = entry["bbox"]
        assert min(left, top, width, height) >= 0
        assert max(left + width, top + height) <= 64.001
        assert {"id": entry["category_id"], "name": entry["category"]} in CATEGORIES
        assert entry["segmentation"]["size"] == [64, 64]
        assert isinstance(entry["segmentation"]["counts"], str)
    return found


def test_predicting_leaves_a_drawing_and_a_list_for_each_image(
    run_folder: Path, workplace: Path, tmp_path: Path
) -> None:
    paths = [workplace / "images" / f"image{number}.png" for number in (0, 3)]
    outcome = command("predict", *paths, "--weights", run_folder, "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert len(outcome.out.splitlines()) == 2
    for image, line in zip(paths, outcome.out.splitlines(), strict=True):
        assert image.name in line
    of_images = {"image0.png", "image0.json", "image3.png", "image3.json"}
    assert set(contents(tmp_path / "out")) == of_images | {"counts.csv", "detections.csv", "summary.json"}
    for image in paths:
        assert check_predictions(tmp_path / "out" / f"{image.stem}.json")
        assert Image.open(tmp_path / "out" / image.name).size == (64, 64)


def test_predicting_with_the_fused_copy(run_folder: Path, workplace: Path, tmp_path: Path, way: str) -> None:
    image = workplace / "images" / "image2.png"
    answers = []
    for extra in ((), ("--fuse",)):
        output = tmp_path / f"out{len(extra)}"
        outcome = command("predict", image, "--weights", run_folder, "--output", output, *extra)
        assert outcome.code == 0, outcome.err
        answers.append(check_predictions(output / "image2.json"))
    plain, fused = answers
    assert len(plain) == len(fused)
    for one in fused:
        alike = [other for other in plain if other["category_id"] == one["category_id"]]
        assert any(
            other["bbox"] == pytest.approx(one["bbox"], abs=0.1) and abs(other["score"] - one["score"]) < 1e-3
            for other in alike
        )


@pytest.mark.parametrize("name", ["predict", "evaluate"])
def test_a_fused_copy_is_for_the_cpu(name: str, run_folder: Path, workplace: Path, tmp_path: Path) -> None:
    data = {
        "predict": (workplace / "images" / "image2.png",),
        "evaluate": ("--images", workplace / "images", "--annotations", workplace / "instances.json"),
    }
    given = (name, *data[name], "--weights", run_folder, "--output", tmp_path / "out", "--fuse")
    command(*given, "--device", "cuda").refused("--device cuda", "--fuse is for the CPU")
    assert not (tmp_path / "out").exists()
    assert command(*given, "--device", "cpu").code == 0


def test_the_threshold_affects_only_the_drawing(run_folder: Path, workplace: Path, tmp_path: Path) -> None:
    image = workplace / "images" / "image1.png"
    for threshold in (0, 1):
        outcome = command(
            "predict", image, "-w", run_folder, "--output", tmp_path / str(threshold), "--threshold", threshold
        )
        assert outcome.code == 0, outcome.err
    low, high = (contents(tmp_path / str(threshold)) for threshold in (0, 1))
    assert low["image1.json"] == high["image1.json"]
    assert low["image1.png"] != high["image1.png"]
    # Nothing reaches a score of 1: the drawing is the image itself.
    with Image.open(tmp_path / "1" / "image1.png") as drawn, Image.open(image) as original:
        assert drawn.convert("RGB").tobytes() == original.tobytes()


@pytest.mark.parametrize("name", ["predict", "evaluate", "check-data"])
def test_the_limit_of_pixels_is_an_option(
    name: str, run_folder: Path, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images above Pillow's limit are refused in a line that names the option, and read with it."""
    data = ("--images", workplace / "images", "--annotations", workplace / "instances.json")
    results = ("--weights", run_folder, "--output", tmp_path / "out", "--overwrite")
    given = {
        "predict": ("predict", workplace / "images" / "image2.png", *results),
        "evaluate": ("evaluate", *data, *results, "--workers", "0"),
        "check-data": ("check-data", *data),
    }[name]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 // 2 - 1)
    if name == "check-data":
        outcome = command(*given)
        assert outcome.code == 1
        assert "unreadable" in outcome.out
    else:
        command(*given).refused("4096 pixels", "--max-pixels 4096")
    assert command(*given, "--max-pixels", 4096).code == 0


def test_folders_of_images_and_equal_stems(run_folder: Path, workplace: Path, tmp_path: Path) -> None:
    for place, number in (("a", 0), ("b", 4)):
        (tmp_path / place).mkdir()
        with Image.open(workplace / "images" / f"image{number}.png") as image:
            image.save(tmp_path / place / "same.png")
    (tmp_path / "b" / "notes.txt").write_text("no image")
    output = tmp_path / "out"
    outcome = command(
        "predict", "--folder", tmp_path / "a", tmp_path / "b", "--weights", run_folder, "--output", output
    )
    assert outcome.code == 0, outcome.err
    assert f"{tmp_path / 'b'}: skipped 1 other file (notes.txt)" in outcome.err.splitlines()
    left = set(contents(output)) - {"summary.json"}
    drawings, lists = ({Path(name).stem for name in left if name.endswith(end)} for end in (".png", ".json"))
    assert len(drawings) == 2
    assert drawings == lists
    answers = [check_predictions(output / f"{stem}.json") for stem in sorted(lists)]
    assert answers[0] != answers[1]


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_classifiers_weights_print_the_five_likeliest_classes(
    prefix: str, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    names = [f"class{number}" for number in range(9)]
    model = timm.create_model("vovnet27_slim", num_classes=9)
    save_for_hf(model, str(tmp_path), model_config={"label_names": names}, safe_serialization=True)
    paths = [workplace / "images" / f"image{number}.png" for number in (0, 1)]
    outcome = command("predict", *paths, "--weights", f"{prefix}{tmp_path}")
    assert outcome.code == 0, outcome.err
    assert len(outcome.out.splitlines()) == 2
    for image, line in zip(paths, outcome.out.splitlines(), strict=True):
        place, _, answer = line.rpartition(": ")
        assert place.endswith(image.name)
        entries = [entry.split() for entry in answer.split(", ")]
        assert len(entries) == 5
        assert len({name for name, _ in entries}) == 5
        assert {name for name, _ in entries} <= set(names)
        scores = [float(score) for _, score in entries]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) >= 5 / 9 - 0.01
        assert sum(scores) <= 1.01
    monkeypatch.setenv("VOVNET_OPS", "off")
    fused = command("predict", *paths, "--weights", f"{prefix}{tmp_path}", "--fuse")
    assert fused.out == outcome.out
    (tmp_path / "notes.png").write_text("this is no image")
    refused = command("predict", tmp_path / "notes.png", *paths, "--weights", f"{prefix}{tmp_path}")
    assert refused.code == 1
    assert "notes.png" in refused.error()
    assert refused.out == outcome.out


def test_classifying_needs_only_the_base_install(tmp_path: Path) -> None:
    model = timm.create_model("vovnet27_slim", num_classes=7)
    save_for_hf(model, str(tmp_path / "slim"), safe_serialization=True)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 30), (200, 90, 10)).save(tmp_path / "images" / "a.png")
    # vovnet.detection needs what its extra installs.
    hidden = "import sys; sys.modules.update(dict.fromkeys(('vovnet.detection', 'pycocotools', 'matplotlib')))\n"
    run = "from vovnet.cli import main; main()"
    options = ["predict", str(tmp_path / "images"), "--folder", "--weights", str(tmp_path / "slim"), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", hidden + run, *options], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert "a.png: " in done.stdout


def test_sound_data_pass_the_check(workplace: Path) -> None:
    outcome = command("check-data", "--images", workplace / "images", "--annotations", workplace / "instances.json")
    assert outcome.code == 0
    assert "6" in outcome.out
    assert "square" in outcome.out


def test_the_check_counts_what_is_wrong_and_names_ids(workplace: Path, tmp_path: Path) -> None:
    content = json.loads((workplace / "instances.json").read_text())
    good = content["annotations"]
    content["images"].append({"id": 901, "file_name": "absent.png", "width": 64, "height": 64})
    (tmp_path / "images").mkdir()
    for image in (workplace / "images").iterdir():
        (tmp_path / "images" / image.name).write_bytes(image.read_bytes())
    Image.effect_noise((64, 64), 60).convert("RGB").save(tmp_path / "images" / "cut.jpg")
    whole = (tmp_path / "images" / "cut.jpg").read_bytes()
    (tmp_path / "images" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    content["images"].append({"id": 902, "file_name": "cut.jpg", "width": 64, "height": 64})
    wrong: list[dict[str, Any]] = [
        {"id": 801, "bbox": [5, 5, 0, 10]},
        {"id": 802, "bbox": [5, 5, 10, -3]},
        {"id": 803, "bbox": [200, 5, 10, 10]},
        {"id": 804, "category_id": 12},
        {"id": good[0]["id"]},
        {"id": 806, "segmentation": [[5, 5, 9, 5, 7, 5]]},
        {"id": 807, "segmentation": {"size": [64, 60], "counts": [0, 3840]}},
        {"id": 808, "segmentation": {"size": [64, 64], "counts": [10, 20]}},
    ]
    content["annotations"] += [{**good[0], **change} for change in wrong]
    (tmp_path / "wrong.json").write_text(json.dumps(content))
    outcome = command("check-data", "--images", tmp_path / "images", "--annotations", tmp_path / "wrong.json")
    assert outcome.code == 1
    assert "Traceback" not in outcome.err
    for number in (901, 902, 801, 802, 803, 804, good[0]["id"], 806, 807, 808):
        assert str(number) in outcome.out, number
    # The two boxes without extent are of one kind.
    (row,) = (line for line in outcome.out.splitlines() if "801" in line)
    assert "802" in row
    assert "2" in row.replace("801", "").replace("802", "")


def test_env_is_a_page_for_a_bug_report() -> None:
    outcome = command("env")
    assert outcome.code == 0
    for word in ("vovnet", torch.__version__.partition("+")[0], timm.__version__, "torchvision", "python", "missing"):
        assert word in outcome.out


@pytest.fixture
def occupied(tmp_path: Path) -> Path:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("the only copy")
    return tmp_path / "full"


@pytest.mark.parametrize("name", ["quickstart", "train", "evaluate", "predict"])
def test_a_folder_with_something_in_it_is_refused(name: str, occupied: Path, run_folder: Path, workplace: Path) -> None:
    arguments: dict[str, tuple[object, ...]] = {
        "quickstart": (),
        "train": (workplace / "tiny.yaml",),
        "evaluate": (
            *("--weights", run_folder, "--images", workplace / "images"),
            *("--annotations", workplace / "instances.json", "--workers", 0),
        ),
        "predict": (workplace / "images" / "image0.png", "--weights", run_folder),
    }
    outcome = command(name, *arguments[name], "--output", occupied)
    assert outcome.code == 1
    assert str(occupied) in outcome.error()
    assert "--overwrite" in outcome.error()
    assert contents(occupied) == {"thesis.txt": b"the only copy"}


def test_overwriting_replaces_results_and_nothing_else(occupied: Path, run_folder: Path, workplace: Path) -> None:
    (occupied / "image0.json").write_text("of yesterday")
    outcome = command(
        *("predict", workplace / "images" / "image0.png"),
        *("--weights", run_folder, "--output", occupied, "--overwrite"),
    )
    assert outcome.code == 0, outcome.err
    assert check_predictions(occupied / "image0.json")
    assert contents(occupied)["thesis.txt"] == b"the only copy"


def test_a_former_evaluation_leaves_nothing_beside_the_new_one(
    run_folder: Path, workplace: Path, tmp_path: Path
) -> None:
    """Boxes alone are evaluated here: results of masks would be those of another evaluation."""
    output = tmp_path / "out"
    output.mkdir()
    (output / "results_segm.json").write_text("[]")
    content = json.loads((workplace / "instances.json").read_text())
    for entry in content["annotations"]:
        del entry["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    outcome = command(
        *("evaluate", "--weights", run_folder, "--images", workplace / "images", "--workers", 0),
        *("--annotations", tmp_path / "boxes.json", "--output", output, "--overwrite"),
    )
    assert outcome.code == 0, outcome.err
    metrics = json.loads((output / "metrics.json").read_text())
    assert "segm" not in metrics
    assert math.isfinite(metrics["bbox"]["AP"])
    assert not (output / "results_segm.json").exists()


def test_the_module_ends_with_one_line_and_a_code(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vovnet.cli", "train", "bcdd", "--output", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=Path(__file__).resolve().parents[2],
    )
    outcome = Outcome(done.returncode, done.stdout, done.stderr)
    assert outcome.code == 1
    assert "'bccd'" in outcome.error()
    assert not (tmp_path / "run").exists()
