"""The box head's classification loss for unbalanced data: weights of classes, and focal loss.

Only a training has them. The weights of a detector, and what it predicts from them, do not depend on the loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import RoIHeads

from vovnet.detection.config.categories import Category
from vovnet.detection.config.solver import SolverRecipe
from vovnet.errors import InputError, did_you_mean, shown


class WeightedRoIHeads(RoIHeads):
    """torchvision's heads with another classification loss of the box head; everything else is inherited.

    torchvision's ``RoIHeads.forward`` computes its cross-entropy as before, and its result is replaced.
    """

    box_loss: BoxLoss
    _labels: list[Tensor]

    def select_training_samples(self, proposals: Any, targets: Any) -> Any:
        """Return torchvision's samples, and remember their labels."""
        samples = super().select_training_samples(proposals, targets)
        self._labels = samples[2]
        return samples

    def forward(self, features: Any, proposals: Any, image_shapes: Any, targets: Any = None) -> Any:
        """Return torchvision's detections and losses, in training with ``loss_classifier`` by ``box_loss``."""
        if not self.training:
            return super().forward(features, proposals, image_shapes, targets)
        logits: list[Tensor] = []
        hook = self.box_predictor.register_forward_hook(lambda _module, _inputs, output: logits.append(output[0]))
        try:
            detections, losses = super().forward(features, proposals, image_shapes, targets)
        finally:
            hook.remove()
        labels, self._labels = torch.cat(self._labels), []
        return detections, {**losses, "loss_classifier": self.box_loss(logits[0], labels)}


class BoxLoss(nn.Module):
    """Cross-entropy or focal loss (arXiv:1708.02002) of softmax scores, with a weight for each class.

    The loss of a box with label t and the softmax probability p of t is ``-w[t] a[t] (1 - p)^gamma log(p)``: w are the
    class weights, a is alpha for objects and 1 - alpha for the background (1 for both without alpha), and gamma is 0
    for cross-entropy. The losses are averaged, weighted by w as in ``torch.nn.functional.cross_entropy``.

    Args:
        weights: (K + 1,) weights of the background and the K classes.
        alpha: None, or the weight of objects, 0 to 1.
        gamma: 0 for cross-entropy.
    """

    weights: Tensor
    factors: Tensor

    def __init__(self, weights: Tensor, alpha: float | None = None, gamma: float = 0.0) -> None:
        super().__init__()
        self.gamma = gamma
        factors = torch.ones_like(weights)
        if alpha is not None:
            factors[0], factors[1:] = 1 - alpha, alpha
        # Not persistent: the detector's weights are the same with any loss.
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("factors", factors, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss, a scalar, of logits (N, K + 1) and labels (N,), 0 for the background."""
        logits = logits.float()
        if not self.gamma and bool((self.factors == 1).all()):
            return F.cross_entropy(logits, labels, self.weights)
        log_p = F.log_softmax(logits, dim=-1).gather(1, labels[:, None])[:, 0]
        weights = self.weights[labels]
        # 1 - p is bounded from below, because the derivative of x^gamma is infinite at 0 for gamma below 1.
        focus = (1 - log_p.exp()).clamp(min=1e-6) ** self.gamma
        return -(weights * self.factors[labels] * focus * log_p).sum() / weights.sum()


def set_box_loss(detector: nn.Module, solver: SolverRecipe, categories: Sequence[Category]) -> None:
    """Give a detector the loss of a recipe's ``solver``, or leave it alone if that is torchvision's own.

    Raises:
        InputError: The detector has no box head, or a weight is for a category that the data does not have.
    """
    if solver.box_loss == "cross_entropy" and not solver.class_weights:
        return
    heads = getattr(detector, "roi_heads", None)
    if not isinstance(heads, RoIHeads) or type(heads) is not RoIHeads:
        key = "class_weights" if solver.class_weights else "box_loss"
        raise InputError(
            f"solver.{key}: this detector has no box head by torchvision's conventions, whose loss could be changed; "
            "leave it out"
        )
    focal = solver.box_loss == "focal"
    weights = _class_weights(solver.class_weights or {}, categories)
    heads.__class__ = WeightedRoIHeads
    heads.box_loss = BoxLoss(weights, solver.focal_alpha if focal else None, solver.focal_gamma if focal else 0.0)


def _class_weights(given: Mapping[str, float], categories: Sequence[Category]) -> Tensor:
    names = [category["name"] for category in categories]
    for name in given:
        if name not in names:
            hint = did_you_mean(name, names, f"they are {shown(names)}")
            raise InputError(f"solver.class_weights: expected names of the data's categories, got {name!r}; {hint}")
    return torch.tensor([1.0, *(given.get(name, 1.0) for name in names)])
