"""Start a training from other weights: all of another detector but its predictors, or a backbone in timm's form."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision_files import in_cache, random_state

from vovnet.detection.checkpoints.folder import save_detector
from vovnet.detection.checkpoints.initialize import load_matching, network_text, with_network_of_init
from vovnet.detection.checkpoints.torchvision_detectors import NETWORKS, NORM_EPS
from vovnet.detection.config.loading import load_recipe, recipe_from_dict, recipe_names, recipe_to_dict
from vovnet.detection.config.model import SETTINGS, ModelRecipe
from vovnet.detection.config.schema import Recipe
from vovnet.detection.config.solver import SolverRecipe
from vovnet.detection.models.build import build_detector
from vovnet.errors import InputError

MODEL = ModelRecipe(
    detector="mask_rcnn",
    backbone="vovnet27_slim",
    fpn_channels=16,
    box_representation_size=32,
    mask_head_channels=8,
    mask_head_convs=1,
    num_classes=2,
    min_size=64,
    max_size=96,
)
CATEGORIES = [{"id": 4, "name": "cat"}, {"id": 2, "name": "dog"}]
PREDICTORS = [
    "roi_heads.box_predictor.cls_score.weight",
    "roi_heads.box_predictor.cls_score.bias",
    "roi_heads.box_predictor.bbox_pred.weight",
    "roi_heads.box_predictor.bbox_pred.bias",
    "roi_heads.mask_predictor.mask_fcn_logits.weight",
    "roi_heads.mask_predictor.mask_fcn_logits.bias",
]


def built(seed: int = 1, **settings: Any) -> Any:
    torch.manual_seed(seed)
    return build_detector(dataclasses.replace(MODEL, **settings), download=False)


def copied(detector: Any) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in detector.state_dict().items()}


def unchanged(detector: Any, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())


@pytest.fixture(scope="module")
def detector() -> Any:
    return built(seed=0)


@pytest.fixture(scope="module")
def saved(detector: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_detector(folder, detector, MODEL, CATEGORIES)
    return folder


def test_fine_tuning_starts_everything_but_the_predictors(detector: Any, saved: Path) -> None:
    other = built(num_classes=5)
    before = copied(other)
    assert load_matching(other, saved).fresh == PREDICTORS
    theirs = detector.state_dict()
    for key, value in other.state_dict().items():
        assert torch.equal(value, before[key] if key in PREDICTORS else theirs[key])


def test_fine_tuning_with_the_same_classes_starts_everything(detector: Any, saved: Path) -> None:
    other = built()
    assert load_matching(other, saved).fresh == []
    assert unchanged(other, detector.state_dict())


def test_fine_tuning_from_another_architecture_is_refused(saved: Path) -> None:
    other = built(fpn_channels=8)
    before = copied(other)
    with pytest.raises(InputError, match="weights of another model"):
        load_matching(other, saved)
    assert unchanged(other, before)


@pytest.mark.parametrize("frozen_first", [True, False])
def test_frozen_norms_start_from_others_and_others_from_them(frozen_first: bool, tmp_path: Path) -> None:
    frozen: dict[str, Any] = {"norm": "frozen_bn", "pretrained": True}
    first, second = (frozen, {}) if frozen_first else ({}, frozen)
    save_detector(tmp_path, built(**first), MODEL, [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}])
    other = built(seed=2, **second)
    assert load_matching(other, tmp_path).fresh == []
    theirs = load_file(tmp_path / "model.safetensors")
    for key, value in other.state_dict().items():
        assert key.endswith(".num_batches_tracked") or torch.equal(value, theirs[key])


def timm_folder(folder: Path, name: str, seed: int = 3) -> dict[str, Tensor]:
    """A classifier as timm's ``save_for_hf`` leaves it."""
    torch.manual_seed(seed)
    state = timm.create_model(name, num_classes=7).state_dict()
    # Norms that differ from their start, so that one that is not loaded is seen.
    state = {key: torch.rand_like(value) if "running" in key else value.clone() for key, value in state.items()}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": name, "num_classes": 7, "pretrained_cfg": {}}))
    return state


@pytest.mark.parametrize("norm", ["bn", "frozen_bn"])
@pytest.mark.parametrize(
    ("name", "conventions"), [("vovnet27_slim", "legacy"), ("resnet18", "legacy"), ("resnet18", "torchvision")]
)
def test_a_backbone_starts_the_backbone_alone(name: str, conventions: str, norm: str, tmp_path: Path) -> None:
    theirs = timm_folder(tmp_path, name)
    other = built(backbone=name, conventions=conventions, norm=norm, pretrained=norm == "frozen_bn")
    before = copied(other)
    assert load_matching(other, tmp_path).fresh == ["backbone.fpn.*", "roi_heads.*", "rpn.*"]
    joined = {**theirs, **{key.replace(".", "_", 1): value for key, value in theirs.items()}}
    body = other.backbone.body.state_dict()
    for key, value in body.items():
        assert key.endswith(".num_batches_tracked") or torch.equal(value, joined[key]), key
    for key, value in other.state_dict().items():
        assert key.startswith("backbone.body.") or torch.equal(value, before[key]), key


def test_the_backbone_computes_what_the_classifier_does(tmp_path: Path) -> None:
    timm_folder(tmp_path, "vovnet27_slim")
    other = built().eval()
    load_matching(other, tmp_path)
    whole: Any = timm.create_model("vovnet27_slim", num_classes=7).eval()
    whole.load_state_dict(load_file(tmp_path / "model.safetensors"))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(other.backbone.body(image)[-1], whole.forward_features(image), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("vovnet39", "vovnet27_slim"),
        ("vovnet57", "vovnet39"),
        ("vovnet39", "vovnet57"),
        ("resnet34", "resnet18"),
        ("resnet18", "resnet34"),
        ("resnet18", "vovnet27_slim"),
    ],
)
def test_another_backbone_is_refused(ours: str, theirs: str, tmp_path: Path) -> None:
    """Also a deeper one of the family, which has all that is needed, and more."""
    timm_folder(tmp_path, theirs)
    other = built(backbone=ours)
    before = copied(other)
    with pytest.raises(InputError, match=r"model\.safetensors|config\.json") as caught:
        load_matching(other, tmp_path)
    assert "\n" not in str(caught.value)
    assert unchanged(other, before)


def test_a_backbone_without_a_part_is_refused(tmp_path: Path) -> None:
    state = timm_folder(tmp_path, "vovnet27_slim")
    gone = next(key for key in state if key.endswith("running_var"))
    save_file({key: value for key, value in state.items() if key != gone}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="1 missing"):
        load_matching(built(), tmp_path)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"format": "other"}'])
def test_a_config_that_is_neither_is_refused(saved: Path, text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        load_matching(built(), tmp_path)


@pytest.mark.parametrize(("theirs", "ours"), [("legacy", "torchvision"), ("torchvision", "legacy")])
def test_weights_for_other_images_are_refused(theirs: str, ours: str, tmp_path: Path) -> None:
    other = dataclasses.replace(MODEL, conventions=theirs)
    save_detector(tmp_path, built(conventions=theirs), other, [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}])
    ready = built(conventions=ours)
    before = copied(ready)
    with pytest.raises(InputError, match=f"conventions: {theirs}.*model.conventions={theirs}"):
        load_matching(ready, tmp_path, ours)
    assert unchanged(ready, before)
    assert load_matching(built(conventions=theirs), tmp_path, theirs).fresh == []


MASK_PARTS = ["roi_heads.mask_head.*", "roi_heads.mask_predictor.*"]


def test_a_mask_rcnn_starts_a_faster_rcnn_without_its_mask_head(detector: Any, saved: Path) -> None:
    other = built(detector="faster_rcnn")
    start = load_matching(other, saved)
    assert (start.fresh, start.left_out) == ([], MASK_PARTS)
    assert f"left out: {', '.join(MASK_PARTS)}" in str(start)
    theirs = detector.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in other.state_dict().items())


def test_a_faster_rcnn_starts_a_mask_rcnn_with_a_new_mask_head(tmp_path: Path) -> None:
    faster = built(seed=0, detector="faster_rcnn")
    save_detector(tmp_path, faster, dataclasses.replace(MODEL, detector="faster_rcnn"), CATEGORIES)
    other = built(num_classes=5)
    before = copied(other)
    start = load_matching(other, tmp_path)
    assert (start.fresh, start.left_out) == ([*PREDICTORS[:4], *MASK_PARTS], [])
    theirs = faster.state_dict()
    for key, value in other.state_dict().items():
        new = key in PREDICTORS or ".mask_" in key
        assert torch.equal(value, before[key] if new else theirs[key]), key


def test_half_a_mask_head_is_refused(detector: Any, tmp_path: Path) -> None:
    save_detector(tmp_path, detector, MODEL, CATEGORIES)
    file = tmp_path / "model.safetensors"
    tensors = {key: value for key, value in load_file(file).items() if ".mask_predictor." not in key}
    save_file(tensors, file)
    with pytest.raises(InputError, match="mask_predictor"):
        load_matching(built(), tmp_path)


NAMES = ["fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn"]


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn"])
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_takes_torchvisions_network_and_keeps_its_own_settings(name: str, kind: Any) -> None:
    own = {"min_size": 500, "box_score_thresh": 0.2, "trainable_stages": 2, "num_classes": 3}
    recipe = Recipe(model=ModelRecipe(detector=kind, **own), init=f"torchvision:{name}")
    found = with_network_of_init(recipe)
    assert found.model == ModelRecipe(**{**NETWORKS[name], **own, "detector": kind})
    assert with_network_of_init(found) == found  # recipe.yaml repeats the run
    assert (found.data, found.solver, found.init) == (recipe.data, recipe.solver, recipe.init)
    assert all(f"model.{key}=" in network_text(found) for key in NETWORKS[name].keys() - {"detector"})


@pytest.mark.parametrize(
    "own",
    [
        {"norm": "frozen_bn"},
        {"norm": "sync_bn", "fpn_norm": "sync_bn", "head_norm": "sync_bn"},
        {"backbone": "resnet50.a1_in1k"},
        {"backbone_args": {"drop_path_rate": 0.1}},
        {"stride_in_1x1": False},
        {"norm_eps": 1e-5},
        {"anchor_sizes": [[16], [32], [64], [128], [256]], "aspect_ratios": [0.7, 1.0, 1.4]},
        {"image_mean": [0.2, 0.2, 0.2], "image_std": [0.1, 0.1, 0.1]},
    ],
)
def test_values_that_fit_the_same_weights_stay_the_recipes(own: dict[str, Any]) -> None:
    name = "maskrcnn_resnet50_fpn_v2"
    found = with_network_of_init(Recipe(model=ModelRecipe(**own), init=f"torchvision:{name}"))
    assert found.model == ModelRecipe(**{**NETWORKS[name], **own, "detector": "faster_rcnn"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone", "vovnet57"),
        ("norm", "gn"),
        ("norm_eps", 0.001),
        ("norm_eps", 0.0),
        ("backbone_args", {"act_layer": "silu"}),
        ("stride_in_1x1", True),
        ("fpn_norm", "gn"),
        ("head_norm", "gn"),
        ("fpn_channels", 128),
        ("extra_level", None),
        ("in_chans", 1),
        ("out_indices", [1, 2, 3, 4]),
        ("rpn_head_convs", 3),
        ("box_head_convs", 2),
        ("box_representation_size", 512),
        ("mask_head_channels", 128),
        ("conventions", "legacy"),
    ],
)
def test_a_value_that_contradicts_torchvisions_network_is_refused(key: str, value: Any) -> None:
    recipe = Recipe(model=ModelRecipe(**{key: value}), init="torchvision:maskrcnn_resnet50_fpn_v2")
    with pytest.raises(InputError, match=rf"model\.{key}\b.*torchvision:maskrcnn_resnet50_fpn_v2"):
        with_network_of_init(recipe)


# Settings, and norms and an epsilon (null is 1e-5) with which the weights mean the same.
FREE = {"detector", "num_keypoints", "norm", "norm_eps", "anchor_sizes", "image_mean", "image_std", *SETTINGS}


def outcome(recipe: Recipe) -> ModelRecipe | str:
    """The recipe's model with the network of its ``init``, or the refusal."""
    try:
        return with_network_of_init(recipe).model
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(ModelRecipe)])
def test_a_value_that_a_recipe_gives_is_never_replaced(key: str, name: str) -> None:
    """Its default value either: it stays, or it is refused. A value that it does not give is torchvision's."""
    default = recipe_to_dict(Recipe())["model"][key]
    expected = {"detector": "faster_rcnn", **NETWORKS[name]}.get(key, default)
    found = outcome(recipe_from_dict({"model": {key: default}, "init": f"torchvision:{name}"}, "recipe"))
    if isinstance(found, str):
        assert f"model.{key}" in found
        assert default != expected
    else:
        assert getattr(found, key) == (True if key == "pretrained" else default)
        assert getattr(found, key) == expected or key in FREE
    left_out = with_network_of_init(Recipe(init=f"torchvision:{name}")).model
    assert getattr(left_out, key) == (default if key in ("detector", "num_keypoints") else expected)


@pytest.mark.parametrize("recipe", ["faster_rcnn_vovnet39_fpn", "mask_rcnn_vovnet57_fpn", "bccd", "quickstart"])
def test_a_recipe_of_another_network_is_refused(recipe: str) -> None:
    """Also if the other network is the default one, in a file or on the command line."""
    overrides = ["init=torchvision:fasterrcnn_resnet50_fpn_v2"]
    with pytest.raises(InputError, match=r"model\.\w+\b.*contradicts init=torchvision"):
        with_network_of_init(load_recipe(recipe, overrides))
    with pytest.raises(InputError, match=r"model\.backbone\b.*vovnet39.*contradicts"):
        with_network_of_init(load_recipe("coco_tiny", [*overrides, "model.backbone=vovnet39"]))


@pytest.mark.parametrize("norm", ["bn", "sync_bn"])
@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_fpn"])
def test_norms_that_train_have_an_epsilon(name: str, norm: Any) -> None:
    """A channel that is constant in a batch has no variance."""
    recipe = Recipe(model=ModelRecipe(norm=norm, num_classes=2), init=f"torchvision:{name}")
    found = with_network_of_init(recipe)
    assert found.model.norm == norm
    assert with_network_of_init(found) == found
    with torch.device("meta"):
        body = build_detector(found, download=False).backbone.get_submodule("body")
    assert {module.eps for module in body.modules() if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm)} == {
        NORM_EPS
    }
    assert ("frozen norms" in network_text(found)) == (NETWORKS[name]["norm_eps"] == 0)


def test_the_mask_head_is_the_recipes_if_torchvisions_detector_has_none() -> None:
    model = ModelRecipe(detector="mask_rcnn", mask_head_channels=64, mask_head_convs=2)
    found = with_network_of_init(Recipe(model=model, init="torchvision:fasterrcnn_resnet50_fpn")).model
    assert (found.mask_head_channels, found.mask_head_convs, found.backbone) == (64, 2, "resnet50")


@pytest.mark.parametrize("init", [None, "runs/mine", "ORG/NAME"])
def test_other_starts_do_not_change_a_recipe(init: str | None) -> None:
    recipe = Recipe(init=init)
    assert with_network_of_init(recipe) is recipe
    assert network_text(recipe) == ""


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("finetune_")])
def test_recipes_for_fine_tuning_describe_their_network_in_full(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.init is not None
    assert with_network_of_init(recipe) == recipe
    expected = {"detector": "faster_rcnn", **NETWORKS[recipe.init.removeprefix("torchvision:")], "norm": "frozen_bn"}
    assert {key: getattr(recipe.model, key) for key in expected} == expected


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("finetune_")])
def test_recipes_for_fine_tuning_have_a_low_rate_and_an_average_that_is_reached(name: str) -> None:
    """A low rate is at most a third of the default's, image by image; the decay grows as (1 + n) / (10 + n)."""
    solver, default = load_recipe(name).solver, SolverRecipe()
    assert solver.schedule == "cosine"
    rate, usual = (one.base_lr / one.reference_batch_size for one in (solver, default))
    assert rate <= usual / 3
    assert solver.ema is not None
    done = solver.max_iterations * 2 / 3
    assert solver.ema <= (1 + done) / (10 + done)


def test_torchvisions_weights_start_other_classes_and_the_other_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    state = random_state("maskrcnn_resnet50_fpn_v2")
    in_cache(monkeypatch, {"maskrcnn_resnet50_fpn_v2": state})
    recipe = Recipe(model=ModelRecipe(num_classes=4), init="torchvision:maskrcnn_resnet50_fpn_v2")
    other = build_detector(with_network_of_init(recipe), download=False)
    start = load_matching(other, str(recipe.init), "torchvision")
    assert (start.fresh, start.left_out) == (PREDICTORS[:4], MASK_PARTS)
    assert "47.4" in str(start)
    found = other.state_dict()
    assert all(torch.equal(found[key], state[key]) for key in found if key not in PREDICTORS)
