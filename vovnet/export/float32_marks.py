"""OpenVINO files for bfloat16: coordinates and scores are computed in float32 there, too."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vovnet.export.operations import float32_operations, openvino_operations


def save_for_bf16(model: Any, path: Path) -> None:
    """Save an ``openvino.Model`` whose operations are marked where bfloat16 is too coarse.

    The mark is an operation's attribute ``precise``, which OpenVINO's plugin for CPUs heeds with the hint bf16, too.
    Python cannot set it, so it is put into the file.

    Args:
        model: it is changed, but computes the same.
        path: the ``.xml`` file.
    """
    openvino: Any = import_module("openvino")
    _without_replaced(model)
    openvino.save_model(model, path, compress_to_fp16=False)
    marked = frozenset(float32_operations(openvino_operations(openvino.Core().read_model(path))))
    tree = ElementTree.parse(path)
    for layer in tree.iterfind("layers/layer"):
        if layer.get("name") in marked:
            _information(layer).append(ElementTree.Element("attribute", name="precise", version="0"))
    written = path.with_name(f"marked-{path.name}")
    tree.write(written, encoding="utf-8", xml_declaration=True)
    os.replace(written, path)


def _without_replaced(model: Any) -> None:
    """Replace operations as OpenVINO does when it compiles, where their marks would be forgotten."""
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind not in _REPLACEMENTS or not node.get_output_element_type(0).is_real():
            continue
        made = _REPLACEMENTS[kind](node)
        if made is None:
            continue
        users, names = node.output(0).get_target_inputs(), node.output(0).get_names()
        for user in users:
            user.replace_source_output(made.output(0))
        made.output(0).set_names(names)


def _difference(node: Any) -> Any:
    return _operators().add(node.input_value(0), _with_minus_one("multiply", node.input_value(1)))


def _quotient(node: Any) -> Any:
    return _operators().multiply(node.input_value(0), _with_minus_one("power", node.input_value(1)))


def _with_minus_one(operator: str, value: Any) -> Any:
    """Return ``value`` · -1 or ``value`` ** -1.

    OpenVINO also replaces an operation with a constant of one number. So two equal results are computed, and one is
    taken, unless the value is constant, too.
    """
    op = _operators()
    apply, type_, rank = getattr(op, operator), value.get_element_type(), len(value.get_partial_shape())
    if value.get_node().get_type_name() == "Constant":
        return apply(value, op.constant(-1.0, type_))
    column = op.reshape(value, op.constant([*[0] * rank, 1]), True)
    return op.gather(apply(column, op.constant([-1.0, -1.0], type_)), op.constant(0), op.constant(-1))


def _reshaped(node: Any) -> Any:
    """Return an Unsqueeze or Squeeze as a Reshape; None if the new shape cannot be said by constants."""
    op = _operators()
    old, new = node.get_input_partial_shape(0), node.get_output_partial_shape(0)
    if new.rank.is_dynamic or old.rank.is_dynamic:
        return None
    sides = [side.get_length() if side.is_static else None for side in new]
    known = [side.get_length() if side.is_static else None for side in old]
    same = 0  # so many of the first sides stay where they are
    while same < min(len(sides), len(known)) and sides[same] == known[same] and 1 not in (sides[same], known[same]):
        same += 1
    shape = [(0 if place < same else -1) if side is None else side for place, side in enumerate(sides)]
    return op.reshape(node.input_value(0), op.constant(shape), True) if shape and shape.count(-1) < 2 else None


def _operators() -> Any:
    return import_module("openvino.opset14")


_REPLACEMENTS: dict[str, Callable[[Any], Any]] = {
    "Subtract": _difference,
    "Divide": _quotient,
    "Unsqueeze": _reshaped,
    "Squeeze": _reshaped,
}


def _information(layer: ElementTree.Element) -> ElementTree.Element:
    """Return an operation's ``rt_info``, which comes after its ``data`` and before its ``input``."""
    found = layer.find("rt_info")
    if found is None:
        found = ElementTree.Element("rt_info")
        layer.insert(0 if layer.find("data") is None else 1, found)
    return found
