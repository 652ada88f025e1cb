"""``solver.batch_size: auto``: the batch stays, the passes follow the memory, and a resumed run repeats them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Squares, assert_same_runs, short_recipe

from vovnet.detection.config.fields import AUTO
from vovnet.detection.config.loading import load_recipe, recipe_to_yaml
from vovnet.detection.config.schema import Recipe
from vovnet.detection.models.build import build_detector
from vovnet.detection.training import batch_memory
from vovnet.detection.training.batch_memory import available_memory, with_passes_that_fit, with_reference_batch
from vovnet.detection.training.engine import train
from vovnet.errors import InputError

CPU = torch.device("cpu")


def test_auto_is_read_and_written_and_other_values_are_numbers(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", ["solver.batch_size=auto"])
    assert recipe.solver.batch_size is AUTO
    (tmp_path / "recipe.yaml").write_text(recipe_to_yaml(recipe))
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    for value in ("0", "-1", "automatic", "null", "1.5"):
        with pytest.raises(InputError, match=r"solver\.batch_size"):
            load_recipe("quickstart", [f"solver.batch_size={value}"])
    with pytest.raises(InputError, match=r"^solver\.batch_size: .*legacy"):
        with_reference_batch(load_recipe("faster_rcnn_V_39_FPN_1x", ["solver.batch_size=auto"]))


def sized(monkeypatch: pytest.MonkeyPatch, free: int | None) -> tuple[Recipe, torch.nn.Module]:
    monkeypatch.setattr(batch_memory, "available_memory", lambda: free)
    recipe = with_reference_batch(short_recipe(batch_size="auto", reference_batch_size=12))
    recipe.model.num_classes = 1
    torch.manual_seed(0)
    return recipe, build_detector(recipe)


def test_passes_grow_with_the_memory_and_nothing_else_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for mebibytes in (20, 40, 80, 100_000):
        recipe, detector = sized(monkeypatch, mebibytes * 2**20)
        before = {name: value.clone() for name, value in detector.state_dict().items()}
        found, line = with_passes_that_fit(recipe, detector, CPU)
        assert found.solver.batch_size == 12
        assert f"solver.accumulate={found.solver.accumulate} " in line
        assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
        assert all(parameter.grad is None for parameter in detector.parameters())
        counts.append(12 // found.solver.accumulate)
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == 12


@pytest.mark.parametrize("free", [0, None])
def test_too_little_or_unknown_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    recipe, detector = sized(monkeypatch, free)
    with pytest.raises(InputError, match=r"^solver\.batch_size"):
        with_passes_that_fit(recipe, detector, CPU)


def test_a_resumed_run_repeats_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = short_recipe(batch_size="auto", reference_batch_size=4, max_iterations=2)
    data: dict[str, Any] = {"train_dataset": Squares(), "val_dataset": Squares(), "progress": False}
    monkeypatch.setattr(batch_memory, "_on_cpu", lambda *_: (3, "as much as three images need"))
    train(recipe, tmp_path / "run", **data)
    written = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert (written.solver.batch_size, written.solver.accumulate) == (4, 2)  # three do not divide four
    explicit = short_recipe(batch_size=4, accumulate=2, reference_batch_size=4, max_iterations=2)
    train(explicit, tmp_path / "explicit", **data)
    assert_same_runs(tmp_path / "run", tmp_path / "explicit")
    monkeypatch.setattr(batch_memory, "_on_cpu", lambda *_: (4, "more memory than before"))
    longer = short_recipe(batch_size="auto", reference_batch_size=4, max_iterations=3)
    train(longer, tmp_path / "run", resume=True, **data)
    assert load_recipe(tmp_path / "run" / "recipe.yaml").solver.accumulate == 2


def test_linux_tells_its_memory() -> None:
    free = available_memory()
    if Path("/proc/meminfo").exists():
        assert free is not None
        assert 2**20 < free < 2**50
