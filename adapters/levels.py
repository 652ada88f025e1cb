"""Choose the feature maps of a timm model for a pyramid, from their strides.

torchvision's ``MultiScaleRoIAlign`` rounds each level's scale to a power of two and computes a box's level between the
first and the last (torchvision/ops/poolers.py, ``_infer_scale`` and ``_setup_scales``), so a pyramid's strides must be
powers of two, each twice the previous one.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence

from vovnet.errors import InputError

PYRAMID_STRIDES = (4, 8, 16, 32)
"""The levels of the FPN paper, arXiv:1612.03144."""


def choose_levels(
    strides: Sequence[int], out_indices: Sequence[int] | None, name: str, pyramid: Sequence[int] = PYRAMID_STRIDES
) -> tuple[int, ...]:
    """Return the index of each pyramid level among a model's feature maps.

    Args:
        strides: stride in pixels of every feature map of the model, in order.
        out_indices: the wanted maps (negative indices count from the end), or None for the last map with each of the
            strides of ``pyramid``.
        name: the model's name in messages.
        pyramid: the strides of the levels, in pixels.

    Raises:
        InputError: a stride is missing, or is not twice the previous one. The message gives indices that would work.
    """
    if out_indices is None:
        missing = [s for s in pyramid if s not in strides]
        if missing:
            raise InputError(
                f"{name} has no feature map with stride {_listed(missing)} (its strides are {_listed(strides)}), and a "
                f"feature pyramid takes {_listed(pyramid)}; {_suggestion(strides, min(pyramid), max(strides))}"
            )
        return tuple(_last(strides, stride) for stride in pyramid)
    indices = _absolute(out_indices, len(strides), name)
    chosen = [strides[i] for i in indices]
    doubling = all(later == 2 * earlier for earlier, later in itertools.pairwise(chosen))
    if not (doubling and _is_power_of_two(chosen[0])):
        raise InputError(
            f"out_indices {list(out_indices)} of {name} give strides {', '.join(map(str, chosen))}, but they must be "
            f"powers of two, each twice the previous one (all of its strides: {_listed(strides)}); "
            f"{_suggestion(strides, min(chosen), max(chosen))}"
        )
    return indices


def _absolute(out_indices: Sequence[int], count: int, name: str) -> tuple[int, ...]:
    try:
        given = [operator.index(i) for i in out_indices]
    except TypeError:
        raise InputError(f"out_indices must be a list of integers, got {out_indices!r}") from None
    if not given:
        raise InputError(f"out_indices is empty; {name} has feature maps 0 to {count - 1}, or give None to choose them")
    for i in given:
        if not -count <= i < count:
            raise InputError(f"out_indices has {i}, but {name} has feature maps 0 to {count - 1}")
    return tuple(i % count for i in given)


def _suggestion(strides: Sequence[int], least: int, most: int) -> str:
    """Return the argument that would work: the longest run of doubling strides, within bounds if there is one."""
    best = _longest_run(strides, [s for s in set(strides) if least <= s <= most]) or _longest_run(strides, strides)
    if not best:
        return "no out_indices would work"
    return f"out_indices={best} would work (strides {_listed([strides[i] for i in best])})"


def _longest_run(strides: Sequence[int], allowed: Sequence[int]) -> list[int]:
    best: list[int] = []
    for start in sorted(s for s in allowed if _is_power_of_two(s)):
        run, stride = [], start
        while stride in allowed:
            run.append(_last(strides, stride))
            stride *= 2
        if len(run) >= len(best):
            best = run
    return best


def _last(strides: Sequence[int], stride: int) -> int:
    return len(strides) - 1 - list(reversed(strides)).index(stride)


def _is_power_of_two(stride: int) -> bool:
    return stride > 0 and stride & (stride - 1) == 0


def _listed(values: Sequence[int]) -> str:
    """Return each value once, because a vision transformer has the same stride everywhere."""
    return ", ".join(str(v) for v in dict.fromkeys(values))
