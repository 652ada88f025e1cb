"""Differences between the tensors of a file and of a network."""

from __future__ import annotations

from vovnet.checkpoints.shapes import closest, compare_shapes


def test_differences_are_counted_and_false_when_there_are_none() -> None:
    assert not compare_shapes({"a": (1,)}, {"a": (1,)})
    differences = compare_shapes({"a": (1,), "b": (2,)}, {"b": (3,), "c": (4,)})
    assert len(differences) == 3
    assert str(differences) == "missing: a; left over: c; other shapes: b is (3,) and should be (2,)"
    assert closest({"one": {"a": (1,)}, "two": {"a": (1,), "b": (2,)}}, {"b": (2,), "a": (1,)}) == "two"


def test_a_brief_word_counts_all_and_names_a_few() -> None:
    expected = {f"key {i}": (1,) for i in range(5)}
    brief = compare_shapes(expected, {"key 0": (2,)}).brief()
    assert brief == "4 missing (key 1, key 2, key 3, …); 1 of another shape (key 0 (2,), not (1,))"
