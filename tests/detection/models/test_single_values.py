"""What a detector's norms would compute from a single value is what torch refuses to compute."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import tiny_model

from vovnet.detection import build_detector
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.models.single_values import single_value


def refused(model: ModelRecipe, images: int, size: tuple[int, int], training: bool) -> bool:
    """Run the detector's backbone and heads, padded as the detector pads, and tell whether torch refuses."""
    torch.manual_seed(0)
    detector: Any = build_detector(model, download=False).train(training)
    batch, _ = detector.transform([torch.rand(3, *size) for _ in range(images)])
    try:
        with torch.no_grad():
            levels = detector.backbone(batch.tensors)
            (detector.head if hasattr(detector, "head") else detector.rpn.head)([*levels.values()])
    except ValueError as error:
        return "more than 1 value" in str(error)
    return False


@settings(max_examples=12)
@given(
    kind=st.sampled_from(["fcos", "retinanet", "faster_rcnn"]),
    channels=st.sampled_from([8, 24, 32, 48, 64]),
    norms=st.tuples(st.sampled_from(["bn", "gn"]), *[st.sampled_from([None, "bn", "gn"])] * 2),
    images=st.integers(1, 2),
    size=st.tuples(*[st.sampled_from([20, 32, 33, 64, 65, 128, 129])] * 2),
    training=st.booleans(),
)
def test_it_is_found_where_torch_refuses_and_nowhere_else(
    kind: Any, channels: int, norms: Any, images: int, size: tuple[int, int], training: bool
) -> None:
    norm, fpn_norm, head_norm = norms
    changes = {"detector": kind, "norm": norm, "fpn_norm": fpn_norm, "head_norm": head_norm}
    model = replace(tiny_model("test_resnet", num_classes=2), fpn_channels=channels, **changes)
    model.min_size, model.max_size = min(size), max(size)  # in evaluation the detector then keeps the size
    found = single_value(model, images, size, training=training)
    assert (found is not None) == refused(model, images, size, training)


def test_batch_norms_behind_a_pooling_of_the_whole_map_are_found_at_any_size() -> None:
    model = tiny_model("skresnet18", num_classes=2)
    found = single_value(model, 1, (256, 256), training=True)
    assert found is not None
    assert not found.grouped
    assert single_value(model, 2, (256, 256), training=True) is None
    assert single_value(model, 1, (256, 256), training=False) is None


@pytest.mark.parametrize("processes", [1, 2])
def test_synchronised_norms_see_the_images_of_all_processes(processes: int) -> None:
    model = tiny_model("skresnet18", num_classes=2, norm="sync_bn")
    assert (single_value(model, 1, (64, 64), training=True, processes=processes) is None) == (processes > 1)
