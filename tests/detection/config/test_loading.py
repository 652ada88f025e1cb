"""Recipes: what is read, what is refused, and that they come back unchanged."""

import re
from pathlib import Path

import pytest
import timm

from vovnet.detection.config.loading import load_recipe, recipe_from_dict, recipe_names, recipe_to_dict, recipe_to_yaml
from vovnet.detection.config.schema import Recipe
from vovnet.detection.config.sources import DataSource
from vovnet.errors import InputError


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_survives_writing_and_reading(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_to_yaml(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe
    assert recipe_to_yaml(load_recipe(path)) == path.read_text(encoding="utf-8")
    assert recipe_from_dict(recipe_to_dict(recipe), "here") == recipe


@pytest.mark.parametrize("name", [name for name in recipe_names() if load_recipe(name).model.pretrained])
def test_weights_that_a_recipe_downloads_have_an_address(name: str) -> None:
    model = load_recipe(name).model
    cfg = timm.get_pretrained_cfg(model.backbone)
    assert cfg is not None
    assert model.conventions == "legacy" or cfg.url or cfg.hf_hub_id


@pytest.mark.parametrize("name", [name for name in recipe_names() if re.fullmatch(r"\w+_rcnn_vovnet\d\d_fpn", name)])
def test_the_vovnet_recipes_start_from_weights_with_a_licence(name: str) -> None:
    model = load_recipe(name).model
    cfg = timm.get_pretrained_cfg(model.backbone)
    assert model.pretrained
    assert (cfg.tag, cfg.license) == ("osmr_in1k", "mit")


def test_overrides_replace_values_and_whole_lists() -> None:
    recipe = load_recipe(
        "quickstart",
        ["solver.base_lr=0.25", "solver.steps=[7]", "data.val=[{images: 'a, b', annotations: c.json}]", "solver.ema="],
    )
    assert recipe.solver.base_lr == 0.25
    assert recipe.solver.steps == [7]
    assert recipe.data.val == [DataSource(images="a, b", annotations="c.json")]
    assert recipe.solver.ema is None


def test_a_file_that_names_nothing_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("", encoding="utf-8")
    assert load_recipe(path) == Recipe()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("solver.bas_lr=1", "unknown key 'solver.bas_lr'; did you mean 'base_lr'"),
        ("solverr.base_lr=1", "unknown key 'solverr'; did you mean 'solver'"),
        ("solver.base_lr=fast", "solver.base_lr"),
        ("solver.max_iterations=1.5", "solver.max_iterations"),
        ("model.min_size=null", "model.min_size"),
        ("solver=3", "solver"),
        ("data.val=[{images: a}]", "data.val[0]: expected one of the keys annotations, coco, yolo"),
        ("data.val=[{images: a, annotations: b, more: c}]", "unknown key 'data.val[0].more'"),
        ("data.val=[{images: a", "not valid YAML"),
        ("base_lr", "expected key=value"),
        ("model.backbone=${oc.env:HOME}", "not allowed in a recipe"),
        ("data.train=[{images: '${x}', annotations: b}]", "not allowed in a recipe"),
        ("solver.schedule=linear", "solver.schedule: expected one of 'steps' or 'cosine', got linear"),
        ("solver.amp=fp8", "solver.amp"),
        ("solver.batch_size=0", "expected at least 1, got 0"),
        ("solver.base_lr=.nan", "solver.base_lr"),
        ("solver.base_lr=nan", "expected a finite number, got nan"),
        ("data.flip=2", "data.flip: expected at most 1, got 2"),
        ("data.train_min_sizes=[]", "data.train_min_sizes"),
        ("data.scale_jitter=[2, 1]", "data.scale_jitter"),
        ("solver.steps=[5, 5]", "solver.steps"),
        ("solver.clip_grad_norm=0", "solver.clip_grad_norm"),
    ],
)
def test_wrong_overrides_are_one_line_that_names_the_key(override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe("quickstart", [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_names_the_nearest_and_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'quickstart'"):
        load_recipe("quickstrat")
    with pytest.raises(InputError, match="there is no file"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize("text", ["- a\n- b\n", "model: [", "just text", "1: {a: 2}"])
def test_a_file_that_is_no_mapping_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"wrong\.yaml"):
        load_recipe(path)


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.yaml"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match="UTF-8"):
        load_recipe(path)
