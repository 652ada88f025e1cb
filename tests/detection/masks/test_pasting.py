"""Masks that are pasted and encoded one at a time equal torchvision's, and need no memory for all of them."""

from __future__ import annotations

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_networks import detector
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.models.detection.roi_heads import paste_masks_in_image

import vovnet
from vovnet.detection import evaluate, predict
from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.inference_mode import image_detections
from vovnet.detection.masks import detect, encode_box_masks, encode_masks

RECIPES = {"torchvision": "mask_rcnn_vovnet39_fpn", "legacy": "mask_rcnn_V_39_FPN_1x"}


@st.composite
def pasted(draw: st.DrawFn) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Masks, boxes that may be thin, tiny or reach out of the image, and the image's size."""
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    seed = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    count = draw(st.integers(0, 4))
    rows = []
    for _ in range(count):
        # torchvision fails for boxes that do not touch the image; a detector clips its boxes to the image.
        x0, y0 = draw(st.floats(-20, width - 1, width=32)), draw(st.floats(-20, height - 1, width=32))
        x1 = draw(st.floats(max(x0, 0), width + 20, width=32))
        y1 = draw(st.floats(max(y0, 0), height + 20, width=32))
        rows.append([x0, y0, x1, y1])
    side = draw(st.sampled_from([1, 2, 14, 28]))
    masks = torch.rand((count, 1, side, side), generator=seed)
    return masks, torch.tensor(rows).reshape(-1, 4), (height, width)


@given(pasted())
def test_equal_to_torchvision(case: tuple[Tensor, Tensor, tuple[int, int]]) -> None:
    masks, boxes, size = case
    assert encode_box_masks(masks, boxes, size) == encode_masks(paste_masks_in_image(masks, boxes, size))


def test_a_box_outside_of_the_image() -> None:
    masks, nothing = torch.ones(2, 1, 28, 28), encode_masks(torch.zeros(2, 5, 6))
    assert encode_box_masks(masks, torch.tensor([[30.0, 0, 40, 5], [0, -50, 5, -40]]), (5, 6)) == nothing


@pytest.fixture(scope="module", params=[(kind, fused) for kind in RECIPES for fused in (False, True)], ids=str)
def model(request: pytest.FixtureRequest) -> Any:
    kind, fused = request.param
    plain = detector(RECIPES[kind])
    return vovnet.fuse(plain) if fused else plain


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    seed = torch.Generator().manual_seed(3)
    return [torch.rand((3, *size), generator=seed) for size in sizes]


def test_detections_are_those_of_the_detector(model: Any) -> None:
    batch = images((70, 90), (40, 150))
    with torch.no_grad():
        expected, got = model(copy.deepcopy(batch)), detect(model, batch)
    for image, one, other in zip(batch, expected, got, strict=True):
        assert "masks" not in other
        assert other["box_masks"].shape[1] == 1
        assert len(one["masks"]) == len(other["box_masks"]) > 0
        assert one["masks"].shape[1:] == (1, *image.shape[1:])  # whoever calls the detector gets torchvision's masks
        ids = list(range(1, 100))
        size = (int(image.shape[1]), int(image.shape[2]))
        whole, parts = image_detections(one, 1, size, ids), image_detections(other, 1, size, ids)
        assert whole.masks == parts.masks
        assert (whole.boxes == parts.boxes).all()
        assert (whole.scores == parts.scores).all()


def test_no_hook_is_left(model: Any) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    failing = model.roi_heads.mask_head.register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError), torch.no_grad():
        detect(model, images((64, 64)))
    failing.remove()
    assert not model.roi_heads._forward_hooks


def test_another_thread_gets_whole_masks(model: Any) -> None:
    """A hook that acts while the first thread detects does not act in the second."""
    batch = images((64, 64))
    seen: list[Any] = []

    def ask_elsewhere(*_: object) -> None:
        with ThreadPoolExecutor(1) as pool:
            seen.extend(pool.submit(_call, model, batch).result())

    once = model.backbone.register_forward_hook(lambda *_: (once.remove(), ask_elsewhere())[0])
    with torch.no_grad():
        found = detect(model, batch)
    assert "masks" in seen[0]
    assert "box_masks" not in seen[0]
    assert "box_masks" in found[0]


def _call(model: Any, batch: list[Tensor]) -> list[dict[str, Tensor]]:
    with torch.no_grad():
        return model(batch)  # type: ignore[no-any-return]


class OwnPasting(torch.nn.Module):
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, batch: list[Tensor]) -> list[dict[str, Tensor]]:
        return [{**found, "masks": 1 - found["masks"]} for found in self.inner(batch)]


def test_a_detector_that_pastes_otherwise_keeps_its_masks() -> None:
    plain = detector()
    batch = images((64, 64))
    with torch.no_grad():
        expected = OwnPasting(plain)(batch)[0]["masks"]
        assert torch.equal(detect(OwnPasting(plain), batch)[0]["masks"], expected)
        own = copy.deepcopy(plain)
        own.transform.__class__ = type("Own", (type(own.transform),), {"postprocess": lambda self, result, *_: result})
        assert detect(own, batch)[0]["masks"].shape[-1] < 64
    boxes_only = detector("faster_rcnn_vovnet39_fpn")
    with torch.no_grad():
        assert detect(boxes_only, batch)[0].keys() == {"boxes", "labels", "scores"}


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that an operator has returned."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.elements = max(self.elements, leaf.untyped_storage().nbytes() // leaf.element_size())
        return out


@pytest.fixture
def large_data(tmp_path: Path) -> CocoDataset:
    """One image of a million pixels with 40 objects whose masks cover much of it."""
    width, height, count = 1200, 900, 40
    Image.new("RGB", (width, height), (60, 120, 90)).save(tmp_path / "a.png")
    box = [10, 10, width - 20, height - 20]
    outline = [[10, 10, width - 10, 10, width - 10, height - 10, 10, height - 10]]
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "segmentation": outline, "area": 9e5, "iscrowd": 0}
        for i in range(1, count + 1)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": width, "height": height}],
        "categories": [{"id": i, "name": f"kind {i}"} for i in range(1, 91)],
        "annotations": annotations,
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    return CocoDataset([DataSource(str(tmp_path), str(tmp_path / "a.json"))], masks=True, training=False)


def test_no_tensor_has_all_masks(large_data: CocoDataset) -> None:
    """Neither those of the detections nor those of the truth."""
    model = detector()
    image = large_data[0][0].as_subclass(Tensor)
    pixels = image[0].numel()
    with Largest() as largest:
        found = predict(model, [image])
        evaluate(model, large_data)
    assert len(found[0]) > 20
    assert largest.elements < len(found[0]) * pixels / 3
