"""Join the categories of several files, and match those of the data with a detector's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vovnet.detection.config.categories import Category, numbered_keypoints, plain_category
from vovnet.errors import InputError, shown
from vovnet.images.reading import example_names


def match_categories(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], names: bool = True
) -> list[Category]:
    """Return the categories of a detector after checking that they include those of the data, by id and name.

    Where both name keypoints, these must agree, too.

    If ``names`` is False, equal sets of ids are enough: a detector may not know the names of its categories.

    Raises:
        InputError: They do not; the message lists the differences.
    """
    known = {int(one["id"]): str(one["name"]) for one in theirs}
    differences = _keypoint_differences(ours, theirs)
    if not names and {int(one["id"]) for one in ours} == known.keys():
        ours = []
    for one in ours:
        if one["id"] not in known:
            differences.append(f"{one['id']} '{one['name']}' is only in the data")
        elif known[one["id"]] != one["name"]:
            differences.append(f"{one['id']} is '{one['name']}' in the data and '{known[one['id']]}' in the detector")
    if differences:
        raise InputError(
            f"categories of the data are not the detector's: {example_names(differences, len(differences), 5)}; the "
            f"detector knows {example_names((f'{key} {name!r}' for key, name in known.items()), len(known), 5)}"
        )
    own = {one["id"]: one for one in ours}
    return [plain_category({**own.get(one["id"], {}), **one}) for one in theirs]


def _keypoint_differences(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return where both name keypoints of a category, but not the same."""
    known = {int(one["id"]): list(one.get("keypoints", ())) for one in theirs}
    differences = []
    for one in ours:
        names, there = one.get("keypoints"), known.get(one["id"])
        # Data that does not name its keypoints may have the detector's.
        if names and there and names != there and names != numbered_keypoints(len(there)):
            differences.append(f"{one['id']} has keypoints {shown(names)} in the data, {shown(there)} in the detector")
    return differences


def join_categories(
    known: dict[int, tuple[Category, str]], categories: Sequence[Category], path: str, keypoints: bool
) -> None:
    """Add a file's categories to the known ones: id to (category, file).

    Ids and names must agree with those of the earlier files, and with ``keypoints`` also the names of keypoints. One
    file may have a name twice, and so may all of them. Without ``keypoints``, categories lose theirs.

    Raises:
        InputError: Two files contradict each other.
    """
    ids = {one["name"]: (number, file) for number, (one, file) in known.items()}
    for entry in categories:
        number, name = entry["id"], entry["name"]
        category = plain_category(entry, keypoints)
        earlier, file = known.get(number, (category, path))
        there = earlier["name"]
        if there != name:
            raise InputError(
                f"category {number} is '{shown(there)}' in {file} but '{shown(name)}' in {path}; "
                "joined files must agree"
            )
        other, file = ids.get(name, (number, path))
        if other != number and number not in known:
            raise InputError(
                f"category '{shown(name)}' has id {other} in {file} but {number} in {path}; joined files must agree: "
                "give it the same id in both"
            )
        known.setdefault(number, (category, path))
        if "keypoints" not in category:
            continue
        names = earlier.setdefault("keypoints", category["keypoints"])
        if names != category["keypoints"]:
            raise InputError(
                f"category {number} has keypoints {shown(names)} in {file} but {shown(category['keypoints'])} in "
                f"{path}; joined files must agree"
            )
