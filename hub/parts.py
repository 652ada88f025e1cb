"""Find the network in a file that may hold more: a detector's pyramid and heads, or whatever another project adds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, get_args

from vovnet.checkpoints.shapes import Shapes
from vovnet.errors import InputError

Part = Literal["backbone"]
"""The values of ``--part``."""

BOTTOM_UP = "backbone.bottom_up."
"""Prefix of the network's keys in detectron2's detectors."""
BODY = "backbone.body."
"""Prefix of the network's keys in maskrcnn-benchmark's detectors."""
CLASSIFIER = frozenset(
    f"{layer}.{leaf}" for layer in ("classifier", "output", "head.fc", "fc") for leaf in ("weight", "bias")
)
"""The classifier's keys: the authors', pytorchcv's, timm's for VoVNets, and timm's for ResNets."""

_DETECTRON2 = ("backbone.fpn_", "backbone.top_block.", "proposal_generator.", "roi_heads.", "pixel_mean", "pixel_std")
"""Beginnings of the keys that vovnet-detectron2's detectors have beside those of their network."""
_FIRST = re.compile(
    r"(|.*\.)(stem\.stem_1/conv|stem\.0\.conv|features\.init_block\.conv1\.conv|layer1\.0\.conv1)\.weight"
)
"""A key that each network has once, in any form, and what stands before it."""
_OWN = re.compile(r"(stem|stage\d|stages|features|conv1|bn1|layer\d)\..*")
"""The keys of a network without its classifier, in any form."""


def check_part(part: str | None) -> Part | None:
    """Return a value of ``--part``.

    Raises:
        InputError: There is no such part.
    """
    if part is None or part in get_args(Part):
        return part  # type: ignore[return-value]
    raise InputError(f"--part '{part}': expected {' or '.join(get_args(Part))}")


def network_part(found: Shapes, part: Part | None) -> tuple[str, Shapes, dict[str, str]]:
    """Return the prefix of the network's keys, its shapes without the prefix, and why each other key is left out.

    Args:
        found: Names and shapes of a file.
        part: ``backbone`` leaves out whatever the file holds beside one network; None only what is known to be there.

    Raises:
        InputError: The file holds more than a network, and ``part`` does not say that it may; or it holds several.
    """
    if part is None and all(key.startswith(BODY) for key in found):
        return BODY, {key.removeprefix(BODY): shape for key, shape in found.items()}, {}
    prefixes = sorted({match[1] for key in found if (match := _FIRST.fullmatch(key))})
    if not prefixes or (part is None and prefixes == [""]):
        return "", found, {}
    if len(prefixes) > 1:
        named = ", ".join(repr(prefix) for prefix in prefixes)
        raise InputError(f"holds {len(prefixes)} networks, under {named}; save the one that you mean alone")
    prefix = prefixes[0]
    inside = {key.removeprefix(prefix): shape for key, shape in found.items() if key.startswith(prefix)}
    if prefix != BOTTOM_UP:  # detectron2 keeps nothing else there, so that each of its keys must fit
        inside = {key: shape for key, shape in inside.items() if _OWN.fullmatch(key) or key in CLASSIFIER}
    others = [key for key in found if not key.startswith(prefix) or key.removeprefix(prefix) not in inside]
    unknown = others if prefix != BOTTOM_UP else foreign(others)
    if part is None and unknown:
        raise InputError(
            f"holds a network under '{prefix}' and more beside it ({', '.join(grouped(unknown))}); give --part "
            "backbone to take the network and leave the rest out"
        )
    return prefix, inside, dict.fromkeys(others, "not of the backbone")


def foreign(keys: Iterable[str]) -> list[str]:
    """Return the keys that the detectors of vovnet-detectron2 do not have beside their network."""
    return [key for key in keys if not key.startswith(_DETECTRON2)]


def grouped(keys: Iterable[str]) -> list[str]:
    """Return keys by their beginnings with the number of tensors, such as ``fcos2d_head* (54 tensors)``."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        beginning = re.match(r"(?:\w*backbone\.)?[^.]*", key)
        groups.setdefault(beginning[0].rstrip("0123456789") if beginning else key, []).append(key)
    return [same[0] if len(same) == 1 else f"{group}* ({len(same)} tensors)" for group, same in groups.items()]
