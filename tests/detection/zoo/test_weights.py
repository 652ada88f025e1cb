"""torchvision's way to the published detectors: names, enums, builders with weights, and what they refuse."""

from __future__ import annotations

import copy
import io
import pickle
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from hostile import refused
from local_hub import Hub
from PIL import Image
from published_sources import publish
from torch import Tensor, nn
from torchvision.models import get_model, get_model_builder, get_model_weights, get_weight
from torchvision.models._api import WeightsEnum

from vovnet.detection import load_recipe
from vovnet.detection.checkpoints.empty import empty_detector
from vovnet.detection.legacy.keys import published_detector_keys
from vovnet.detection.models.flops import detector_gmacs
from vovnet.detection.zoo import weights
from vovnet.detection.zoo.published import PUBLISHED_ROWS, published_model, published_row
from vovnet.errors import InputError

# Builder, its enum, the recipe, and the published file.
PUBLISHED = [
    ("fasterrcnn_legacy_resnet50_fpn", "FasterRCNN_Legacy_ResNet50_FPN_Weights", "faster_rcnn_R_50", "FRCN-R-50"),
    ("fasterrcnn_legacy_resnet101_fpn", "FasterRCNN_Legacy_ResNet101_FPN_Weights", "faster_rcnn_R_101", "FRCN-R-101"),
    ("fasterrcnn_vovnet39_fpn", "FasterRCNN_VoVNet39_FPN_Weights", "faster_rcnn_V_39", "FRCN-V-39"),
    ("fasterrcnn_vovnet57_fpn", "FasterRCNN_VoVNet57_FPN_Weights", "faster_rcnn_V_57", "FRCN-V-57"),
    ("maskrcnn_legacy_resnet50_fpn", "MaskRCNN_Legacy_ResNet50_FPN_Weights", "mask_rcnn_R_50", "MRCN-R-50"),
    ("maskrcnn_legacy_resnet101_fpn", "MaskRCNN_Legacy_ResNet101_FPN_Weights", "mask_rcnn_R_101", "MRCN-R-101"),
    ("maskrcnn_vovnet39_fpn", "MaskRCNN_VoVNet39_FPN_Weights", "mask_rcnn_V_39", "MRCN-V-39"),
]
UNPUBLISHED = ["maskrcnn_vovnet57_fpn", "maskrcnn_vovnet27_slim_fpn", "fasterrcnn_vovnet27_slim_fpn"]
V39, V39_FILE = "fasterrcnn_vovnet39_fpn", "FRCN-V-39-FPN-2x.pth"
NO_V57 = "there is no published file of Mask R-CNN V-57: the published table repeats V-39's link"


def shapes_in_the_file(recipe: str, classes: int = 80) -> dict[str, tuple[int, ...]]:
    """Return the shapes in a published file of this detector, by its own keys."""
    model = load_recipe(recipe, [f"model.num_classes={classes}"]).model
    detector = empty_detector(model)
    ours = detector.state_dict()
    return {theirs: tuple(ours[key].shape) for theirs, key in published_detector_keys(detector, model.backbone).items()}


def published_file(recipe: str, classes: int = 80, unit: float = 1e-3, **more: Tensor) -> bytes:
    """A file of this detector, of some kilobytes: each tensor is one stored number, ``unit`` times its place."""
    state = {
        key: torch.full((1,), unit * (1 + i)).expand(shape)
        for i, (key, shape) in enumerate(shapes_in_the_file(recipe, classes).items())
    }
    buffer = io.BytesIO()
    torch.save({"model": {f"module.{k}": v for k, v in (state | more).items()}, "iteration": 180000}, buffer)
    return buffer.getvalue()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of torch hub. Files here are not fetched, and fetching fails the test."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def never(*args: object, **kwargs: object) -> None:
        pytest.fail(f"something was fetched: {args}")

    monkeypatch.setattr("urllib.request.urlopen", never)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("builder", "enum", "recipe", "file"), PUBLISHED)
def test_torchvision_finds_the_weights_by_name(builder: str, enum: str, recipe: str, file: str) -> None:
    found = get_model_weights(builder)
    assert found is get_model_weights(get_model_builder(builder)) is getattr(weights, enum)
    assert issubclass(found, WeightsEnum)
    assert [*found] == [found.COCO_V1]
    assert found.DEFAULT is found["DEFAULT"] is found.COCO_V1 is get_weight(f"{enum}.COCO_V1")
    assert repr(found.COCO_V1) == f"{enum}.COCO_V1"
    assert re.fullmatch(rf"https://www\.dropbox\.com/s/[0-9a-z]{{15}}/{file}-FPN-2x\.pth\?dl=1", found.COCO_V1.url)
    assert found.COCO_V1.meta["recipe"] == f"{recipe}_FPN_2x"
    assert copy.deepcopy(found.COCO_V1) is pickle.loads(pickle.dumps(found.COCO_V1)) is found.COCO_V1


@pytest.mark.parametrize("builder", [row[0] for row in PUBLISHED])
def test_what_the_enum_says_is_true_of_the_detector(builder: str) -> None:
    meta = get_model_weights(builder).DEFAULT.meta
    detector = empty_detector(published_model(meta["recipe"]))
    assert meta["num_params"] == parameters(detector)
    assert meta["_ops"] == pytest.approx(detector_gmacs(detector, (800, 800)), abs=5e-4)
    outputs = detector.roi_heads.box_predictor.cls_score.out_features  # type: ignore[union-attr]
    assert len(meta["categories"]) == outputs == 81
    labels = {0: "__background__", 1: "person", 12: "stop sign", 13: "parking meter", 80: "toothbrush"}
    assert {label: meta["categories"][label] for label in labels} == labels


def test_the_numbers_are_those_that_the_recipes_tell_of() -> None:
    """AP stands in each recipe's header, too."""
    for row in PUBLISHED_ROWS:
        header = (resources.files("vovnet.detection.recipes") / f"{row.recipe}.yaml").read_text(encoding="utf-8")
        told = re.search(r"Published: box(?: / mask)? AP ([\d.]+)(?: / ([\d.]+))? on", header)
        assert told is not None, row.recipe
        assert (told[1], told[2]) == (str(row.box[0]), str(row.mask[0]) if row.mask else None), row.recipe


def test_metrics_have_torchvisions_names() -> None:
    meta = get_model_weights("maskrcnn_vovnet39_fpn").DEFAULT.meta
    theirs = torchvision.models.detection.MaskRCNN_ResNet50_FPN_Weights.DEFAULT.meta
    (metrics,) = meta["_metrics"].values()
    assert set(theirs["_metrics"]["COCO-val2017"]) < set(metrics)
    assert (metrics["box_map"], metrics["box_map_small"], metrics["mask_map_large"]) == (41.0, 24.6, 53.0)
    assert set(theirs) - {"_file_size"} <= set(meta)
    (boxes,) = get_model_weights(V39).DEFAULT.meta["_metrics"].values()
    assert boxes == {"box_map": 39.8, "box_map_small": 23.7, "box_map_medium": 42.6, "box_map_large": 51.5}


def test_rows() -> None:
    assert len(PUBLISHED_ROWS) == 8
    assert len({row.url for row in PUBLISHED_ROWS}) == 8  # none leads to another's file
    row = published_row("mask_rcnn_V_57_FPN_2x")
    assert row is not None
    assert (row.url, row.file, row.box[0]) == (None, None, 42.0)
    assert published_row("bccd") is None


def test_a_builder_fetches_the_weights_once(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    member = get_model_weights(V39).DEFAULT
    monkeypatch.setattr(
        member.value, "url", hub.put_file(V39_FILE, published_file("faster_rcnn_V_39_FPN_2x")) + "?dl=1"
    )
    detector: Any = get_model(V39, weights="COCO_V1", progress=False)
    told = capsys.readouterr().err
    assert re.search(r"SHA-256 [0-9a-f]{64}; its authors state no licence", told)
    assert [line.path for line in hub.log()] == [f"/files/{V39_FILE}"]

    expected = {key: round(1e-3 * (1 + i), 3) for i, key in enumerate(shapes_in_the_file("faster_rcnn_V_39_FPN_2x"))}
    names = published_detector_keys(empty_detector(published_model("faster_rcnn_V_39_FPN_2x")), "vovnet39")
    state = detector.state_dict()
    assert len(state) == len(expected)
    for theirs, value in expected.items():
        assert state[names[theirs]].min() == state[names[theirs]].max() == pytest.approx(value)

    for name in (member, "DEFAULT", f"{type(member).__name__}.COCO_V1"):
        again = get_model(V39, weights=name)
        assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    assert len(hub.log()) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("builder", [V39, "maskrcnn_legacy_resnet50_fpn"])
def test_the_detector_is_the_recipes_and_detects(builder: str, cache: Path) -> None:
    """The builder returns it in training mode, with the attributes of a loaded detector and the given settings."""
    member = get_model_weights(builder).DEFAULT
    recipe = member.meta["recipe"]
    (cache / member.url.partition("?")[0].rpartition("/")[2]).write_bytes(published_file(recipe, unit=1e-9))
    settings = {"min_size": 64, "max_size": 96, "box_score_thresh": 0.0, "box_detections_per_img": 7}
    detector: Any = get_model(
        builder, weights=member, num_classes=81, weights_backbone=None, rpn_post_nms_top_n_test=20, **settings
    )
    assert detector.training
    assert parameters(detector) == member.meta["num_params"]
    assert detector.recipe.conventions == load_recipe(recipe).model.conventions == "legacy"
    assert {key: getattr(detector.recipe, key) for key in settings} == settings
    assert (detector.rpn._post_nms_top_n["testing"], detector.roi_heads.detections_per_img) == (20, 7)
    assert ["__background__", *(category["name"] for category in detector.categories)] == member.meta["categories"]
    assert (detector.preprocessing["channel_order"], detector.preprocessing["range"]) == ("bgr", [0, 255])

    image = member.transforms()(Image.new("RGB", (70, 48), (255, 0, 51)))
    assert (image.shape, image.dtype) == ((3, 48, 70), torch.float32)
    assert image[:, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])
    with torch.no_grad():
        (found,) = detector.eval()([image])
    assert len(found["boxes"]) > 0
    assert found["boxes"].isfinite().all()
    assert ("masks" in found) == ("mask" in builder)


def test_fewer_stages_train_where_it_is_asked_for(cache: Path) -> None:
    (cache / V39_FILE).write_bytes(published_file("faster_rcnn_V_39_FPN_2x"))
    trained = {
        layers: {
            name.split(".")[0]
            for name, parameter in get_model(
                V39, weights="DEFAULT", trainable_backbone_layers=layers
            ).backbone.body.named_parameters()  # type: ignore[union-attr, operator]
            if parameter.requires_grad
        }
        for layers in (None, 2)
    }
    assert trained[2] == {"stages_2", "stages_3"}
    assert {"stem_0", "stages_0"} < trained[None]


def test_the_state_alone(cache: Path) -> None:
    (cache / V39_FILE).write_bytes(published_file("faster_rcnn_V_39_FPN_2x"))
    state = get_model_weights(V39).COCO_V1.get_state_dict(progress=True, check_hash=True)
    ours = empty_detector(published_model("faster_rcnn_V_39_FPN_2x")).state_dict()
    assert {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in ours.items()}


@pytest.mark.parametrize(
    ("builder", "arguments", "message"),
    [
        (V39, {"num_classes": 91}, "num_classes=91 contradicts weights=.*faster_rcnn_V_39_FPN_2x"),
        (V39, {"num_classes": 0}, "num_classes=0 contradicts"),
        (V39, {"weights_backbone": True}, "weights_backbone=True contradicts"),
        (V39, {"weights_backbone": "DEFAULT"}, "weights_backbone='DEFAULT' contradicts"),
        (V39, {"trainable_backbone_layers": 6}, "trainable_backbone_layers must be 0 to 5, got 6"),
        (V39, {"image_mean": [0.485, 0.456, 0.406]}, "image_mean=.* contradicts"),
        (V39, {"image_std": [0.5] * 3}, "image_std=.* contradicts"),
        (V39, {"rpn_nms_thresh": 0.5}, "rpn_nms_thresh=0.5 contradicts"),
        (V39, {"box_head": nn.Identity()}, "box_head=.* contradicts"),
        (V39, {"min_size": 1500}, "model.max_size"),
        (V39, {"min_size": (800, 832)}, "model.min_size"),
        (V39, {"max_size": 10**6}, "model.max_size"),
        (V39, {"box_score_thresh": 2.0}, "model.box_score_thresh"),
        ("fasterrcnn_legacy_resnet50_fpn", {"norm": "bn"}, "norm='bn' contradicts"),
        ("fasterrcnn_legacy_resnet50_fpn", {"extra_level": None}, "extra_level=None contradicts"),
        ("fasterrcnn_legacy_resnet50_fpn", {"pretrained": False}, "pretrained=False contradicts"),
        ("fasterrcnn_legacy_resnet50_fpn", {"weights_backbone": "DEFAULT"}, "weights_backbone='DEFAULT' contradicts"),
    ],
)
def test_arguments_that_contradict_the_weights(
    builder: str, arguments: dict[str, Any], message: str, cache: Path
) -> None:
    with pytest.raises(InputError, match=message):
        get_model(builder, weights="COCO_V1", **arguments)
    assert not [*cache.iterdir()]


def test_unknown_arguments_are_errors_of_the_call(cache: Path) -> None:
    with pytest.raises(TypeError, match="no argument 'box_score_tresh'; did you mean 'box_score_thresh'"):
        get_model(V39, weights="COCO_V1", box_score_tresh=0.1)
    with pytest.raises(TypeError, match="no argument 'conventions'"):
        get_model("fasterrcnn_legacy_resnet50_fpn", weights="COCO_V1", conventions="torchvision")


def test_what_agrees_with_the_weights_is_taken(cache: Path) -> None:
    (cache / V39_FILE).write_bytes(published_file("faster_rcnn_V_39_FPN_2x"))
    (cache / "FRCN-R-50-FPN-2x.pth").write_bytes(published_file("faster_rcnn_R_50_FPN_2x"))
    get_model(V39, weights="COCO_V1", num_classes=81, weights_backbone=False, image_mean=None, box_head=None)
    get_model("fasterrcnn_legacy_resnet50_fpn", weights="COCO_V1", norm="frozen_bn", extra_level="pool")


@pytest.mark.parametrize("given", ["COCO_V2", "", True, 1, "FasterRCNN_VoVNet57_FPN_Weights.COCO_V1"])
def test_a_wrong_name_lists_what_there_is(given: object, cache: Path) -> None:
    with pytest.raises(InputError, match="of FasterRCNN_VoVNet39_FPN_Weights, 'COCO_V1' or 'DEFAULT'") as error:
        get_model(V39, weights=given)
    assert repr(given) in str(error.value)


def test_another_detectors_weights_are_refused(cache: Path) -> None:
    others = [weights.FasterRCNN_VoVNet57_FPN_Weights.COCO_V1, weights.MaskRCNN_VoVNet39_FPN_Weights.DEFAULT]
    others += [torchvision.models.detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1]
    for other in others:
        with pytest.raises(
            InputError, match=f"weights={other!r}: expected None or, of FasterRCNN_VoVNet39_FPN_Weights"
        ):
            get_model(V39, weights=other)
    with pytest.raises(InputError, match="of FasterRCNN_VoVNet39_FPN_Weights, 'COCO_V1' or 'DEFAULT'"):
        get_weight("FasterRCNN_VoVNet39_FPN_Weights.COCO_V2")


@pytest.mark.parametrize(
    "given",
    ["COCO_V1", "DEFAULT", weights.MaskRCNN_VoVNet39_FPN_Weights.COCO_V1, "MaskRCNN_VoVNet39_FPN_Weights.COCO_V1"],
)
def test_mask_v57_has_no_file_and_v39s_is_not_taken(given: object, cache: Path) -> None:
    (cache / "MRCN-V-39-FPN-2x.pth").write_bytes(published_file("mask_rcnn_V_39_FPN_2x"))
    with pytest.raises(InputError, match=NO_V57) as error:
        get_model("maskrcnn_vovnet57_fpn", weights=given)
    assert "V-39's weights are not loaded in its place" in str(error.value)


def test_builders_without_weights_say_so(cache: Path) -> None:
    for builder in UNPUBLISHED:
        enum: Any = get_model_weights(builder)
        assert [*enum] == []
        with pytest.raises(InputError, match=r"weights='DEFAULT': .*take weights=None"):
            get_model(builder, weights="DEFAULT")
    with pytest.raises(InputError, match=NO_V57):
        get_weight("MaskRCNN_VoVNet57_FPN_Weights.COCO_V1")
    with pytest.raises(InputError, match=r"only .*MaskRCNN_VoVNet39_FPN_Weights"):
        get_model("maskrcnn_vovnet27_slim_fpn", weights="COCO_V1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: published_file("mask_rcnn_V_39_FPN_2x"), "is Mask R-CNN V-39-FPN, 80 classes"),
        (lambda: published_file("faster_rcnn_V_57_FPN_2x"), "is Faster R-CNN V-57-FPN, 80 classes"),
        (
            lambda: published_file("faster_rcnn_V_39_FPN_2x", classes=3),
            "is Faster R-CNN V-39-FPN, 3 classes .* not faster_rcnn_V_39_FPN_2x with 80 classes",
        ),
        (
            lambda: published_file(
                "faster_rcnn_V_39_FPN_2x",
                **{f"rpn.anchor_generator.cell_anchors.{i}": torch.zeros(3, 4) for i in range(5)},
            ),
            "expected the published anchors",
        ),
        (
            lambda: published_file("faster_rcnn_V_39_FPN_2x", **{"rpn.head.extra": torch.zeros(2)}),
            r"does not fit it .*rpn\.head\.extra",
        ),
        (lambda: published_file("faster_rcnn_V_39_FPN_2x")[:5000], "truncated or damaged"),
        (lambda: pickle.dumps(Path("a")), "refused|not a PyTorch checkpoint"),
    ],
)
def test_a_file_of_something_else_under_the_published_name(content: Any, message: str, cache: Path) -> None:
    (cache / V39_FILE).write_bytes(content())
    with pytest.raises(InputError, match=message) as error:
        get_model(V39, weights="COCO_V1")
    assert str(error.value).startswith(str(cache / V39_FILE))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["faster", "mask"])
def test_a_dead_link_names_other_sources(hub: Hub, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    name = f"{kind}rcnn_vovnet39_fpn"
    member = get_model_weights(name).DEFAULT
    monkeypatch.setattr(member.value, "url", f"{hub.endpoint}/files/{V39_FILE}?dl=1")
    others = (f"torchvision:{kind}rcnn_resnet50_fpn_v2", f"vovnet train {kind}_rcnn_vovnet39_fpn", "vovnet convert")
    refused(lambda: get_model(name, weights="COCO_V1", progress=False), V39_FILE, "404", *others)


def test_a_dead_link_of_the_backbone_names_other_sources(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, "vovnet39.osmr_in1k", f"{hub.endpoint}/files/none.pth.zip", sha1=None)
    refused(lambda: get_model(V39, weights_backbone=True), "none.pth.zip", "404", "vovnet39.in1k", "vovnet convert")


def test_a_dead_link_says_where_the_file_goes(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    member = get_model_weights(V39).DEFAULT
    monkeypatch.setattr(member.value, "url", f"{hub.endpoint}/files/{V39_FILE}?dl=1")
    place = tmp_path / "torch" / "hub" / "checkpoints"
    with pytest.raises(InputError, match=f"put it at '{re.escape(str(place / V39_FILE))}'"):
        get_model(V39, weights="COCO_V1", progress=False)
    (place / V39_FILE).write_bytes(published_file("faster_rcnn_V_39_FPN_2x"))
    assert get_model(V39, weights="COCO_V1").training
