"""A builder with weights gives what the converted file gives."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import get_model, get_model_weights

from vovnet.hub import convert_checkpoint, load_detector


@pytest.mark.parametrize(
    ("config", "builder"), [("frcn_v39", "fasterrcnn_vovnet39_fpn"), ("mrcn_r101", "maskrcnn_legacy_resnet101_fpn")]
)
def test_every_value_is_the_published_one(
    config: str, builder: str, golden: Path, rule: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, and as the folder that ``convert`` makes of the same file."""
    rows = json.loads((golden / f"keys_{config}.json").read_text())["state_dict"]
    state = {f"module.{key}": torch.from_numpy(rule(key, shape)) for key, shape, *_ in rows}
    member = get_model_weights(builder).DEFAULT
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / member.url.partition("?")[0].rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save({"model": state, "iteration": 180000}, file)

    found: Any = get_model(builder, weights=member)
    sums = sorted(zlib.crc32(value.numpy().tobytes()) for value in found.state_dict().values())
    assert sums == sorted(row[-1] for row in rows if "cell_anchors" not in row[0])

    convert_checkpoint(file, tmp_path / "converted", expect=member.meta["recipe"])
    loaded: Any = load_detector(tmp_path / "converted")
    expected = loaded.state_dict()
    assert [*expected] == [*found.state_dict()]
    assert all(torch.equal(value, expected[key]) for key, value in found.state_dict().items())
    for attribute in ("recipe", "categories", "preprocessing"):
        assert getattr(found, attribute) == getattr(loaded, attribute)
    assert type(found) is type(loaded)
