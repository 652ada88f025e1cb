"""A detector's ``config.json`` that a stranger wrote: read, or refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strange_json import NOT_ON_A_LINE, mutated, mutated_text

from vovnet.detection.checkpoints.config_json import DetectorConfig, read_config
from vovnet.detection.checkpoints.folder import load_detector, save_detector
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.models.build import build_detector
from vovnet.errors import InputError

CATEGORIES = [{"id": 4, "name": "cat"}, {"id": 2, "name": "dog"}]
MODEL = ModelRecipe(
    backbone="vovnet27_slim",
    backbone_args={"drop_path_rate": 0.0},
    fpn_channels=8,
    anchor_sizes=[[32], [64], [128], [256], [512]],
    out_indices=[1, 2, 3, 4],
    box_representation_size=8,
    num_classes=2,
    min_size=64,
    max_size=64,
)
strangers = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    save_detector(folder, build_detector(MODEL), MODEL, CATEGORIES)
    return folder


@pytest.fixture(scope="module")
def config(saved: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((saved / "config.json").read_text())
    return values


def refusal(read: Any, path: Path) -> str | None:
    """The message of a refusal; None where the file was read."""
    try:
        read(path)
    except InputError as error:
        message = str(error)
        assert not NOT_ON_A_LINE.search(message), message
        assert len(message) < 2000
        return message
    return None


@settings(strangers, max_examples=150)
@given(st.data())
def test_a_changed_file_is_read_or_refused_in_one_line(
    config: dict[str, Any], tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "config.json"
    path.write_text(data.draw(mutated_text(config)), encoding="utf-8")
    if refusal(read_config, path) is None:
        found = read_config(path)
        assert isinstance(found, DetectorConfig)
        path.write_text(json.dumps(found.to_json(), allow_nan=False), encoding="utf-8")
        assert read_config(path) == found


@settings(strangers, max_examples=25)
@given(st.data())
def test_a_changed_detector_is_loaded_or_refused_in_one_line(
    saved: Path, config: dict[str, Any], data: st.DataObject
) -> None:
    model = data.draw(mutated(config["model"]))
    path = saved / "config.json"
    try:
        path.write_text(json.dumps({**config, "model": model}))
        refusal(load_detector, saved)
    finally:
        path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    "arguments",
    [
        {"block_per_stage": [1, 1, 1]},
        {"block_per_stage": "many"},
        {"act_layer": 5},
        {"norm_layer": [1]},
        {"stem_chs": []},
        {"output_stride": 0},
        {"drop_path_rate": "much"},
        {"global_pool": {}},
        {"features_only": False},
        {"drop_path_rate": -1, "": None},
    ],
)
def test_arguments_that_no_backbone_takes(saved: Path, config: dict[str, Any], arguments: dict[str, Any]) -> None:
    path = saved / "config.json"
    try:
        path.write_text(json.dumps({**config, "model": {**config["model"], "backbone_args": arguments}}))
        assert "model.backbone" in (refusal(load_detector, saved) or "")
    finally:
        path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda c: c["model"].update(image_std=[0.2, {}, 0.2]), "model.image_std[1]"),
        (lambda c: c["model"].update(aspect_ratios=[[1, 2]]), "model.aspect_ratios[0]"),
        (lambda c: c["model"].update(image_mean=[[1]]), "model.image_mean[0]"),
        (lambda c: c["model"].update(backbone_args=[1]), "model.backbone_args"),
        (
            lambda c: c["model"].update(backbone_args={"checkpoint_path": "x.pth"}),
            "model.backbone_args.checkpoint_path",
        ),
        (lambda c: c["model"].update(box_score_thresh=True), "model.box_score_thresh"),
        (lambda c: c["categories"][0].update(id=2**63), "categories[0].id"),
        (lambda c: c["categories"][0].update(id=True), "categories[0].id"),
        (lambda c: c["categories"][0].update(colour="red"), "categories[0].colour"),
        (lambda c: c["categories"][0].pop("name"), "categories[0].name"),
    ],
)
def test_what_was_once_a_traceback_names_the_key(config: dict[str, Any], tmp_path: Path, change: Any, key: str) -> None:
    values = json.loads(json.dumps(config))
    change(values)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    assert key in (refusal(read_config, path) or "")


def test_a_huge_file_of_unknown_keys_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**config, "model": {**config["model"], **{f"k{n}": 1 for n in range(150_000)}}}))
    assert "values" in (refusal(read_config, path) or "")


def test_the_median_object_travels_with_a_detector(config: dict[str, Any], tmp_path: Path) -> None:
    assert "median_object" not in config["preprocessing"]
    detector = build_detector(MODEL)
    save_detector(tmp_path / "a", detector, MODEL, CATEGORIES, 12.5)
    loaded = load_detector(tmp_path / "a")
    assert loaded.preprocessing == {**config["preprocessing"], "median_object": 12.5}
    save_detector(tmp_path / "b", loaded, MODEL, CATEGORIES)
    assert load_detector(tmp_path / "b").preprocessing == loaded.preprocessing


@pytest.mark.parametrize("side", [True, "512", 0, -1, 10**9, 512.5, [512], None])
def test_a_crop_that_is_no_size_is_refused(config: dict[str, Any], tmp_path: Path, side: object) -> None:
    values = {**config, "preprocessing": {**config["preprocessing"], "trained_crop": side}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"preprocessing\.trained_crop"):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize("median", [True, "5", -1, 1e9, [5], None])
def test_a_median_object_that_is_no_size_is_refused(config: dict[str, Any], tmp_path: Path, median: object) -> None:
    values = {**config, "preprocessing": {**config["preprocessing"], "median_object": median}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"preprocessing\.median_object"):
        read_config(tmp_path / "config.json")
