"""Recipes that a stranger wrote: whatever they say, they are read or refused in one line."""

import copy
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strange_json import NOT_ON_A_LINE, mutated, strange_values

from vovnet.detection.config.data import DataRecipe
from vovnet.detection.config.loading import load_recipe, recipe_from_dict, recipe_names, recipe_to_dict, recipe_to_yaml
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.config.schema import Recipe
from vovnet.detection.config.sources import DataSource
from vovnet.errors import InputError

RECIPES = {name: recipe_to_dict(load_recipe(name)) for name in recipe_names()}
KEYS = [f"{section}.{key}" for section, part in RECIPES["bccd"].items() if part for key in part] + ["init", "model"]
FULL = {
    **RECIPES["bccd"],
    "model": {
        **RECIPES["bccd"]["model"],
        "backbone_args": {"drop_path_rate": 0.1, "layers": [1, 2]},
        "out_indices": [0, 1, 2, 3],
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.2, 0.2, 0.2],
        "anchor_sizes": [[32], [64], [128], [256], [512]],
    },
}
slow_input = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


def read_or_refused(read: Any, *arguments: Any) -> Recipe | None:
    try:
        recipe: Recipe = read(*arguments)
    except InputError as error:
        message = str(error)
        assert message
        assert not NOT_ON_A_LINE.search(message), message
        assert len(message) < 2000
        return None
    # What is read is storable, and builtin types alone.
    assert recipe_from_dict(json.loads(json.dumps(recipe_to_dict(recipe))), "again") == recipe
    return recipe


@slow_input
@given(mutated(FULL))
def test_a_changed_recipe_is_read_or_refused_in_one_line(values: Any) -> None:
    read_or_refused(recipe_from_dict, values, "here")


def as_yaml(values: Any) -> str:
    """YAML text of any JSON, some of which YAML cannot hold."""
    return yaml.dump(values, allow_unicode=False)


@slow_input
@given(st.data())
def test_a_changed_yaml_file_is_read_or_refused_in_one_line(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "mine.yaml"
    good = as_yaml(FULL)
    kind = data.draw(st.sampled_from(("values", "cut", "characters")))
    if kind == "values":
        try:
            text = as_yaml(data.draw(mutated(FULL)))
        except (RecursionError, ValueError):
            text = "5"
    elif kind == "cut":
        text = good[: data.draw(st.integers(0, len(good)))]
    else:
        place = data.draw(st.integers(0, len(good) - 1))
        text = good[:place] + data.draw(st.text(" {}[],:&*!|>-?'\"#%@`~\n\t0e.$", max_size=4)) + good[place + 1 :]
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    read_or_refused(load_recipe, path)


@slow_input
@given(st.sampled_from(KEYS), st.one_of(st.text(max_size=30), strange_values().map(str).filter(lambda t: len(t) < 999)))
def test_a_strange_override_is_read_or_refused_in_one_line(key: str, value: str) -> None:
    read_or_refused(load_recipe, "bccd", [f"{key}={value}"])


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefghij")
)


@pytest.mark.parametrize(
    "text",
    [
        "5",
        "null: 1",
        "solver: &a {steps: *a}",
        "data: {train: &a [*a]}",
        BOMB,
        "[" * 5000,
        "{a: " * 5000,
        "- " * 5000,
        "? " * 5000,
        "solver: !!python/object/apply:os.system [ls]",
        "solver: !!timestamp 2024-99-99",
        "solver: {seed: !!int x}",
        "solver: {<<: {seed: 3}}",
        "solver: {seed: 1, seed: 2}",
        "? [a, b]\n: 1",
        "solver: {seed: 1}\n---\nsolver: {seed: 2}",
        "%YAML 9.9\n---\n{}",
        "model: {backbone: *missing}",
        "solver: {seed: " + "9" * 5000 + "}",
        "x" * 2**19,
    ],
)
def test_yaml_that_is_no_recipe_ends_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"mine\.yaml") as caught:
        load_recipe(path)
    assert not NOT_ON_A_LINE.search(str(caught.value))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.image_std=[0.2, {}, 0.2]", "model.image_std[1]"),
        ("model.aspect_ratios=[[1, 2]]", "model.aspect_ratios[0]"),
        ("model.image_mean=[[1]]", "model.image_mean[0]"),
        ("model.backbone_args=[1]", "model.backbone_args"),
        ("solver.steps=[[1],2]", "solver.steps[0]"),
        ("solver.seed=18446744073709551616", "solver.seed"),
        ("solver.seed=true", "solver.seed"),
        ("solver.nesterov=1", "solver.nesterov"),
        ("model.min_size='64'", "model.min_size"),
        ("solver.epochs=0", "solver.epochs"),
    ],
)
def test_what_was_once_a_traceback_names_the_key(override: str, key: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe("quickstart", [override])
    assert key in str(caught.value)


ODD_NAMES = ["2024_01", "0123", "1.10", "no", "1e-3", "1e3", "0x10", "true", "12:30:45", "2024-01-01", "a:b", "5", ".5"]
ODD_NAMES += ["0o7", ".inf", "=", "<<", "~/data", "~draft", "A$10^$", "100%", "汽车", "a b", "y", "-1"]
NULLS = ["null", "~", "Null", "NULL"]


@pytest.mark.parametrize("name", ODD_NAMES + NULLS)
def test_names_of_folders_need_no_quotes(name: str, tmp_path: Path) -> None:
    recipe = load_recipe("bccd", [f"data.val=[{{images: {name}, annotations: {name}}}]", f"model.backbone={name}"])
    if name not in NULLS:  # init may be null
        recipe = replace(recipe, init=load_recipe("bccd", [f"init={name}"]).init)
        assert recipe.init == name
    assert recipe.data.val == [DataSource(images=name, annotations=name)]
    assert recipe.model.backbone == name
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_to_yaml(recipe))
    assert load_recipe(path) == recipe
    # Other readers of YAML 1.1 see the same text.
    assert yaml.safe_load(path.read_text())["data"]["val"] == [{"images": name, "annotations": name}]


@pytest.mark.parametrize("spelling", ["", *NULLS])
def test_null_is_null_where_a_key_may_be_null(spelling: str, tmp_path: Path) -> None:
    keys = ["init", "solver.ema", "model.extra_level", "model.out_indices", "data.scale_jitter", "model.head_norm"]
    recipe = load_recipe("bccd", [f"{key}={spelling}" for key in keys])
    assert recipe.init is recipe.solver.ema is recipe.model.extra_level is recipe.model.out_indices is None
    assert recipe.data.scale_jitter is recipe.model.head_norm is None
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_to_yaml(recipe))
    assert load_recipe(path) == recipe
    quoted = load_recipe("bccd", [f"init='{spelling}'", f"model.backbone_args={{a: {spelling}}}"])
    assert (quoted.init, quoted.model.backbone_args) == (spelling, {"a": None})
    path.write_text(recipe_to_yaml(quoted))
    assert load_recipe(path) == quoted


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("data.train=[{images: $HOME/x, annotations: a}]", "data.train[0].images"),
        ("data.val=[{images: x, annotations: 'a/$USER.json'}]", "data.val[0].annotations"),
        ("init=$RUN", "init"),
        ("init=${RUN}", "init"),
        ("data.val=[{images: , annotations: a}]", "data.val[0].images"),
        ("model.min_size=~", "model.min_size"),
        ("solver=", "solver"),
    ],
)
def test_variables_in_paths_and_nothing_are_refused(override: str, key: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe("bccd", [override])
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_is_read_by_the_type_of_its_key() -> None:
    recipe = load_recipe(
        "bccd", ["solver.base_lr=1e-3", "data.keep_empty=no", "solver.max_iterations=60_000", "model.backbone=no"]
    )
    assert (recipe.solver.base_lr, recipe.data.keep_empty, recipe.solver.max_iterations) == (0.001, False, 60_000)
    assert recipe.model.backbone == "no"


storable = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda text: "${" not in text)
plain = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(-9, 9), storable)
arguments = st.dictionaries(storable, st.one_of(plain, st.lists(plain, max_size=3)), max_size=3)


@slow_input
@given(storable, arguments)
@pytest.mark.filterwarnings("error")
def test_any_text_comes_back_from_yaml(tmp_path: Path, text: str, backbone_args: dict[str, Any]) -> None:
    recipe = Recipe(
        model=ModelRecipe(backbone_args=copy.deepcopy(backbone_args)),
        data=DataRecipe(train=[DataSource(images=text or "a", annotations=text or "a")]),
        init=text,
    )
    path = tmp_path / "mine.yaml"
    path.write_text(recipe_to_yaml(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe


def test_the_yaml_that_omegaconf_wrote_is_read(tmp_path: Path) -> None:
    """``recipe.yaml`` of a run before recipes were read by the types of their fields."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model:\n  backbone_args:\n    drop_path_rate: 1.0e-05\n    name: 'no'\n  num_classes: 3\n  anchor_sizes:\n"
        "  - - 32\n  aspect_ratios:\n  - 0.5\n"
        "data:\n  train:\n  - images: '2024_01'\n    annotations: a b.json\n"
        "solver:\n  weight_decay: 0.0001\n  ema: null\n  nesterov: false\n  steps: []\ninit: null\n"
    )
    recipe = load_recipe(path)
    assert recipe.model.backbone_args == {"drop_path_rate": 1e-5, "name": "no"}
    assert recipe.model.anchor_sizes == [[32]]
    assert recipe.data.train[0].images == "2024_01"
    assert recipe.solver.steps == []
