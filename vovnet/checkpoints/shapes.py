"""Names and shapes of tensors: what a file has, what a network expects, and how far they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

Shapes = Mapping[str, tuple[int, ...]]

_BRIEF = 3


@dataclass(frozen=True)
class Differences:
    """What keeps a file's tensors from fitting a network; false where nothing does."""

    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    """Key, the file's shape, the network's."""

    def __len__(self) -> int:
        return len(self.missing) + len(self.left_over) + len(self.reshaped)

    def __str__(self) -> str:
        reshaped = tuple(f"{key} is {found} and should be {expected}" for key, found, expected in self.reshaped)
        parts = (("missing", self.missing), ("left over", self.left_over), ("other shapes", reshaped))
        return "; ".join(f"{what}: {', '.join(keys)}" for what, keys in parts if keys)

    def brief(self) -> str:
        """How many of each kind, and the names of a few."""
        reshaped = tuple(f"{key} {found}, not {expected}" for key, found, expected in self.reshaped[:_BRIEF])
        parts = (
            (len(self.missing), "missing", self.missing),
            (len(self.left_over), "left over", self.left_over),
            (len(self.reshaped), "of another shape", reshaped),
        )
        return "; ".join(
            f"{count} {what} ({', '.join(keys[:_BRIEF])}{', …' if count > _BRIEF else ''})"
            for count, what, keys in parts
            if count
        )


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor."""
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def compare_shapes(expected: Shapes, found: Shapes) -> Differences:
    """What a file lacks, has in addition, and has in other shapes than a network expects."""
    return Differences(
        tuple(key for key in expected if key not in found),
        tuple(key for key in found if key not in expected),
        tuple((key, found[key], shape) for key, shape in expected.items() if key in found and found[key] != shape),
    )


def closest(candidates: Mapping[str, Shapes], found: Shapes) -> str:
    """The candidate with the fewest differences; the first of equals."""
    return min(candidates, key=lambda name: len(compare_shapes(candidates[name], found)))


def published_resnet_keys(model: nn.Module) -> dict[str, str]:
    """maskrcnn-benchmark's name → timm's, for every tensor of a ResNet without a classifier.

    Only the stem has a level of its own there: ``stem.conv1.weight``, ``stem.bn1.bias``, ``layer1.0.conv1.weight``
    (reference modeling/backbone/resnet.py:347-366).
    """
    return {f"stem.{key}" if key.startswith(("conv1.", "bn1.")) else key: key for key in model.state_dict()}
