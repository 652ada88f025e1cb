"""Whole detectors against what the reference computed with the same checkpoints: ``make reproduce`` prints a table."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor, nn

from vovnet.detection.config.data import DataRecipe
from vovnet.detection.config.loading import load_recipe
from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.transforms import TransformedDataset
from vovnet.detection.inference_mode import image_detections
from vovnet.detection.legacy.data import LegacyCocoDataset, legacy_train_transforms
from vovnet.detection.legacy.keys import published_detector_keys
from vovnet.detection.training.preparation import prepare
from vovnet.detection.training.rules import rules_of
from vovnet.detection.training.run import Run
from vovnet.hub import load_detector
from vovnet.images.reading import read_image
from vovnet.images.tensors import to_tensor

pytestmark = pytest.mark.reproduce

FLOATS = 1e-4
"""Relative bound where this machine computes as the reference's did; equal numbers show as "equal"."""

DECODED_PX = 1e-3
"""Pixels; bound of the proposals, which differed by 6e-5 on an Intel Sapphire Rapids: its exponential is another."""

WILD = math.inf
"""Bound of the third iteration's losses on a machine whose backward pass differs: they are shown, but not held."""

TESTED = [("frcn_v39", "synth"), ("frcn_v39", "coffee"), ("mrcn_v57", "synth"), ("frcn_r50", "synth")]


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """The reference's numbers come from two threads; the order of sums, and so the last bit, depends on it."""
    former = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(former)


@contextmanager
def recorded(detector: Any) -> Iterator[dict[str, Any]]:
    """What passes through a detector's parts, under the names of the golden file."""
    seen: dict[str, Any] = {}
    handles = []

    def keep(module: nn.Module, name: str, pick: Callable[[Any], Any] = lambda value: value) -> None:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            seen[name] = pick(output)

        handles.append(module.register_forward_hook(hook))

    body = detector.backbone.body
    keep(body.stem_2 if hasattr(body, "stem_2") else body.maxpool, "stem", lambda value: value.clone())
    keep(body, "C")
    keep(detector.backbone, "P", lambda levels: list(levels.values()))
    keep(detector.rpn.head, "rpn")
    keep(detector.rpn, "proposals", lambda value: value[0])
    keep(detector.roi_heads.box_roi_pool, "box_pool")
    keep(detector.roi_heads.box_head, "box_feat")
    keep(detector.roi_heads.box_predictor, "predicted")
    keep(detector.roi_heads, "found", lambda value: [dict(one) for one in value[0]])
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def sample(values: Tensor) -> np.ndarray[Any, Any]:
    """The golden files' 1,024 places of a large tensor."""
    flat = values.detach().flatten().numpy()
    return flat[np.linspace(0, flat.size - 1, min(1024, flat.size)).astype(int)]


@pytest.mark.parametrize(("config", "image"), TESTED)
def test_detections(config: str, image: str, golden: Path, converted: Callable[[str], Path], table: Any) -> None:
    expected = np.load(golden / f"test_{config}_{image}.npz")
    detector: Any = load_detector(converted(config))
    pixels = to_tensor(read_image(golden / "images" / f"{image}.png"))
    with torch.no_grad(), recorded(detector) as seen:
        (output,) = detector([pixels.float() / 255])
    name = f"{config} {image}:"
    maps = {f"C{level}": value for level, value in enumerate(seen["C"], start=2)}
    maps |= {f"P{level}": value for level, value in enumerate(seen["P"], start=2)}
    for part, values in zip(("rpn_logits", "rpn_deltas"), seen["rpn"], strict=True):
        maps |= {f"{part}{level}": value for level, value in enumerate(values, start=2)}
    for key, value in {"stem": seen["stem"], **maps}.items():
        table.same(f"{name} {key} shape", expected[f"{key}.shape"].tolist(), list(value.shape))
        table.values(f"{name} {key}", expected[f"{key}.sample"], sample(value), relative=FLOATS, otherwise=1e-3)
    proposals = torch.from_numpy(expected["proposals"])
    nearest = (proposals[:, None] - seen["proposals"][0]).abs().amax(dim=-1).amin(dim=1)
    table.same(f"{name} number of proposals", len(proposals), len(seen["proposals"][0]))
    if not table.exact:  # Another order of scores that are nearly equal exchanges the last of the proposals.
        nearest = nearest.sort().values[: -len(nearest) // 100]
    table.values(
        f"{name} proposals, px to the nearest", torch.zeros_like(nearest), nearest, absolute=DECODED_PX, otherwise=1.0
    )
    of_proposals = {"box_pool": seen["box_pool"], "box_feat": seen["box_feat"], "cls_logits": seen["predicted"][0]}
    for key, value in of_proposals.items():
        table.same(f"{name} {key} shape", expected[f"{key}.shape"].tolist(), list(value.shape))
        if table.exact:  # Another order of sums swaps proposals that are nearly equal.
            table.values(f"{name} {key}", expected[f"{key}.sample"], sample(value), relative=FLOATS, absolute=1e-4)
    (found,) = seen["found"]
    table.same(f"{name} number of detections", len(expected["det_scores"]), len(found["scores"]))
    table.same(f"{name} labels", expected["det_labels"].tolist(), found["labels"].tolist())
    same = True
    for what, key, got, otherwise in (
        ("scores", "det_scores", found["scores"], 1e-3),
        ("boxes, network", "det_boxes_net", found["boxes"], 0.2),
        ("boxes, image", "det_boxes", output["boxes"], 0.2),
        ("mask probabilities", "det_masks", found.get("masks"), 0.02),
    ):
        if got is not None:
            same &= table.values(f"{name} {what}", expected[key], got, relative=FLOATS, otherwise=otherwise)
    results = json.loads((golden / f"test_{config}_{image}_coco.json").read_text())
    compare_results(table, name, results, detector, output, same)


def compare_results(table: Any, name: str, expected: Any, detector: Any, output: Any, same: bool) -> None:
    """Compare COCO results as the evaluation writes them; the reference lists them in the detections' order.

    ``same`` says that boxes and masks are equal to the last bit; then every pixel of the pasted masks must be equal.
    """
    height, width = expected["segm"][0]["segmentation"]["size"] if "segm" in expected else (0, 0)
    ids = [category["id"] for category in detector.categories]
    found = image_detections(output, 0, (height, width), ids, detector.boxes_to_xywh)
    boxes = list(found.results("bbox"))
    table.same(
        f"{name} results' categories",
        [one["category_id"] for one in expected["bbox"]],
        [one["category_id"] for one in boxes],
    )
    for key, otherwise in (("bbox", 0.2), ("score", 1e-3)):
        ours, theirs = ([one[key] for one in part] for part in (boxes, expected["bbox"]))
        table.values(f"{name} results' {key}", theirs, ours, relative=FLOATS, otherwise=otherwise)
    if "segm" in expected:
        pairs = zip(expected["segm"], found.results("segm"), strict=True)
        changed = [different_pixels(one["segmentation"], other["segmentation"]) for one, other in pairs]
        few = 0.0 if same else (0.001 if table.exact else 0.01) * height * width
        table.values(f"{name} pasted masks' pixels that differ, in the worst", 0, max(changed), absolute=few)


def different_pixels(first: dict[str, Any], second: dict[str, Any]) -> int:
    return int((coco_mask.decode(first) != coco_mask.decode(second)).sum())


@pytest.fixture(scope="module")
def image_root(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """minicoco's images; scikit-image has the astronaut, which is not among the golden files."""
    data = pytest.importorskip("skimage.data", reason="needs scikit-image's images (vovnet[dev])")
    folder = tmp_path_factory.mktemp("minicoco")
    for name in ("coffee.png", "synth.png"):
        shutil.copy(golden / "images" / name, folder / name)
    Image.fromarray(data.astronaut()).save(folder / "astronaut.png")
    return folder


def training_batch(golden: Path, image_root: Path, masks: bool) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Image 11 as it is and image 12 flipped, short side 400, as the training loader would give them."""
    source = DataSource(str(image_root), str(golden / "minicoco.json"))
    dataset = LegacyCocoDataset([source], masks=masks, training=True)
    images, targets = [], []
    for index, flip in ((0, 0.0), (1, 1.0)):
        transforms = legacy_train_transforms(DataRecipe(train_min_sizes=[400], train_max_size=667, flip=flip))
        image, target = TransformedDataset(dataset, transforms)[index]
        images.append(image.as_subclass(Tensor))
        targets.append(target)
    return images, targets


RECIPES = {"frcn_v39": "faster_rcnn_V_39_FPN_2x", "mrcn_v57": "mask_rcnn_V_57_FPN_2x"}


@pytest.mark.parametrize("config", RECIPES)
@pytest.mark.parametrize(
    "sampling",
    [pytest.param("all", marks=pytest.mark.slow), pytest.param("arange", marks=pytest.mark.slow), "iterations"],
)
def test_training(
    config: str,
    sampling: str,
    golden: Path,
    image_root: Path,
    converted: Callable[[str], Path],
    tmp_path: Path,
    table: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = json.loads((golden / f"train_{config}.json").read_text())
    arrays = np.load(golden / f"train_{config}.npz")
    monkeypatch.setattr(torch, "randperm", lambda count, **options: torch.arange(count, device=options.get("device")))
    settings = [f"init={converted(config)}", "solver.base_lr=0.002", "solver.batch_size=2", "solver.accumulate=1"]
    settings += ["solver.reference_batch_size=2", "data.workers=0"]
    settings += ["solver.memory=plain"]  # norms folded into convolutions round otherwise
    if sampling == "all":
        settings += ["model.rpn_batch_size_per_image=10000000", "model.box_batch_size_per_image=10000000"]
    recipe = load_recipe(RECIPES[config], settings)
    categories = load_detector(converted(config)).categories
    run = prepare(recipe, rules_of(recipe.model), tmp_path, torch.device("cpu"), categories, resume=False)
    batch = training_batch(golden, image_root, masks=config.startswith("mrcn"))
    name = f"{config} training, {sampling}:"
    for number, target in enumerate(batch[1]):
        table.values(f"{name} boxes of image {number}", arrays[f"target{number}.boxes"], target["boxes"])
        table.same(f"{name} labels", arrays[f"target{number}.labels"].tolist(), target["labels"].tolist())
    if sampling == "iterations":
        check_iterations(table, name, expected, run, batch)
    else:
        check_gradients(table, name, expected[sampling], run, batch)


def check_gradients(table: Any, name: str, expected: Any, run: Run, batch: Any) -> None:
    detector: Any = run.detector.train()
    losses = detector([image.float() / 255 for image in batch[0]], batch[1])
    compare_losses(table, name, expected["losses"], {key: value.item() for key, value in losses.items()})
    torch.stack(list(losses.values())).sum().backward()
    compare_gradients(table, name, expected["grad_norm"], run)


def compare_gradients(table: Any, name: str, expected: dict[str, float], run: Run) -> bool:
    """Compare the norm of every parameter's gradient, and return True if all are equal to the last bit."""
    names = published_detector_keys(run.detector, run.recipe.model.backbone)
    parameters = dict(run.detector.named_parameters())
    found = [float(parameters[names[key]].grad.double().norm()) for key in expected]
    table.same(f"{name} trained parameters", len(parameters), len(found))
    wanted = list(expected.values())
    equal: bool = table.values(f"{name} gradient norms", wanted, found, relative=1e-6, otherwise=0.01 * max(wanted))
    return equal


def check_iterations(table: Any, name: str, expected: Any, run: Run, batch: Any) -> None:
    """Hold three iterations to the reference, each as strictly as the one before allows.

    The weights are random, so that the last bit of a gradient in the first iteration becomes hundredths of a loss in
    the third. The norms of the first gradients and the second losses tell whether this machine computes the backward
    pass as the reference's machine did; the third iteration is compared closely only if they are equal.
    """
    names = published_detector_keys(run.detector, run.recipe.model.backbone)
    parameters = dict(run.detector.named_parameters())
    start = {key: value.detach().clone() for key, value in parameters.items()}
    step = rules_of(run.recipe.model).step
    same = True
    for iteration in expected["iterations"]:
        losses = step(run, [batch])
        number = run.iteration
        table.same(f"{name} learning rate {number}", iteration["lr_first_group"], run.last_lr)
        losses.pop("loss")
        bounds = {
            1: {"relative": 1e-5, "otherwise": 1e-3},
            2: {"relative": 1e-5, "otherwise": 0.1},
            3: {"relative": 1e-4, "absolute": 0.0 if same else WILD},
        }[number]
        equal = compare_losses(table, f"{name} {number},", iteration["losses"], losses, **bounds)
        if number == 1:
            same = compare_gradients(table, f"{name} {number},", expected["arange"]["grad_norm"], run)
        elif number == 2:
            same = same and equal
    for what, values in (
        ("norms of parameters", parameters),
        ("norms of their changes", {key: value - start[key] for key, value in parameters.items()}),
    ):
        key = "param_l2_after_3" if what == "norms of parameters" else "param_delta_l2_after_3"
        found = [float(values[names[theirs]].detach().double().norm()) for theirs in expected[key]]
        absolute = 0.0 if same else 0.01
        table.values(f"{name} {what} after 3", list(expected[key].values()), found, relative=1e-4, absolute=absolute)


def compare_losses(
    table: Any, name: str, expected: Any, found: Any, *, relative: float = 1e-5, **bounds: float
) -> bool:
    """Compare the losses by name, and return True if all are equal to the last bit."""
    table.same(f"{name} losses", sorted(expected), sorted(found))
    equal = [
        table.values(f"{name} {key}", value, found[key], relative=relative, **bounds) for key, value in expected.items()
    ]
    return all(equal)
