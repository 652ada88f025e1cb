"""Give a detector other sizes and thresholds for one run, without writing into its ``config.json``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from vovnet.errors import InputError
from vovnet.results.run_options import RunSettings


@contextmanager
def adjusted(detector: nn.Module, settings: RunSettings) -> Iterator[None]:
    """Give a detector other sizes and thresholds for the length of a ``with`` block.

    Raises:
        InputError: the detector has no such value, or it is built into an exported file.
    """
    if hasattr(detector, "exported"):
        settings.check_exported()
    former: list[tuple[Any, str, Any]] = []
    try:
        for owner, attribute, value in _changes(detector, settings):
            former.append((owner, attribute, getattr(owner, attribute)))
            setattr(owner, attribute, value)
        yield
    finally:
        for owner, attribute, value in reversed(former):
            setattr(owner, attribute, value)


def _changes(detector: nn.Module, settings: RunSettings) -> Iterator[tuple[Any, str, Any]]:
    """Yield what to change: an object, the name of its attribute and the new value."""
    transform: Any = getattr(detector, "transform", None)
    size, longest = settings.size, settings.max_size
    if size is not None:
        sizes = _known(transform, "min_size", "size")
        if longest is None:
            longest = max(size, round(_known(transform, "max_size", "size") * size / sizes[-1]))
        yield transform, "min_size", (size,)
    if longest is not None:
        _known(transform, "max_size", "max_size")
        yield transform, "max_size", longest
    # Two-stage detectors have the thresholds in their heads, one-stage detectors in themselves.
    heads: Any = getattr(detector, "roi_heads", detector)
    if settings.score is not None:
        _known(heads, "score_thresh", "score")
        yield heads, "score_thresh", settings.score
    if settings.nms is not None:
        _known(heads, "nms_thresh", "nms")
        yield heads, "nms_thresh", settings.nms
    if settings.max_detections is not None:
        yield from _more_detections(detector, heads, settings.max_detections)


def _more_detections(detector: nn.Module, heads: Any, limit: int) -> Iterator[tuple[Any, str, Any]]:
    own = _known(heads, "detections_per_img", "max_detections")
    yield heads, "detections_per_img", limit
    if limit <= own:
        return
    factor = limit / own
    rpn: Any = getattr(detector, "rpn", None)
    for key in ("_pre_nms_top_n", "_post_nms_top_n"):
        if isinstance(counts := getattr(rpn, key, None), dict):
            yield rpn, key, {**counts, "testing": math.ceil(counts["testing"] * factor)}
    if hasattr(detector, "topk_candidates"):
        candidates: Any = detector.topk_candidates
        yield detector, "topk_candidates", math.ceil(candidates * factor)


def _known(owner: Any, attribute: str, option: str) -> Any:
    value = getattr(owner, attribute, None)
    if value is None:
        raise InputError(f"{option}: this detector has no '{attribute}' to change; leave the option out")
    return value
