"""Detectors whose frozen norms have another epsilon than the norms that their weights are of."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vovnet.detection.checkpoints.folder import save_detector
from vovnet.detection.checkpoints.initialize import load_matching
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.models.build import build_detector
from vovnet.errors import InputError

MODEL = ModelRecipe(backbone="vovnet27_slim", fpn_channels=8, box_representation_size=8, num_classes=2)
CATEGORIES = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
FROZEN: dict[str, Any] = {"norm": "frozen_bn", "pretrained": True}


def built(seed: int = 1, **settings: Any) -> Any:
    torch.manual_seed(seed)
    return build_detector(dataclasses.replace(MODEL, **settings), download=False)


def saved_with_tiny_variances(folder: Path, **settings: Any) -> Any:
    """A detector in a folder, some of whose channels have next to no variance."""
    theirs = built(seed=0, **settings).eval()
    for module in theirs.backbone.body.modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            module.running_var.uniform_(0.5, 1.5)[:2] = torch.tensor([1e-14, 1e-9])
            module.weight.data[:2] = 0.003
    save_detector(folder, theirs, dataclasses.replace(MODEL, **settings), CATEGORIES)
    return theirs


def equal(detector: Any, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[key]) for key, value in detector.state_dict().items())


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({**FROZEN, "norm_eps": 0.1}, FROZEN),
        ({**FROZEN, "norm_eps": 1e-5}, {**FROZEN, "norm_eps": 0.0}),
        (FROZEN, {**FROZEN, "norm_eps": 0.0}),
        ({"norm": "bn"}, {**FROZEN, "norm_eps": 1e-7}),
        ({"norm": "bn", "conventions": "legacy"}, {**FROZEN, "conventions": "legacy"}),
    ],
    ids=["larger", "none of ours", "the network's own", "norms that trained", "legacy"],
)
def test_frozen_norms_with_a_smaller_epsilon_compute_the_same(theirs: Any, ours: Any, tmp_path: Path) -> None:
    source, other = saved_with_tiny_variances(tmp_path, **theirs), built(**ours).eval()
    load_matching(other, tmp_path)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = source.backbone(images), other.backbone(images)
    for level, value in expected.items():
        torch.testing.assert_close(found[level], value, rtol=1e-3, atol=float(1e-4 * value.abs().max()))


@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_frozen_norms_with_a_larger_epsilon_are_refused(eps: float, tmp_path: Path) -> None:
    """The difference cannot be taken from a variance that is smaller: nothing or a negative number would be left."""
    source, other = saved_with_tiny_variances(tmp_path, **FROZEN, norm_eps=eps), built(**FROZEN)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(InputError, match=rf"model\.norm_eps={eps}"):
        load_matching(other, tmp_path)
    assert equal(other, before)
    same = built(**FROZEN, norm_eps=eps)
    load_matching(same, tmp_path)
    assert equal(same, source.state_dict())


@pytest.mark.parametrize("norm", ["frozen_bn", "bn"])
def test_legacy_detectors_start_each_other_to_the_last_bit(norm: str, tmp_path: Path) -> None:
    settings = {**FROZEN, "norm": norm, "conventions": "legacy"}
    source, other = saved_with_tiny_variances(tmp_path, **settings), built(**settings)
    load_matching(other, tmp_path, "legacy")
    assert equal(other, source.state_dict())
