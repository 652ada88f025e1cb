"""Names of keypoints: their sides and what takes whose place in a mirror image; and the drawing of skeletons."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vovnet.results.drawing import draw_detections
from vovnet.results.skeletons import SIDE_COLOURS, Skeleton, mirrored, side_of, skeletons_of

PAIRS = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
PERSON = ["nose", *(f"{side}_{part}" for part in PAIRS for side in ("left", "right"))]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (PERSON, (0, *(n + 1 if n % 2 else n - 1 for n in range(1, 17)))),
        (["eye_left", "nose", "eye_right"], (2, 1, 0)),
        (["l_eye", "r_eye"], (1, 0)),
        (["Knee.R", "Knee.L"], (1, 0)),
        (["leftEye", "rightEye", "lKnee", "rKnee"], (1, 0, 3, 2)),
        (["LEFT EYE", "RIGHT EYE"], (1, 0)),
        (["left_eye", "right_ear"], (0, 1)),  # no counterpart
        (["leftover", "bright_spot", "girl", "r2"], (0, 1, 2, 3)),  # no side
        (["point 1", "point 2"], (0, 1)),
        (["top", "right", "bottom", "left"], (0, 3, 2, 1)),
        (["left_of_right", "right_of_left"], (0, 1)),  # two sides are none
    ],
)
def test_places_in_a_mirror(names: list[str], expected: tuple[int, ...]) -> None:
    assert mirrored(names) == expected


@given(st.lists(st.from_regex(r"(left|Right|l|R|LEFT|up|x)?[_ .]?(left|r|eye|Ear)?", fullmatch=True), unique=True))
def test_two_mirrors_are_none(names: list[str]) -> None:
    order = mirrored(names)
    assert sorted(order) == list(range(len(names)))
    assert [order[one] for one in order] == list(range(len(names)))
    assert all(side_of(names[one]) != side_of(names[number]) for number, one in enumerate(order) if one != number)


def test_skeletons_of_categories() -> None:
    categories = [{"id": 3, "name": "x", "keypoints": ["a", "b"], "skeleton": [[1, 2]]}, {"id": 4, "name": "y"}]
    assert skeletons_of(categories) == {3: Skeleton(("a", "b"), ((0, 1),))}


def test_only_points_with_a_score_are_drawn() -> None:
    """Sides have their own colours; a line needs both of its ends."""
    image = Image.new("RGB", (200, 200), "white")
    skeleton = Skeleton(("left_eye", "right_eye", "nose"), ((0, 2), (1, 2)))
    flat = [40.0, 40.0, 0.9, 150.0, 40.0, 0.2, 90.0, 150.0, 0.8]
    one = {"bbox": [10, 10, 180, 180], "category_id": 1, "category": "face", "score": 0.9, "keypoints": flat}
    drawn = np.asarray(draw_detections(image, [one], labels=False, skeletons={1: skeleton}))
    assert tuple(drawn[40, 40]) == SIDE_COLOURS["left"]
    assert tuple(drawn[150, 90]) == SIDE_COLOURS[None]
    assert tuple(drawn[40, 150]) == (255, 255, 255)  # score too low
    assert (drawn[80:110, 55:75] != 255).any()
    assert (drawn[80:110, 105:135] == 255).all()
    other = np.asarray(draw_detections(image, [one], labels=False, skeletons={2: skeleton}))
    assert tuple(other[40, 40]) == (255, 255, 255)  # a category without keypoints
    plain = np.asarray(draw_detections(image, [{**one, "score": 0.1}], labels=False))
    assert (plain == 255).all()
