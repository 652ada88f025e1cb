"""The graph of fixed shapes finds what the torchvision detector finds."""

from __future__ import annotations

from typing import Any

import pytest
import small_networks
import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from vovnet.detection.export.graph import ExportableDetector
from vovnet.detection.masks import detect

SHAPES = [(80, 100), (160, 70), (33, 47)]
OTHERS = ("retinanet", "fcos", "keypoint_rcnn")
FASTER, LEGACY = "faster_rcnn_vovnet39_fpn", "mask_rcnn_V_39_FPN_1x"


def image_of(shape: tuple[int, int], seed: int = 0) -> Tensor:
    numbers = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (1, 3, 9, 9), generator=numbers).float()
    return torch.nn.functional.interpolate(coarse, shape, mode="bilinear")[0].to(torch.uint8)


@torch.inference_mode()
def torchvisions(detector: Any, image: Tensor) -> dict[str, Tensor]:
    """What the detector finds, the best first."""
    found = detect(detector, [image / 255])[0]
    order = found["scores"].argsort(descending=True, stable=True)
    return {key: value[order] for key, value in found.items()}


@torch.inference_mode()
def compare(detector: Any, graph: ExportableDetector, image: Tensor, outputs: dict[str, Tensor]) -> None:
    """Check that nearly all detections are the same.

    A few may differ: random networks enlarge the last bits, in which processors differ, until NMS keeps another box.
    """
    expected = torchvisions(detector, image)
    count = int(outputs["count"])
    assert abs(count - len(expected["scores"])) <= 1
    assert len(expected["scores"]) > 3
    assert not any(outputs[name][count:].any() for name in graph.output_names if name != "count")
    assert (outputs["scores"][: count - 1] >= outputs["scores"][1:count]).all()
    same = (outputs["labels"][:count, None] == expected["labels"]) & (
        (outputs["scores"][:count, None] - expected["scores"]).abs() < 1e-4
    )
    same &= (outputs["boxes"][:count, None] - expected["boxes"]).abs().amax(2) < 0.05
    found, wanted = same.nonzero().unbind(1)
    assert len(wanted.unique()) >= 0.8 * len(expected["scores"])
    if graph.keypoints:
        differences = (outputs["keypoints"][found][..., :2] - expected["keypoints"][wanted][..., :2]).abs()
        assert differences.median() < 0.05
    if graph.masks == "box":
        differences = (outputs["masks"][found] - expected["box_masks"][wanted, 0]).abs()
        assert differences.mean() < 1e-3


@pytest.fixture(scope="module", params=[FASTER, "mask_rcnn_vovnet39_fpn", LEGACY, "retinanet", "fcos", "keypoint_rcnn"])
def detector(request: pytest.FixtureRequest) -> Any:
    if request.param in OTHERS:
        return small_networks.detector(FASTER, detector=request.param, fpn_channels="64", num_keypoints="3")
    made: Any = small_networks.detector(request.param)
    if request.param == LEGACY:  # its pixels are 0 to 255, and scores of exactly 1 would have no order
        with torch.no_grad():
            made.roi_heads.box_predictor.cls_score.weight *= 0.01
    return made


@pytest.mark.parametrize("shape", SHAPES)
def test_images_of_all_sizes(detector: Any, shape: tuple[int, int]) -> None:
    masks = isinstance(detector, MaskRCNN)
    graph = ExportableDetector(detector, masks="box" if masks else None).eval()
    image = image_of(shape)
    with torch.inference_mode():
        compare(detector, graph, image, dict(zip(graph.output_names, graph(image), strict=True)))


def test_a_batch_of_one_size(detector: Any) -> None:
    graph = ExportableDetector(detector, masks=None, batched=True, size=SHAPES[0]).eval()
    images = torch.stack([image_of(SHAPES[0], seed) for seed in range(2)])
    with torch.inference_mode():
        outputs = graph(images)
    for number, image in enumerate(images):
        found = dict(zip(graph.output_names, (output[number] for output in outputs), strict=True))
        compare(detector, graph, image, found)


@pytest.mark.slow
def test_torch_export_takes_it_strictly_for_all_sizes() -> None:
    detector = small_networks.detector(FASTER)
    graph = ExportableDetector(detector, masks=None).eval()
    sizes: Any = ({1: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC},)
    program: Any = torch.export.export(graph, (image_of((61, 93)),), dynamic_shapes=sizes, strict=True)
    assert not program.graph_signature.user_inputs_to_mutate
    exported = program.module()
    for shape in SHAPES:
        image = image_of(shape)
        with torch.inference_mode():
            for found, expected in zip(exported(image), graph(image), strict=True):
                torch.testing.assert_close(found, expected)
    assert [node for node in program.graph.nodes if "padded_nms" in str(node.target)]
    assert not [value for value in program.range_constraints if str(value).startswith("u")]  # sizes that depend on data
