"""Checks of a model's arguments. Each error names the argument, its value and what is expected."""

import inspect
from collections.abc import Sequence
from typing import Any

from timm.layers import get_act_layer, get_norm_act_layer

from vovnet.errors import InputError

POOLS = ("", "avg", "max", "avgmax", "catavgmax", "fast", "fastavg", "fastmax", "fastavgmax", "fastcatavgmax")
STAGES = 4


def check_widths(
    stem_chs: Sequence[int],
    stage_conv_chs: Sequence[int],
    stage_out_chs: Sequence[int],
    block_per_stage: Sequence[int],
    layer_per_block: int,
) -> None:
    """Check that channels and counts are positive integers: three for the stem, one for each of the four stages."""
    _check_int("layer_per_block", layer_per_block, least=1)
    for name, value, length in (
        ("stem_chs", stem_chs, 3),
        ("stage_conv_chs", stage_conv_chs, STAGES),
        ("stage_out_chs", stage_out_chs, STAGES),
        ("block_per_stage", block_per_stage, STAGES),
    ):
        if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != length:
            raise InputError(f"{name}={value!r}: expected {length} integers")
        for entry in value:
            _check_int(name, entry, least=1)


def check_head(num_classes: int, global_pool: str | None) -> None:
    """Check the arguments of the classifier; ``global_pool`` None keeps the present pooling."""
    _check_int("num_classes", num_classes, least=0)
    if global_pool is not None and global_pool not in POOLS:
        raise InputError(f"global_pool={global_pool!r}: expected one of {', '.join(map(repr, POOLS))}")


def check_input(in_chans: int, output_stride: int) -> None:
    """Check the channels of the image and the stride of the last feature map."""
    _check_int("in_chans", in_chans, least=1)
    if output_stride not in (8, 16, 32):
        raise InputError(f"output_stride={output_stride!r}: expected 32, 16 or 8")


def check_rates(drop_rate: float, drop_path_rate: float) -> None:
    """Check that rates are in [0, 1); with 1, nothing would be left."""
    for name, value in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise InputError(f"{name}={value!r}: expected a number in [0, 1)")


def check_layers(norm_layer: Any, act_layer: Any) -> None:
    """Check that timm knows the norm and the activation, because its own errors do not name the argument."""
    try:
        act = get_act_layer(act_layer)
    except KeyError:
        raise InputError(f"act_layer={act_layer!r}: timm knows no activation of that name") from None
    if act is not None and not (inspect.isclass(act) or callable(act)):
        raise InputError(f"act_layer={act_layer!r}: expected an activation class or a name that timm knows")
    try:
        norm = get_norm_act_layer(norm_layer, act_layer)
    except (KeyError, AssertionError, AttributeError):
        norm = None
    if norm is None:
        raise InputError(
            f"norm_layer={norm_layer!r}: expected a norm class or a name that timm knows, as 'batchnorm2d'"
        )


def _check_int(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}={value!r}: expected an integer of at least {least}")
