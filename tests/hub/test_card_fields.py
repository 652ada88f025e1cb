"""A card says what the folder holds, and claims nothing that is not known."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import timm
from hub_folders import RUN_RECIPE, Made, write_run
from safetensors.torch import load_file

from vovnet.checkpoints.sources import IMAGENET_SOURCES, Source
from vovnet.detection.checkpoints.folder import load_detector
from vovnet.detection.zoo.published import coco_categories
from vovnet.errors import InputError
from vovnet.hub.card_fields import CardFields, detector_fields, network_fields
from vovnet.hub.manifest import PublishedFile
from vovnet.hub.release import load_folder
from vovnet.hub.stored_names import own_architecture

ISSUE = {
    # The authors' table: recipe, file, box AP/APs/APm/APl, mask AP/APs/APm/APl.
    "faster_rcnn_R_50_FPN_2x": ("FRCN-R-50-FPN-2x.pth", "37.5/21.3/40.3/49.5", None),
    "faster_rcnn_R_101_FPN_2x": ("FRCN-R-101-FPN-2x.pth", "39.6/22.8/43.2/51.9", None),
    "faster_rcnn_V_39_FPN_2x": ("FRCN-V-39-FPN-2x.pth", "39.8/23.7/42.6/51.5", None),
    "faster_rcnn_V_57_FPN_2x": ("FRCN-V-57-FPN-2x.pth", "40.8/24.8/43.8/52.4", None),
    "mask_rcnn_R_50_FPN_2x": ("MRCN-R-50-FPN-2x.pth", "38.6/22.1/41.3/51.4", "34.9/16.0/37.3/52.2"),
    "mask_rcnn_R_101_FPN_2x": ("MRCN-R-101-FPN-2x.pth", "40.8/23.2/44.0/53.9", "36.7/16.7/39.4/54.3"),
    "mask_rcnn_V_39_FPN_2x": ("MRCN-V-39-FPN-2x.pth", "41.0/24.6/43.9/53.1", "36.7/17.9/39.3/53.0"),
}


def source(file: str, name: str) -> PublishedFile:
    return PublishedFile(file, "0" * 64, "A detector", name, "unknown")


@pytest.fixture(scope="module")
def detector(run: Path) -> Any:
    return load_detector(run)


@pytest.fixture(scope="module")
def of_coco(detector: Any) -> Any:
    """The same with the names of COCO's categories, of which a card asks no more than their number."""
    found = copy.copy(detector)
    found.categories = coco_categories()
    return found


def of_run(run: Path, detector: Any, train_data: str | None = None, eval_data: str | None = None) -> CardFields:
    return detector_fields(run, detector, None, train_data, eval_data)


def by_metric(facts: CardFields) -> dict[str, float]:
    return {name: value for metrics in facts.metrics for name, value in metrics.values.items()}


def test_numbers_of_a_run_are_those_of_the_weights_that_it_kept(run: Path, detector: Any) -> None:
    """The evaluation with the best mask AP (box AP went on rising), in percent; -1 means that there was nothing."""
    facts = of_run(run, detector, "my images", "held back")
    assert by_metric(facts) == {"box AP": 32.14, "box AP50": 55.0, "mask AP": 28.75, "mask AP50": 50.0}
    assert {metrics.dataset for metrics in facts.metrics} == {"held back"}
    assert {metrics.part for metrics in facts.metrics} == {"validation data, val.json"}
    assert {metrics.task for metrics in facts.metrics} == {"object-detection", "image-segmentation"}
    assert all(metrics.claimed_by is None for metrics in facts.metrics)
    assert facts.datasets == ()
    assert facts.task == "image-segmentation"


def test_a_faster_rcnn_is_kept_by_its_box_ap(tmp_path: Path) -> None:
    recipe = RUN_RECIPE.replace("mask_rcnn", "faster_rcnn")
    run = write_run(tmp_path, [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}], recipe)
    facts = of_run(run, load_detector(run))
    assert by_metric(facts)["box AP"] == 35.0
    assert facts.task == "object-detection"
    assert facts.tags.count("object-detection") == 1


def test_the_recipe_is_told_and_no_path_of_it(run: Path, detector: Any) -> None:
    training = of_run(run, detector, "my images").training
    for words in ("my images", "1,200 iterations", "4 images", "0.015", "800, 1,100", "0.0002"):
        assert words in training
    assert "somebody" not in repr(of_run(run, detector))
    assert "has not named" in of_run(run, detector).training


@pytest.mark.parametrize("init", ["someone/detector", "someone/detector@v2", "hf-hub:someone/detector@v2"])
def test_a_start_on_the_hub_is_named(init: str, run: Path, detector: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RUN_RECIPE.replace("/home/somebody/secret/start", init))
    facts = of_run(tmp_path, detector)
    assert facts.base_model == "someone/detector"
    assert "from the weights `someone/detector`" in facts.training


def test_a_start_from_torchvisions_weights_is_named(detector: Any, tmp_path: Path) -> None:
    init = "torchvision:maskrcnn_resnet50_fpn_v2"
    (tmp_path / "recipe.yaml").write_text(RUN_RECIPE.replace("/home/somebody/secret/start", init))
    facts = of_run(tmp_path, detector)
    assert facts.base_model is None
    assert f"from the weights `{init}`" in facts.training


@pytest.mark.parametrize("init", ["/home/somebody/start", "runs/old/weights", "start", "~/x", "../x", "a/b.pth"])
def test_a_start_on_this_machine_is_not_named(init: str, detector: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RUN_RECIPE.replace("/home/somebody/secret/start", init))
    facts = of_run(tmp_path, detector)
    assert facts.base_model is None
    assert init not in repr(facts.training)
    assert "other weights" in facts.training


def test_a_run_that_was_never_evaluated_claims_nothing(run: Path, detector: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RUN_RECIPE)
    assert of_run(tmp_path, detector).metrics == ()
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 20, "loss": 1.5, "lr": 0.01}\n')
    assert of_run(tmp_path, detector).metrics == ()
    (tmp_path / "metrics.jsonl").write_text("")
    assert of_run(tmp_path, detector).metrics == ()


def test_a_run_that_was_killed_while_it_wrote(run: Path, detector: Any, tmp_path: Path) -> None:
    """The last line may be half a line; what was whole counts."""
    (tmp_path / "recipe.yaml").write_text(RUN_RECIPE)
    (tmp_path / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text() + '{"iteration": 1300, "box_')
    assert by_metric(of_run(tmp_path, detector))["mask AP"] == 28.75


@pytest.mark.parametrize("text", ["[1]\n", '"x"\n', "nonsense\n", '{"mask_ap": "high"}\n', "\xff\n"])
def test_a_metrics_file_of_something_else_is_no_crash(text: str, run: Path, detector: Any, tmp_path: Path) -> None:
    """Either left out or refused in words."""
    (tmp_path / "recipe.yaml").write_text(RUN_RECIPE)
    (tmp_path / "metrics.jsonl").write_text(text, encoding="latin-1")
    try:
        assert of_run(tmp_path, detector).metrics == ()
    except InputError as error:
        assert "metrics.jsonl" in str(error)  # noqa: PT017 (both are right)


def test_a_folder_without_a_recipe_says_that_nothing_is_known(detector: Any, tmp_path: Path) -> None:
    facts = of_run(tmp_path, detector)
    assert facts.training == "Its publisher has not described the training here."
    assert facts.metrics == ()


@pytest.mark.parametrize("name", ISSUE)
def test_published_numbers_are_those_of_the_table(name: str, of_coco: Any, detector: Any, tmp_path: Path) -> None:
    file, box, mask = ISSUE[name]
    assert detector_fields(tmp_path, detector, source(file, name), None).metrics == ()  # it has two categories
    facts = detector_fields(tmp_path, of_coco, source(file, name), None)
    expected = dict(zip([f"box {n}" for n in ("AP", "APs", "APm", "APl")], map(float, box.split("/")), strict=True))
    if mask:
        kinds = [f"mask {n}" for n in ("AP", "APs", "APm", "APl")]
        expected |= dict(zip(kinds, map(float, mask.split("/")), strict=True))
    assert by_metric(facts) == expected
    assert all(metrics.claimed_by and "not measured by us" in metrics.claimed_by for metrics in facts.metrics)
    assert facts.datasets == ("coco",)
    assert name in facts.training


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("model_final.pth", "mask_rcnn_V_39_FPN_2x"),
        ("MRCN-R-50-FPN-2x.pth", "mask_rcnn_V_39_FPN_2x"),
        ("MRCN-V-39-FPN-2x.pth", "mask_rcnn_V_57_FPN_2x"),
        ("None", "mask_rcnn_V_57_FPN_2x"),
        ("MRCN-V-39-FPN-2x.pth", "no shipped recipe; model.backbone=vovnet39"),
    ],
)
def test_other_files_claim_no_published_numbers(file: str, name: str, of_coco: Any, tmp_path: Path) -> None:
    facts = detector_fields(tmp_path, of_coco, source(file, name), None)
    assert facts.metrics == ()
    assert facts.datasets == ()
    assert "does not say how it was trained" in facts.training


def test_a_converted_folder_does_not_take_a_stray_recipe_for_its_own(run: Path, detector: Any) -> None:
    facts = detector_fields(run, detector, source("x.pth", "mask_rcnn_V_39_FPN_2x"), None)
    assert facts.metrics == ()
    assert "By `vovnet train`" not in facts.training


def test_rows_hold_real_numbers(run: Path, detector: Any) -> None:
    """The parameters are counted in the file, less the norms' statistics."""
    rows = of_run(run, detector).rows
    tensors = load_file(run / "model.safetensors")
    numbers = sum(v.numel() for k, v in tensors.items() if "running_" not in k and "num_batches" not in k)
    assert rows["parameters"] == f"{numbers:,}"
    assert "short side to 64, long side at most 96, rgb" in rows["preprocessing"]
    assert "0.485, 0.456, 0.406" in rows["preprocessing"]
    assert "masks" in rows["output"]
    assert float(rows["GMACs"].partition(" ")[0]) > 0
    assert of_run(run, detector).categories == ("cat", "dog")


def of_network(folder: Path, origin: PublishedFile | None = None) -> CardFields:
    config = json.loads((folder / "config.json").read_text())
    return network_fields(config, load_folder(folder), origin, own_architecture(config))


def test_a_classifier(slim: Made) -> None:
    facts = of_network(slim.folder)
    count = sum(p.numel() for p in timm.create_model("vovnet27_slim", num_classes=7).parameters())
    assert facts.rows["parameters"] == f"{count:,}"
    assert facts.rows["classes"] == "7"
    assert facts.rows["architecture"] == "`vovnet27_slim`, stored as timm's `vovnet39a`"
    assert facts.rows["input"] == "3×224×224, crop 0.875, bilinear"
    assert facts.task == "image-classification"
    assert facts.library == "timm"
    assert facts.metrics == ()
    assert facts.datasets == ()


TOP1 = {"vovnet39": 76.77, "vovnet57": 77.73}
"""100 less the authors' top-1 errors, 23.23 and 22.27."""


@pytest.mark.parametrize("name", TOP1)
def test_the_authors_classifiers_have_their_accuracy(name: str) -> None:
    config = {"architecture": name, "pretrained_cfg": {}}
    file, model = f"{name}_torchvision.pth", timm.create_model("vovnet27_slim", num_classes=1000)
    facts = network_fields(config, model, source(file, name), name)
    assert by_metric(facts) == {"accuracy": TOP1[name]}
    assert facts.datasets == ("imagenet-1k",)
    assert "ImageNet" in facts.training
    assert network_fields(config, model, source("my.pth", name), name).metrics == ()
    assert network_fields(config, model, None, name).metrics == ()


@pytest.mark.parametrize("classes", [0, 7])
@pytest.mark.parametrize("published", IMAGENET_SOURCES, ids=lambda published: published.name)
def test_a_network_without_the_publishers_classifier_has_not_their_accuracy(published: Source, classes: int) -> None:
    """A file's name stays when its classifier is left out, or when somebody trains it on other classes."""
    tag = published.name.partition(".")[2]
    config = {"architecture": published.network, "pretrained_cfg": {"tag": tag}}
    model = timm.create_model("vovnet27_slim", num_classes=classes)
    facts = network_fields(config, model, source(published.file, published.network), published.network)
    assert facts.metrics == facts.datasets == ()
    assert "ImageNet" not in facts.training


def test_a_backbone_without_a_classifier(tmp_path: Path) -> None:
    from timm.models import save_for_hf

    model: Any = timm.create_model("resnet10t", num_classes=0)
    save_for_hf(model, tmp_path, {}, safe_serialization=True)
    facts = of_network(tmp_path)
    assert facts.task == "image-feature-extraction"
    assert "without a classifier" in facts.rows["classes"]
    assert facts.citations == ("resnet",)
    assert facts.details["ours"] is False


@pytest.mark.parametrize(
    ("val", "part"),
    [
        ([], "validation data"),
        (["a/train.json"], "training data itself, train.json"),
        (["b/train.json"], "validation data, train.json"),
        (["a/train.json", "/home/somebody/x.json"], "validation data, train.json, x.json"),
        (["C:\\\\secret\\\\v.json"], "validation data, v.json"),
    ],
)
def test_numbers_stand_under_the_data_that_they_were_measured_on(
    run: Path, detector: Any, tmp_path: Path, val: list[str], part: str
) -> None:
    sources = ", ".join(f'{{images: a, annotations: "{path}"}}' for path in val)
    train = "[{images: a, annotations: a/train.json}]"
    recipe = f"model: {{detector: mask_rcnn}}\ndata:\n  train: {train}\n  val: [{sources}]\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    (tmp_path / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes())
    facts = detector_fields(tmp_path, detector, None, "cells", "other cells")
    assert {(metrics.dataset, metrics.part) for metrics in facts.metrics} == {("other cells", part)}
    assert "cells" in facts.training
    assert "other cells" not in facts.training
