"""The networks that are measured. Their weights are random and seeded; activations are as large as after training."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from vovnet.detection.checkpoints.config_json import compose_config
from vovnet.detection.checkpoints.folder import attach
from vovnet.detection.config.loading import load_recipe
from vovnet.detection.models.build import build_detector
from vovnet.ops.algorithms import Precision

SEED = 0
CALIBRATION_SIZE = (224, 224)
"""Size of the images whose statistics the batch norms have."""
QUANTIZATION_INPUTS = 4
"""Number of inputs whose ranges an int8 network has."""
CATEGORIES = 80
CANDIDATES = 300
"""Number of boxes above a detector's score threshold before NMS, as many as a busy image has."""
LOGIT_SPREAD = 1.5
"""Standard deviation of the classes' logits, so that some scores are high."""


@dataclass(frozen=True)
class Case:
    """One network, input size and precision to measure.

    Attributes:
        name: its name for ``--case``.
        network: name of a timm model, or of a recipe if ``detector`` is true.
        batch: number of images.
        height: height of the images in pixels.
        width: width of the images in pixels.
        precision: dtype of the numbers that are multiplied, ``fp32`` or ``bf16``.
        detector: measure a whole detector.
    """

    name: str
    network: str
    batch: int
    height: int
    width: int
    precision: Precision
    detector: bool = False

    @property
    def title(self) -> str:
        """The case in words."""
        what = "whole detector" if self.detector else "backbone"
        return f"{self.network}, {what}, {self.precision}, {self.batch} × {self.height}×{self.width}"


CASES = {
    case.name: case
    for case in (
        Case("v39-800", "vovnet39", 1, 800, 1344, "fp32"),
        Case("v39-224", "vovnet39", 1, 224, 224, "fp32"),
        Case("v39-224-b8", "vovnet39", 8, 224, 224, "fp32"),
        Case("v57-800", "vovnet57", 1, 800, 1344, "fp32"),
        Case("v39-800-bf16", "vovnet39", 1, 800, 1344, "bf16"),
        Case("v39-224-bf16", "vovnet39", 1, 224, 224, "bf16"),
        Case("detector", "faster_rcnn_vovnet39_fpn", 1, 800, 1344, "fp32", detector=True),
        Case("detector-480", "faster_rcnn_vovnet39_fpn", 1, 480, 640, "fp32", detector=True),
        Case("detector-bf16", "faster_rcnn_vovnet39_fpn", 1, 800, 1344, "bf16", detector=True),
        Case("detector-480-bf16", "faster_rcnn_vovnet39_fpn", 1, 480, 640, "bf16", detector=True),
    )
}


def build_network(case: Case) -> nn.Module:
    """Return the network of a case in float32 and evaluation mode; every call returns equal weights.

    Convolutions have He's initial weights, and batch norms have the statistics of random images. A backbone takes
    (N, 3, H, W) and returns the maps of strides 4, 8, 16 and 32. A detector takes a list of images (3, H, W). Some of
    its scores for the case's first image pass the threshold, like those of a trained detector.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SEED)
        if not case.detector:
            model: Any = timm.create_model(case.network, features_only=True, out_indices=(1, 2, 3, 4))
            return _calibrated(model)
        settings = [
            f"num_classes={CATEGORIES}",
            "pretrained=false",
            f"min_size={case.height}",
            f"max_size={case.width}",
        ]
        settings.append("norm=bn")  # eager PyTorch is faster with it than with frozen norms
        recipe = load_recipe(case.network, [f"model.{setting}" for setting in settings])
        detector = build_detector(recipe, download=False)
        _calibrated(detector.get_submodule("backbone"))
        _make_choosy(detector.eval(), make_images(case)[0])
        categories = [{"id": number, "name": str(number)} for number in range(1, CATEGORIES + 1)]
        return attach(detector, compose_config(detector, recipe.model, categories))


def make_images(case: Case) -> Tensor:
    """Return random images (N, 3, H, W), float32, contiguous: normalised for a backbone, in 0..1 for a detector."""
    return _draw(case, SEED + 1)


def quantization_inputs(case: Case) -> list[Tensor]:
    """Return what an int8 network's ranges come from: the case's images and others like them."""
    return [make_images(case), *(_draw(case, SEED + 1 + number) for number in range(1, QUANTIZATION_INPUTS))]


def _draw(case: Case, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand if case.detector else torch.randn
    return draw(case.batch, 3, case.height, case.width, generator=generator)


@torch.inference_mode()
def exact_maps(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return a backbone's maps, computed in float64."""
    return list(copy.deepcopy(model).double()(images.double()))


def _calibrated(model: nn.Module) -> nn.Module:
    """Set the batch norms' statistics to those of random images, in place; otherwise activations explode."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over what they have seen
    model.train()(torch.randn(2, 3, *CALIBRATION_SIZE))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def _make_choosy(detector: nn.Module, image: Tensor) -> None:
    """Scale the class logits and raise the background's, in place, until ``CANDIDATES`` scores pass the threshold."""
    heads: Any = detector.roi_heads
    layer = heads.box_predictor.cls_score
    layer.bias.zero_()
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, args, output: seen.append(output.double()))
    try:
        detector([image])
    finally:
        hook.remove()
    factor = float(LOGIT_SPREAD / seen[0].std())
    layer.weight *= factor
    logits = seen[0] * factor
    # e^z / (e^(background + raise) + Σ e^z) > t  <=>  raise < log(e^z / t − Σ e^z) − background
    exponentials = logits[:, 1:].exp()
    room = exponentials / heads.score_thresh - exponentials.sum(1, keepdim=True)
    raises = (room.clamp(min=1e-30).log() - logits[:, :1]).flatten().sort(descending=True).values
    layer.bias[0] = raises[CANDIDATES - 1 : CANDIDATES + 1].mean()  # between two, where rounding turns none over
