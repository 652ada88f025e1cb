"""The home folder: ``~`` where a path is used, and a user who has none."""

import os
from pathlib import Path

import pytest

from vovnet.errors import InputError
from vovnet.folders import home as module
from vovnet.folders.home import expand_home, output_folder, user_cache

NOBODY = 54321  # no user of a machine that runs tests


@pytest.fixture
def no_home(monkeypatch, tmp_path):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: NOBODY)
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    module._cache_without_home.cache_clear()
    yield tmp_path
    module._cache_without_home.cache_clear()


def test_only_a_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_home("~") == tmp_path
    assert expand_home("~/a b/~") == tmp_path / "a b" / "~"
    for path in ("~draft.jpg", "./~", "a/~/b", "~$x.png", ""):
        assert expand_home(path) == Path(path)


def test_a_user_without_a_home_is_told_and_has_a_cache_of_his_own(no_home, monkeypatch):
    with pytest.raises(InputError, match="~/x"):
        expand_home("~/x")
    assert expand_home("~draft.jpg") == Path("~draft.jpg")
    found = user_cache()
    assert found.parent == no_home
    # It was made by this test's user, not by the one it is for, as a stranger's folder would be.
    assert found.name != f"vovnet-cache-{NOBODY}"
    monkeypatch.setenv("XDG_CACHE_HOME", "/given")
    assert user_cache() == Path("/given")


def test_a_cache_that_others_may_write_is_not_used(no_home, monkeypatch):
    (no_home / f"vovnet-cache-{NOBODY}").mkdir(mode=0o700)
    monkeypatch.setattr(os, "getuid", lambda: (no_home / f"vovnet-cache-{NOBODY}").stat().st_uid)
    own = no_home / f"vovnet-cache-{os.getuid()}"
    own.mkdir()
    own.chmod(0o777)
    assert module._cache_without_home() != own
    module._cache_without_home.cache_clear()
    own.chmod(0o700)
    assert module._cache_without_home() == own


@pytest.mark.parametrize("path", ["$HOME/run", "runs/$USER", "${HOME}/run", "~/$x"])
def test_an_output_with_a_variable_is_refused(path):
    with pytest.raises(InputError, match="is not replaced"):
        output_folder(path)
    assert output_folder("A$10^$") == Path("A$10^$")


def test_every_entrance_expands_the_home_and_a_recipe_keeps_what_was_written(monkeypatch, tmp_path):
    import torch
    from PIL import Image
    from torch import nn

    from vovnet.detection.checkpoints.folder import find_folder
    from vovnet.detection.config.loading import load_recipe, recipe_to_yaml
    from vovnet.detection.data.coco import CocoDataset
    from vovnet.detection.data.validation import check_data
    from vovnet.detection.prediction.predictor import predict, predict_files
    from vovnet.files import write_json
    from vovnet.folders.claim import claimed_folder
    from vovnet.images.folder import list_images

    class Nothing(nn.Linear):
        def forward(self, images):
            return [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}]

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "in").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "in" / "a.png")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 9, 9]}
    image = {"id": 1, "file_name": "a.png", "width": 40, "height": 30}
    write_json(tmp_path / "a.json", {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "x"}]})
    recipe = load_recipe("bccd", ["data.train=[{images: ~/in, annotations: ~/a.json}]", "init=~/run"])
    assert (recipe.data.train[0].images, recipe.init) == ("~/in", "~/run")
    assert "images: ~/in" in recipe_to_yaml(recipe)
    (tmp_path / "mine.yaml").write_text(recipe_to_yaml(recipe))
    assert load_recipe("~/mine.yaml") == recipe
    assert len(CocoDataset(recipe.data.train, masks=False, training=True)) == 1
    assert check_data("~/in", "~/a.json").ok
    assert list_images("~/in") == [tmp_path / "in" / "a.png"]
    predict_files(Nothing(1, 1), ["~/in/a.png"], "~/out", report=lambda line: None)
    assert (tmp_path / "out" / "a.json").exists()
    assert predict(Nothing(1, 1), ["~/in/a.png"]) == [[]]
    with claimed_folder("~/claimed") as folder:
        assert folder == tmp_path / "claimed"
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "in" / name).write_text("{}")
    assert find_folder("~/in") == tmp_path / "in"


@pytest.mark.parametrize("path", ["~\x00", "~\ud800/a"])
def test_what_no_user_can_be_called_is_refused(path: str) -> None:
    with pytest.raises(InputError, match="is not a path"):
        expand_home(path)
