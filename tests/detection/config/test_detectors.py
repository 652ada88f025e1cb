"""The table of detectors is the only place that tells them apart: no other code asks for a detector's name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from house import source_files

from vovnet.detection.config.detectors import DETECTORS

ROOT = Path(__file__).resolve().parents[3]
MAY_ASK = ("vovnet.detection.config.detectors", "vovnet.detection.legacy.")
"""The table itself, and the keys of files that are older than it. Functions that take any detector of torchvision may
ask for its class."""
NAMES = {text for name, facts in DETECTORS.items() for text in (name, facts.builder)}
BEGINNINGS = tuple(sorted(NAMES))
_TEXT_METHODS = ("startswith", "endswith", "removeprefix", "partition", "find", "count")


def questions(source: str) -> Iterator[str]:
    """Yield the places where code compares something with a detector's name, or with the beginning of one."""
    for node in ast.walk(ast.parse(source)):
        texts: list[str] = []
        if isinstance(node, ast.Compare | ast.MatchValue):
            texts = [text for text in constants(node) if text in NAMES]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _TEXT_METHODS:
            found = (text for argument in node.args for text in constants(argument))
            texts = [text for text in found if text.startswith(BEGINNINGS)]
        for text in texts:
            yield f"line {node.lineno}: {text!r}"  # type: ignore[attr-defined]


def constants(node: ast.AST) -> list[str]:
    return [one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)]


def test_no_code_asks_for_a_detectors_name() -> None:
    asked = [
        f"{path.relative_to(ROOT)}, {question}"
        for module, path in source_files(ROOT).items()
        if not module.startswith(MAY_ASK)
        for question in questions(path.read_text(encoding="utf-8"))
    ]
    assert asked == []


@pytest.mark.parametrize(
    "code",
    [
        "if recipe.detector == 'mask_rcnn': pass",
        "masks = recipe.detector in ('faster_rcnn', 'mask_rcnn')",
        "match kind:\n    case 'fcos':\n        pass",
        "mask = name.startswith('mask_rcnn')",
        "mask = name.startswith(('maskrcnn_', 'other'))",
    ],
)
def test_questions_are_seen(code: str) -> None:
    assert [*questions(code)]


@pytest.mark.parametrize(
    "code", ["detector = 'mask_rcnn'", "RETINANET = Kind(DETECTORS['retinanet'])", "kept = facts.annotation == 'masks'"]
)
def test_names_in_tables_are_no_questions(code: str) -> None:
    assert not [*questions(code)]
