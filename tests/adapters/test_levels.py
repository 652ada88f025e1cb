"""The choice of feature maps for a pyramid, and the indices that errors suggest."""

import pytest

from vovnet.adapters.levels import choose_levels
from vovnet.errors import InputError

RESNET = [2, 4, 8, 16, 32]


@pytest.mark.parametrize(
    ("strides", "expected"),
    [(RESNET, (1, 2, 3, 4)), ([4, 8, 16, 32], (0, 1, 2, 3)), ([1, 2, 4, 4, 8, 16, 16, 32, 64], (3, 4, 6, 7))],
)
def test_the_last_map_of_each_pyramid_stride_is_taken(strides: list[int], expected: tuple[int, ...]) -> None:
    assert choose_levels(strides, None, "m") == expected


@pytest.mark.parametrize(
    ("out_indices", "expected"), [([2, 3, 4], (2, 3, 4)), ([-2, -1], (3, 4)), ([0], (0,)), ((1, 2), (1, 2))]
)
def test_given_indices_are_made_absolute(out_indices: list[int], expected: tuple[int, ...]) -> None:
    assert choose_levels(RESNET, out_indices, "m") == expected


@pytest.mark.parametrize(
    ("strides", "out_indices", "message"),
    [
        ([16] * 12, None, r"no feature map with stride 4, 8, 32 \(its strides are 16\).*out_indices=\[11\]"),
        ([4, 8, 16, 16], None, r"stride 32 .*out_indices=\[0, 1, 3\] would work"),
        ([7, 14, 28], None, "no out_indices would work"),
        (RESNET, [1, 3], r"give strides 4, 16, .*out_indices=\[1, 2, 3\] would work \(strides 4, 8, 16\)"),
        (RESNET, [3, 2], r"give strides 16, 8, .*out_indices=\[2, 3\]"),
        ([7, 14, 28], [0, 1], "powers of two"),
        (RESNET, [1, 5], "out_indices has 5, but m has feature maps 0 to 4"),
        (RESNET, [-6], "out_indices has -6"),
        (RESNET, [], "out_indices is empty"),
        (RESNET, ["a"], "must be a list of integers"),
        (RESNET, 3, "must be a list of integers"),
    ],
)
def test_errors_say_what_would_have_worked(strides: list[int], out_indices: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_levels(strides, out_indices, "m")  # type: ignore[arg-type]
