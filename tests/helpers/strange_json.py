"""JSON that a stranger may have written: hypothesis strategies that change a valid value, or the text of its file."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

NOT_ON_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Characters that a message in one line must not have: line breaks, control characters, lone surrogates."""
NESTED = 900
"""Levels of a deeply nested value: `json` reads it, a function that calls itself at each level may not."""

NUMBERS = (0, -1, 1, 5, 2**31, 2**63 - 1, 2**63, 2**64, -(2**65), 10**30, 10**400, 0.5, -0.0, 1e308, 1e-320)
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "",
    "5",
    "no",
    "null",
    "\x00",
    "\ud800",
    "\udcff.jpg",
    "a\nb",
    "../../x",
    "/etc/passwd",
    "${oc.env:HOME}",
    "x" * 5000,
)
CONTAINERS: tuple[Any, ...] = (
    [],
    {},
    [[]],
    [{}],
    [[1, 2]],
    [[[1]]],
    [1, [2], 3],
    [None],
    ["\ud800"],
    [float("nan")],
    [2**65],
    [0] * 5000,
    {"": 1},
    {"\ud800": {"\ud800": "\ud800"}},
    {"checkpoint_path": "/etc/passwd"},
)


def nested(depth: int = NESTED) -> Any:
    """A list in a list in a list."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def flat_values() -> st.SearchStrategy[Any]:
    """The values of :func:`strange_values` that are not nested deeply."""
    plain = st.sampled_from((None, True, False, "0", "False", *NUMBERS, *NOT_FINITE, *TEXTS, *CONTAINERS))
    return st.one_of(plain, st.integers(), st.floats(), st.text(max_size=20))


def strange_values() -> st.SearchStrategy[Any]:
    """Values that are of another type, size or form than anybody expects, each as JSON can hold it."""
    plain = st.sampled_from((None, True, False, *NUMBERS, *NOT_FINITE, *TEXTS, *CONTAINERS))
    return st.one_of(plain, st.just(NESTED).map(nested), st.integers(), st.floats(), st.text(max_size=20)).map(
        copy.deepcopy
    )


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """A copy of a JSON value with one to three changes at random places.

    A change replaces what stands at a place by a strange value or by another part of the same value, removes it, or
    adds an entry beside it. Any place may be hit, the whole value included.
    """
    changed = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        changed = _change(draw, changed)
    return changed


def mutated_text(value: Any) -> st.SearchStrategy[str]:
    """The text of a JSON file: a :func:`mutated` value, the valid text with a damage, or something else altogether.

    Lone surrogates are escaped (``\\ud800``), so the text can be written as UTF-8.
    """
    text = json.dumps(value)
    places = st.integers(0, len(text) - 1)
    return st.one_of(
        mutated(value).map(json.dumps),
        mutated(value).map(json.dumps),
        st.sampled_from(
            ("", "5", "null", "[]", '"x"', "{", "\ufeff{}", "NaN", "9" * 5000, "[" * 100_000, '{"a":' * 5000)
        ),
        places.map(lambda end: text[:end]),
        st.tuples(places, st.sampled_from(' {}[],:"\\0eE-\x00\ufffe')).map(
            lambda hit: text[: hit[0]] + hit[1] + text[hit[0] + 1 :]
        ),
    )


def _change(draw: st.DrawFn, value: Any) -> Any:
    paths = list(_paths(value))
    path = draw(st.sampled_from(paths))
    kind = draw(st.sampled_from(("replace", "replace", "replace", "move", "remove", "add")))
    if not path:
        return draw(strange_values()) if kind == "replace" else value
    *way, last = path
    parent = _at(value, tuple(way))
    if kind == "remove":
        del parent[last]
    elif kind == "add" and isinstance(parent, dict):
        parent[draw(st.one_of(st.sampled_from(("extra", "", "\ud800")), st.text(max_size=8)))] = draw(strange_values())
    elif kind == "add":
        parent.insert(last, draw(strange_values()))
    elif kind == "move":
        parent[last] = copy.deepcopy(_at(value, draw(st.sampled_from(paths))))
    else:
        parent[last] = draw(strange_values())
    return value


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every part of a value, but for those inside of long or deep ones."""
    yield path
    if len(path) > 20:
        return
    if isinstance(value, dict):
        for key in value:
            yield from _paths(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 20)):
            yield from _paths(value[index], (*path, index))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value
