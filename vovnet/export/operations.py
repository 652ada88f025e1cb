"""Which operations of an exported graph are the network, and which compute with coordinates and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_MULTIPLIES = frozenset(
    ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul", "Conv", "ConvTranspose", "Gemm")
)
"""Operators with weights, by the names of OpenVINO and of ONNX."""
_POOLS = frozenset(("ROIAlign", "RoiAlign"))


@dataclass(frozen=True)
class Operation:
    """One operation of a graph.

    Attributes:
        type: OpenVINO's or ONNX's name.
        inputs: for each input the name of the operation that computes it; None for constants.
    """

    type: str
    inputs: Sequence[str | None]

    @property
    def weighted(self) -> bool:
        """Whether it multiplies by weights."""
        return self.type in _MULTIPLIES and None in self.inputs[1:2]


def float_operations(graph: Mapping[str, Operation]) -> list[str]:
    """Return the operations that must stay in floating point: all but the network before its last layers.

    What prepares the image, decodes boxes and selects them computes with coordinates and scores, which 256 values
    cannot tell apart. The last layers, which compute little, return such numbers.

    Args:
        graph: name → operation, each after those that it takes inputs from.
    """
    weighted = {name for name, one in graph.items() if one.weighted}
    after: set[str] = set()
    for name, one in graph.items():
        if any(source in after or source in weighted for source in one.inputs):
            after.add(name)
    coordinates = _coordinates(graph)
    before: set[str] = set()
    for name in reversed(list(graph)):
        if name in weighted or name in before:
            leaves = [group for group in coordinates if name not in group]
            before.update(one for one in _sources(graph, name) if not any(one in group for group in leaves))
    return [name for name in graph if name not in before or not (name in weighted or name in after)]


def _coordinates(graph: Mapping[str, Operation]) -> list[set[str]]:
    """Return for each pooling what computes its boxes alone. Results that leave this group are coordinates."""
    pools = [name for name, one in graph.items() if one.type in _POOLS]
    maps = _with_sources(graph, [source for pool in pools for source in graph[pool].inputs[:1]])
    return [_with_sources(graph, graph[pool].inputs[1:]) - maps for pool in pools]


def _with_sources(graph: Mapping[str, Operation], names: Sequence[str | None]) -> set[str]:
    """Return operations and all that their results depend on."""
    found = {name for name in names if name is not None}
    for name in reversed(list(graph)):
        if name in found:
            found.update(_sources(graph, name))
    return found


def _sources(graph: Mapping[str, Operation], name: str) -> list[str]:
    return [source for source in graph[name].inputs if source is not None]


def float32_operations(graph: Mapping[str, Operation]) -> list[str]:
    """Return the operations that bfloat16 is too coarse for: :func:`float_operations`, and what they alone lead to.

    Where the network pools a box, arithmetic with the box's coordinates meets the network's maps. A coordinate of 100
    pixels has steps of half a pixel in bfloat16.

    Args:
        graph: as for that function.
    """
    found = set(float_operations(graph))
    for name, one in graph.items():
        sources = _sources(graph, name)
        if sources and not one.weighted and found.issuperset(sources):
            found.add(name)
    return [name for name in graph if name in found]


def openvino_operations(model: Any) -> dict[str, Operation]:
    """Return the operations of an ``openvino.Model``, each after those that it takes inputs from."""
    constants: set[str] = set()
    graph = {}
    for node in model.get_ordered_ops():
        name, kind = node.get_friendly_name(), node.get_type_name()
        sources = [value.get_node().get_friendly_name() for value in node.input_values()]
        if kind == "Constant" or (sources and constants.issuperset(sources)):
            constants.add(name)
        else:
            graph[name] = Operation(kind, [None if source in constants else source for source in sources])
    return graph


def onnx_operations(model: Any) -> dict[str, Operation]:
    """Return the operations of an ``onnx.ModelProto``, in its order; those without a name are given one."""
    constants = {one.name for one in model.graph.initializer}
    made: dict[str, str] = {}
    graph = {}
    for position, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{position}"
        if node.op_type == "Constant" or (node.input and all(one in constants for one in node.input)):
            constants.update(node.output)
            continue
        made.update(dict.fromkeys(node.output, node.name))
        graph[node.name] = Operation(node.op_type, [None if one in constants else made.get(one) for one in node.input])
    return graph
