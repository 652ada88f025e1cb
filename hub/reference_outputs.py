"""Outputs of a network on a synthetic image, in few enough numbers to be published with its weights.

Checksums show that the files are the published ones. Reference outputs show that this machine, with its versions of the
libraries, computes the same as the publisher's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vovnet.errors import InputError

VALUES = 48
"""Number of values that are recorded of a tensor, evenly spaced."""
TOLERANCE = 1e-3
"""Largest allowed difference, relative to the largest magnitude of a tensor. Instruction sets and versions differ by
less; a wrong weight, channel order or normalisation differs by more."""

_SIZE = (192, 256)
_BOXES = ((10.0, 20.0, 90.0, 120.0), (100.0, 30.0, 240.0, 180.0), (0.0, 0.0, 255.0, 191.0), (60.0, 60.0, 80.0, 84.0))


def image(channels: int, height: int, width: int) -> Tensor:
    """Return a float image (channels, height, width) in [0, 1]: gradients and checks made from integers, so that it is
    equal on every machine."""
    y, x = torch.arange(height)[:, None], torch.arange(width)[None, :]
    planes = [(y * (3 + c) + x * (5 - c % 4) + 64 * ((y // 16 + x // 16 + c) % 2)) % 256 for c in range(channels)]
    return torch.stack(planes).float() / 255


def record_outputs(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the outputs of a detector or timm model by name: shape, largest magnitude, and some values in order.

    Raises:
        InputError: An output is not finite.
    """
    outputs = _outputs(model)
    if broken := [name for name, value in outputs.items() if not value.isfinite().all()]:
        raise InputError(
            f"NaN or infinity in the outputs {', '.join(broken)}: the weights are of a training that diverged"
        )
    return {name: _sample(value) for name, value in outputs.items()}


def compare_outputs(model: nn.Module, recorded: Mapping[str, Mapping[str, Any]], where: str) -> float:
    """Compute the outputs again and compare them with recorded ones.

    Returns:
        The largest difference, relative to the largest magnitude of its tensor.

    Raises:
        InputError: Names, shapes or values differ; the message names the outputs.
    """
    found = record_outputs(model)
    if set(found) != set(recorded):
        names = [", ".join(sorted(entries)) for entries in (recorded, found)]
        raise InputError(f"{where}: the outputs {names[0]} are recorded, but the model has {names[1]}")
    largest, problems = 0.0, []
    for name, expected in recorded.items():
        difference = _difference(found[name], expected)
        if difference is None:
            problems.append(f"{name} has another shape or is not recorded as numbers")
            continue
        largest = max(largest, difference)
        if not difference <= TOLERANCE:
            problems.append(f"{name} differs by {difference:.2g} of its largest value")
    if problems:
        raise InputError(
            f"{where}: computes something else than recorded ({'; '.join(problems)}; allowed: {TOLERANCE}): the "
            "weights or a library are not those that it was published with"
        )
    return largest


def _difference(found: Mapping[str, Any], expected: object) -> float | None:
    """Return the largest difference relative to the largest magnitude; None if the record is not finite numbers of this
    tensor's shape."""
    if not isinstance(expected, Mapping) or expected.get("shape") != found["shape"]:
        return None
    values = expected.get("values")
    if not isinstance(values, list) or len(values) != len(found["values"]):
        return None
    recorded = [expected.get("largest"), *values]
    # Compared, not converted: an integer may be too large for a float.
    if not all(isinstance(value, int | float) and abs(value) < 1e38 for value in recorded):
        return None
    scale = max(float(found["largest"]), 1e-12)
    return max(abs(a - b) for a, b in zip([found["largest"], *found["values"]], recorded, strict=True)) / scale


def _sample(value: Tensor) -> dict[str, Any]:
    flat = value.detach().float().flatten()
    places = torch.linspace(0, max(0, len(flat) - 1), min(VALUES, len(flat)), dtype=torch.float64).round().long()
    return {
        "shape": list(value.shape),
        "largest": float(f"{float(flat.abs().max()):.7g}") if len(flat) else 0.0,
        "values": [float(f"{entry:.7g}") for entry in flat[places].tolist()],
    }


@torch.inference_mode()
def _outputs(model: nn.Module) -> dict[str, Tensor]:
    return _detector_outputs(model) if hasattr(model, "recipe") else _network_outputs(model)


def _network_outputs(model: Any) -> dict[str, Tensor]:
    channels, height, width = model.pretrained_cfg.get("input_size") or (3, 224, 224)
    channels = getattr(model, "in_chans", channels)
    features = model.forward_features((image(channels, height, width)[None] - 0.5) / 0.25)
    outputs = {"features": features}
    if model.num_classes:
        outputs["logits"] = model.forward_head(features)
    return outputs


def _detector_outputs(detector: Any) -> dict[str, Tensor]:
    """Return the parts' outputs for fixed boxes, because a last bit may change which boxes the detector selects."""
    network_input = detector.transform.normalize(image(detector.recipe.in_chans, *_SIZE))[None]
    levels = detector.backbone(network_input)
    outputs = {f"pyramid.{name}": level for name, level in levels.items()}
    return outputs | (
        _of_proposals(detector, levels) if hasattr(detector, "roi_heads") else _of_places(detector, levels)
    )


def _of_places(detector: Any, levels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"head.{name}": value for name, value in detector.head([*levels.values()]).items()}


def _of_proposals(detector: Any, levels: dict[str, Tensor]) -> dict[str, Tensor]:
    objectness, deltas = detector.rpn.head([*levels.values()])
    outputs = {"rpn.objectness": objectness[0], "rpn.deltas": deltas[0]}
    heads = detector.roi_heads
    boxes = [torch.tensor(_BOXES)]
    features = heads.box_head(heads.box_roi_pool(levels, boxes, [_SIZE]))
    outputs["box.logits"], outputs["box.deltas"] = heads.box_predictor(features)
    for part in ("mask", "keypoint"):
        if getattr(heads, f"{part}_predictor", None) is not None:
            pooled = getattr(heads, f"{part}_roi_pool")(levels, boxes, [_SIZE])
            head, predictor = getattr(heads, f"{part}_head"), getattr(heads, f"{part}_predictor")
            outputs[f"{part}.logits"] = predictor(head(pooled))
    return outputs
