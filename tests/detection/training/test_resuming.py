"""What ``--resume`` refuses: another run, a damaged or foreign checkpoint, and one that not every process can read."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Squares, short_recipe

from vovnet.detection import distributed
from vovnet.detection.training import resuming
from vovnet.detection.training.engine import train
from vovnet.errors import InputError


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(short_recipe(), folder, train_dataset=Squares(), val_dataset=Squares(), progress=False)
    return folder


def test_resuming_with_another_recipe_names_the_difference(finished: Path) -> None:
    data: dict[str, Any] = {"train_dataset": Squares(), "progress": False, "resume": True}
    with pytest.raises(InputError, match=r"solver\.momentum \(was 0\.9, now 0\.5\)"):
        train(short_recipe(momentum=0.5), finished, **data)
    other = short_recipe()
    with pytest.raises(InputError, match=r"model\.backbone"):
        train(replace(other, model=replace(other.model, backbone="resnet10t")), finished, **data)


def test_resuming_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--auto-resume"):
        train(short_recipe(), tmp_path, train_dataset=Squares(), progress=False, resume=True)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "code", "foreign"])
def test_a_damaged_checkpoint_is_refused_without_running_anything(finished: Path, tmp_path: Path, damage: str) -> None:
    run, marker = tmp_path / "run", tmp_path / "executed"
    run.mkdir()
    good = (finished / "last.pt").read_bytes()
    if damage == "truncated":
        (run / "last.pt").write_bytes(good[: len(good) // 2])
    elif damage == "flipped":
        (run / "last.pt").write_bytes(b"\x00" * 200 + good[200:])
    elif damage == "code":
        torch.save(_Exploit(str(marker)), run / "last.pt")
    else:
        torch.save({"model": {"weight": torch.ones(1)}}, run / "last.pt")
    with pytest.raises(InputError, match=r"last\.pt") as caught:
        train(short_recipe(), run, train_dataset=Squares(), progress=False, resume=True)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


class _Exploit:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def test_the_best_weights_alone_are_no_run_to_resume(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(finished / "best.pt", run / "last.pt")
    with pytest.raises(InputError, match=r"best\.pt has only weights"):
        train(short_recipe(), run, train_dataset=Squares(), progress=False, resume=True)


def test_resuming_on_other_categories_is_refused(finished: Path) -> None:
    class Renamed(Squares):
        categories = ({"id": 7, "name": "circle"},)

    with pytest.raises(InputError, match="trained on categories square, the data has circle"):
        train(short_recipe(), finished, train_dataset=Renamed(), progress=False, resume=True)


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ([(None, 7), ("checkpoint 'last.pt': no such file", None)], "no such file.*rank 1.*same folder"),
        ([(None, 7), (None, 7), (None, 5)], "iteration 5.*rank 2.*same folder"),
        ([("checkpoint 'last.pt': damaged", None), ("checkpoint 'last.pt': damaged", None)], "damaged$"),
    ],
)
def test_every_process_hears_of_a_checkpoint_that_one_cannot_read(
    monkeypatch: pytest.MonkeyPatch, others: list[tuple[str | None, int | None]], named: str
) -> None:
    monkeypatch.setattr(resuming, "_load_whole_state", lambda path, categories: {"iteration": 7})
    monkeypatch.setattr(distributed, "gather", lambda value: others)
    with pytest.raises(InputError, match=named):
        resuming.load_everywhere(Path("last.pt"), [])
