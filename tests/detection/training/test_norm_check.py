"""A training whose norms would get a single value ends before its first iteration, with the keys that mend it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Squares, short_recipe, tiny_model

from vovnet.detection import build_detector, predict, train
from vovnet.detection.config.schema import Recipe
from vovnet.errors import InputError


def recipe_of(images: int = 1, channels: int = 32, sizes: tuple[int, ...] = (64,), **model: Any) -> Recipe:
    recipe = short_recipe(batch_size=images, max_iterations=1)
    recipe.model = replace(tiny_model("test_resnet", detector="fcos"), fpn_channels=channels, **model)
    recipe.data = replace(recipe.data, train_min_sizes=list(sizes), train_max_size=max(sizes))
    return recipe


def refusal(recipe: Recipe, output: Path, **data: Any) -> str:
    with pytest.raises(InputError) as refused:
        train(recipe, output, train_dataset=Squares(), progress=False, **data)
    assert not output.exists()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_one_line_names_the_keys_and_each_of_them_mends_it(tmp_path: Path) -> None:
    said = refusal(recipe_of(), tmp_path / "run")
    assert said.startswith("model.head_norm: ")
    (channels,) = map(int, re.findall(r"model\.fpn_channels=(\d+)", said))
    (size,) = map(int, re.findall(r"data\.train_min_sizes above (\d+)", said))
    assert "solver.batch_size" in said
    refusal(recipe_of(sizes=(size,)), tmp_path / "run")
    for number, mended in enumerate([recipe_of(channels=channels), recipe_of(sizes=(size + 1,)), recipe_of(images=2)]):
        train(mended, tmp_path / str(number), train_dataset=Squares(), progress=False)


def test_the_smallest_of_several_sizes_counts(tmp_path: Path) -> None:
    assert "64×64" in refusal(recipe_of(sizes=(160, 64)), tmp_path / "run")


def test_images_of_an_evaluation_come_one_by_one(tmp_path: Path) -> None:
    recipe = recipe_of(images=2)
    said = refusal(recipe, tmp_path / "run", val_dataset=Squares())
    assert said.startswith("model.head_norm: ")
    assert "model.min_size" in said
    assert "solver" not in said
    assert "bn" not in said.partition("give")[2]


@pytest.mark.parametrize(
    ("key", "norms"),
    [("model.fpn_norm", {"fpn_norm": "gn"}), ("model.norm", {"norm": "bn", "backbone": "test_resnet"})],
)
def test_norms_of_other_parts_are_named_by_their_keys(key: str, norms: dict[str, str], tmp_path: Path) -> None:
    recipe = recipe_of(sizes=(32,), **{"detector": "faster_rcnn", "backbone": "pvt_v2_b0", **norms})
    assert refusal(recipe, tmp_path / "run").startswith(f"{key}: ")


def test_an_image_that_is_too_small_for_a_detector_is_one_line() -> None:
    model = replace(tiny_model("test_resnet", detector="fcos", num_classes=2), fpn_channels=32)
    with pytest.raises(InputError, match=r"^image: .*model\.min_size"):
        predict(build_detector(model, download=False), [torch.rand(3, 64, 64)])
