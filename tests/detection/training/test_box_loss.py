"""The box head's loss: against torch's and torchvision's own, and in a detector."""

from __future__ import annotations

import copy

import pytest
import tiny_runs
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import sigmoid_focal_loss

from vovnet.detection.config.categories import Category
from vovnet.detection.config.loading import load_recipe
from vovnet.detection.config.solver import SolverRecipe
from vovnet.detection.models.build import build_detector
from vovnet.detection.training.box_loss import BoxLoss, WeightedRoIHeads, set_box_loss
from vovnet.errors import InputError

CATEGORIES: list[Category] = [{"id": 1, "name": "cat"}, {"id": 4, "name": "dog"}]


def logits_and_labels(classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(40, classes, generator=generator, dtype=torch.float64) * 3
    return logits.float(), torch.randint(classes, (40,), generator=generator)


def test_weights_are_those_of_torch() -> None:
    logits, labels = logits_and_labels(4)
    weights = torch.tensor([1.0, 0.5, 3.0, 1.0])
    found = BoxLoss(weights)(logits, labels)
    torch.testing.assert_close(found, F.cross_entropy(logits, labels, weights))
    assert not torch.allclose(found, F.cross_entropy(logits, labels))
    torch.testing.assert_close(BoxLoss(weights, gamma=1e-9)(logits, labels), found)  # by the other formula


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.7, 0.5), (0.25, 0.0), (None, 3.0)])
def test_focal_loss_is_torchvisions_for_one_class(alpha: float | None, gamma: float) -> None:
    """The softmax of (0, z) is the sigmoid of z."""
    z, labels = logits_and_labels(2)[0][:, 1], logits_and_labels(2)[1]
    z.requires_grad_()
    found = BoxLoss(torch.ones(2), alpha, gamma)(torch.stack([torch.zeros_like(z), z], dim=1), labels)
    theirs = sigmoid_focal_loss(z, labels.float(), -1 if alpha is None else alpha, gamma, reduction="mean")
    torch.testing.assert_close(found, theirs)
    torch.testing.assert_close(torch.autograd.grad(found, z), torch.autograd.grad(theirs, z))


def test_certain_boxes_have_finite_gradients() -> None:
    logits = torch.tensor([[60.0, -60.0], [-60.0, 60.0]], requires_grad=True)
    for gamma in (0.5, 2.0):
        BoxLoss(torch.ones(2), 0.25, gamma)(logits, torch.tensor([0, 0])).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def detector_and_batch() -> tuple[RoIHeads, list[Tensor], list[dict[str, Tensor]]]:
    torch.manual_seed(0)
    detector = build_detector(tiny_runs.tiny_model("test_resnet", num_classes=2))
    detector.train()
    target = {"boxes": torch.tensor([[4.0, 4, 40, 40], [20, 10, 60, 50]]), "labels": torch.tensor([1, 2])}
    return detector, [torch.rand(3, 64, 64)], [target]


def losses_of(detector: RoIHeads, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    torch.manual_seed(1)  # of the choice of anchors and boxes
    losses: dict[str, Tensor] = copy.deepcopy(detector)(images, targets)
    return {name: loss.detach() for name, loss in losses.items()}


def test_only_this_loss_changes() -> None:
    detector, images, targets = detector_and_batch()
    before = losses_of(detector, images, targets)
    keys = detector.state_dict().keys()
    set_box_loss(detector, SolverRecipe(), CATEGORIES)
    assert type(detector.roi_heads) is RoIHeads
    # Weights of 1 and a focus of nothing are cross-entropy, by the formula of the focal loss and by torch's.
    set_box_loss(detector, SolverRecipe(class_weights={"dog": 1.0}), CATEGORIES)
    assert losses_of(detector, images, targets) == before
    detector.roi_heads.box_loss = BoxLoss(torch.tensor([1.0, 1.0, 5.0]), gamma=1.0)
    after = losses_of(detector, images, targets)
    assert {name for name in before if before[name] != after[name]} == {"loss_classifier"}
    assert detector.state_dict().keys() == keys
    detector.eval()
    assert set(detector(images)[0]) == {"boxes", "labels", "scores"}


def test_weights_by_name() -> None:
    detector, *_ = detector_and_batch()
    recipe = load_recipe("bccd", ["solver.class_weights={dog: 2.5}", "solver.box_loss=focal", "solver.focal_alpha=0.3"])
    set_box_loss(detector, recipe.solver, CATEGORIES)
    heads = detector.roi_heads
    assert isinstance(heads, WeightedRoIHeads)
    assert heads.box_loss.weights.tolist() == [1.0, 1.0, 2.5]
    assert heads.box_loss.factors.tolist() == pytest.approx([0.7, 0.3, 0.3])
    assert heads.box_loss.gamma == 2.0


@pytest.mark.parametrize("given", [{"doge": 2.0}, {"background": 2.0}])
def test_names_that_the_data_does_not_have(given: dict[str, float]) -> None:
    detector, *_ = detector_and_batch()
    with pytest.raises(InputError, match=r"solver\.class_weights.*(dog|cat)"):
        set_box_loss(detector, SolverRecipe(class_weights=given), CATEGORIES)


def test_other_heads_are_refused() -> None:
    for solver, key in (
        (SolverRecipe(box_loss="focal"), "box_loss"),
        (SolverRecipe(class_weights={"cat": 2}), "class"),
    ):
        with pytest.raises(InputError, match=f"solver.{key}"):
            set_box_loss(torch.nn.Linear(1, 1), solver, CATEGORIES)
