"""The recipe of ``vovnet train DATA``."""

import json
from pathlib import Path

import pytest

from vovnet.detection import recipe_from_data, train
from vovnet.detection.checkpoints.initialize import with_network_of_init
from vovnet.detection.config.detectors import DETECTORS
from vovnet.detection.config.loading import flat_recipe, load_recipe, recipe_to_yaml
from vovnet.detection.data.synthetic import generate_shapes
from vovnet.detection.training.from_data import recipe_or_data
from vovnet.errors import InputError


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    generate_shapes(folder, train=6, val=2, size=(64, 64), max_shapes=2, keypoints=True)
    return folder


def with_annotations(shapes: Path, folder: Path, *kept: str) -> Path:
    """Return a copy of the data whose annotations have only some of their keys."""
    (folder / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (folder / split).symlink_to(shapes / split)
        name = f"annotations/instances_{split}.json"
        content = json.loads((shapes / name).read_text())
        for one in content["annotations"]:
            for key in {"segmentation", "keypoints", "num_keypoints"} - set(kept):
                one.pop(key, None)
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("kept", "detector"),
    [((), "faster_rcnn"), (("segmentation",), "mask_rcnn"), (("keypoints", "segmentation"), "keypoint_rcnn")],
)
def test_the_annotations_choose_the_detector(
    shapes: Path, tmp_path: Path, kept: tuple[str, ...], detector: str
) -> None:
    data = with_annotations(shapes, tmp_path / "data", *kept)
    assert recipe_from_data(data, device="cpu").recipe.model.detector == detector


@pytest.mark.parametrize("detector", [None, *DETECTORS])
def test_all_choices_are_in_the_recipe_and_none_is_the_users(shapes: Path, detector: str | None) -> None:
    given = ["solver.max_iterations=40", "model.min_size=96"]
    if detector is not None:
        given.append(f"model.detector={detector}")
    chosen = recipe_from_data(shapes, given, device="cpu")
    flat = flat_recipe(chosen.recipe)
    for one in chosen.choices:
        if not one.key.startswith("data.t") and one.key != "data.val":
            assert flat[one.key] == one.value, one.key
        assert one.key in str(chosen)
    keys = {one.key for one in chosen.choices}
    assert not keys & {key.partition("=")[0] for key in given}
    assert (flat["solver.max_iterations"], flat["model.min_size"], flat["log.evaluate_every"]) == (40, 96, 10)
    assert ("model.anchor_sizes" in keys) == (detector not in ("retinanet", "fcos"))
    assert load_recipe_of(recipe_to_yaml(chosen.recipe), shapes) == chosen.recipe


def load_recipe_of(text: str, folder: Path) -> object:
    path = folder / "written.yaml"
    path.write_text(text)
    return load_recipe(path)


def test_trained_weights_shorten_the_run_and_lower_its_rate(shapes: Path) -> None:
    random = recipe_from_data(shapes, device="cpu").recipe.solver
    tuned = recipe_from_data(shapes, ["init=runs/other"], device="cpu").recipe.solver
    assert tuned.max_iterations < random.max_iterations
    assert tuned.base_lr < random.base_lr


def test_with_torchvisions_weights_the_network_is_torchvisions(shapes: Path) -> None:
    chosen = recipe_from_data(shapes, ["init=torchvision:keypointrcnn_resnet50_fpn"], device="cpu")
    model = with_network_of_init(chosen.recipe).model
    assert (model.detector, model.backbone, model.anchor_sizes) == ("keypoint_rcnn", "resnet50", None)
    assert model.min_size == chosen.recipe.model.min_size < 200


def test_what_is_no_data_is_a_recipe(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = tmp_path / "mine.yaml"
    written.write_text("solver: {base_lr: 0.5}\n")
    assert recipe_or_data(str(written), [], tmp_path).solver.base_lr == 0.5
    monkeypatch.chdir(tmp_path)
    Path("bccd").symlink_to(shapes)
    assert recipe_or_data("bccd", [], tmp_path) == load_recipe("bccd")
    assert recipe_or_data("./bccd", [], tmp_path, device="cpu") != load_recipe("bccd")
    with pytest.raises(InputError, match=r"^recipe: .*labels"):
        recipe_or_data("no/such", [], tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        recipe_or_data("empty", [], tmp_path)
    yolo = tmp_path / "data.yaml"
    yolo.write_text("names: [a]\ntrain: images\n")
    with pytest.raises(InputError, match="images"):  # it is read as data, of which there is none
        recipe_or_data("data.yaml", [], tmp_path)


def test_data_alone_is_trained_and_the_run_goes_on_as_it_began(shapes: Path, tmp_path: Path) -> None:
    labels = shapes / "annotations" / "instances_train.json"
    data = tmp_path / "data"
    data.mkdir()
    for image in (shapes / "train").iterdir():
        (data / image.name).symlink_to(image)
    (data / "labels.json").write_text(labels.read_text())
    run = tmp_path / "run"
    given = ["solver.max_iterations=1", "model.detector=faster_rcnn", "data.workers=0"]
    recipe = recipe_or_data(str(data), given, run, device="cpu")
    assert train(recipe, run, device="cpu", progress=False)["bbox"]["AP"] >= 0  # of the images that are held out
    for resume in (True, "auto"):
        assert recipe_or_data(str(data), ["log.log_every=3"], run, resume=resume).log.log_every == 3  # type: ignore[arg-type]
    (data / "labels.json").write_text("{}")
    assert recipe_or_data(str(data), [], run, resume=True).data == recipe.data
