"""What an iteration says of data and settings that it cannot compute with."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import Squares, short_recipe

from vovnet.detection.training.engine import train
from vovnet.errors import InputError


@pytest.mark.parametrize("backbone", ["test_resnet", "vovnet27_slim"])
def test_a_batch_norm_with_one_value_names_what_helps(backbone: str, tmp_path: Path) -> None:
    recipe = short_recipe(batch_size=1)
    recipe.model.backbone = backbone
    recipe.data.train_min_sizes, recipe.data.train_max_size = [32], 32
    with pytest.raises(InputError) as caught:
        train(recipe, tmp_path / "run", train_dataset=Squares(), progress=False)
    for word in ("model.norm=bn", "iteration 1", "solver.batch_size", "data.train_min_sizes", "32×32"):
        assert word in str(caught.value)
