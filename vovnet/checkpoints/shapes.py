"""Compare the names and shapes of tensors in a file with those that a network expects."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from vovnet.errors import InputError

Shapes = Mapping[str, tuple[int, ...]]
_Name = TypeVar("_Name", bound=Hashable)

_BRIEF = 3


@dataclass(frozen=True)
class Differences:
    """Differences between a file's tensors and a network's; false if there are none."""

    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    """Key, shape in the file, shape in the network."""

    def __len__(self) -> int:
        return len(self.missing) + len(self.left_over) + len(self.reshaped)

    def __str__(self) -> str:
        reshaped = tuple(f"{key} is {found} and should be {expected}" for key, found, expected in self.reshaped)
        parts = (("missing", self.missing), ("left over", self.left_over), ("other shapes", reshaped))
        return "; ".join(f"{what}: {', '.join(keys)}" for what, keys in parts if keys)

    def brief(self) -> str:
        """Return the number of differences of each kind and the names of a few."""
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
    """Return the shape of each tensor."""
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def compare_shapes(expected: Shapes, found: Shapes) -> Differences:
    """Return the keys that a file lacks, has in addition, or has in other shapes than the network."""
    return Differences(
        tuple(key for key in expected if key not in found),
        tuple(key for key in found if key not in expected),
        tuple((key, found[key], shape) for key, shape in expected.items() if key in found and found[key] != shape),
    )


def refuse_differences(path: Path, expected: Shapes, found: Shapes) -> None:
    """Compare the shapes in a file with those of a network.

    Raises:
        InputError: They differ. The message counts missing, left-over and reshaped tensors and names some of each.
    """
    if differences := compare_shapes(expected, found):
        raise InputError(
            f"{path}: weights of another model: {differences.brief()}; of {len(expected)} expected tensors"
        )


def closest(candidates: Mapping[_Name, Shapes], found: Shapes) -> _Name:
    """Return the name of the candidate with the fewest differences, the first one of several."""
    return min(candidates, key=lambda name: len(compare_shapes(candidates[name], found)))


def published_resnet_keys(model: nn.Module) -> dict[str, str]:
    """Return maskrcnn-benchmark's key → timm's key, for every tensor of a ResNet without a classifier.

    Only the stem has a level of its own in the reference (modeling/backbone/resnet.py:347-366): ``stem.conv1.weight``,
    ``stem.bn1.bias``, ``layer1.0.conv1.weight``.
    """
    return {f"stem.{key}" if key.startswith(("conv1.", "bn1.")) else key: key for key in model.state_dict()}
