"""Categories in COCO's form, with the names of their keypoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic reads typing's from Python 3.12 on

from vovnet.detection.config.fields import Integer, Text
from vovnet.errors import InputError, shown
from vovnet.results.skeletons import mirrored

MOST_KEYPOINTS = 1024
"""Largest number of keypoints of a category."""

_Edge = Annotated[list[Annotated[Integer, Field(ge=1, le=1024)]], Field(min_length=2, max_length=2)]


@with_config(ConfigDict(extra="forbid"))
class Category(TypedDict):
    """A category of a detector or of a dataset, as in COCO JSON.

    ``keypoints`` are the names of its keypoints, and ``skeleton`` has pairs of their positions, from 1.
    """

    id: Annotated[Integer, Field(ge=-(2**63), le=2**63 - 1)]
    name: Text
    keypoints: NotRequired[Annotated[list[Text], Field(min_length=1, max_length=1024)]]
    skeleton: NotRequired[Annotated[list[_Edge], Field(max_length=65_536)]]


def plain_category(entry: Mapping[str, Any], keypoints: bool = True) -> Category:
    """Return a category of plain values: its id and name and, if it has them, its keypoints and their skeleton."""
    category: Category = {"id": int(entry["id"]), "name": str(entry["name"])}
    if keypoints and entry.get("keypoints"):
        category["keypoints"] = [str(name) for name in entry["keypoints"]]
        if entry.get("skeleton"):
            category["skeleton"] = [[int(end) for end in pair] for pair in entry["skeleton"]]
    return category


def plain_categories(categories: Iterable[Category]) -> list[Category]:
    """Return categories of plain values, which can be compared and stored."""
    return [plain_category(entry) for entry in categories]


def numbered_keypoints(count: int) -> list[str]:
    """Return names for keypoints that have none."""
    return [f"point {position}" for position in range(1, count + 1)]


def keypoint_problem(entry: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a category's keypoints or skeleton, or None.

    ``keypoints`` are different texts, and ``skeleton`` has pairs of their positions from 1. Both may be missing.
    """
    names, skeleton = entry.get("keypoints"), entry.get("skeleton")
    if names:
        texts = isinstance(names, list | tuple) and all(isinstance(name, str) and name for name in names)
        if not texts or len(set(names)) < len(names) or len(names) > MOST_KEYPOINTS:
            return f"keypoints: expected different names, at most {MOST_KEYPOINTS}, got {shown(names)}"
    if skeleton:
        count = len(names or ())
        if not isinstance(skeleton, list | tuple) or not all(_is_edge(pair, count) for pair in skeleton):
            return f"skeleton: expected pairs of numbers from 1 to {count}, got {shown(skeleton)}"
    return None


def _is_edge(pair: Any, count: int) -> bool:
    return (
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and all(type(end) is int and 1 <= end <= count for end in pair)
    )


def keypoint_count(categories: Iterable[Mapping[str, Any]], where: str) -> int | None:
    """Return the number of keypoints that all categories with keypoints have, or None if none has.

    Raises:
        InputError: They differ. A detector of keypoints has one number for all; the message begins with ``where``.
    """
    counts = {str(one["name"]): len(one["keypoints"]) for one in categories if one.get("keypoints")}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{shown(name)} {count}" for name, count in list(counts.items())[:5])
        raise InputError(
            f"{where}: categories have different numbers of keypoints ({listed}), and a detector has one for all: give "
            "all the same, and leave the points that an object lacks unlabelled (v = 0)"
        )
    return next(iter(counts.values()), None)


def mirror_order(categories: Sequence[Mapping[str, Any]], where: str) -> tuple[int, ...] | None:
    """Return for each keypoint the one whose place it takes in a mirror image, or None without keypoints.

    Raises:
        InputError: The categories differ in the number of keypoints or in their sides.
    """
    count = keypoint_count(categories, where)
    if count is None:
        return None
    orders = {mirrored(one["keypoints"]): str(one["name"]) for one in categories if one.get("keypoints")}
    if len(orders) > 1:
        names = " and ".join(shown(name) for name in list(orders.values())[:2])
        raise InputError(
            f"{where}: keypoints of {names} have left and right at different positions, so that flips cannot swap "
            "them: give all categories the same order"
        )
    return next(iter(orders))
