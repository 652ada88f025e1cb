"""Which of its modules a module calls, and what takes their outputs: for modules with a ``forward`` of their own.

``torch.fx`` records one call of ``forward`` in which every other module is one step, so that only the module's own code
is followed. Code that depends on the values or the shapes of feature maps cannot be followed; nothing is known then.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import nn
from torch.fx import Graph, Node, Tracer

from vovnet.modules import is_identity_in_eval
from vovnet.processes import ForkSafeLock


class Slot(NamedTuple):
    """A place in a model: ``owner._modules[key]``."""

    owner: nn.Module
    key: str

    @property
    def module(self) -> nn.Module:
        """What is there."""
        module = self.owner._modules[self.key]
        assert module is not None
        return module

    def put(self, module: nn.Module) -> None:
        """Put another module there."""
        self.owner._modules[self.key] = module


_tracing = ForkSafeLock()
"""Held while torch.fx, which replaces methods of ``nn.Module`` meanwhile, records a call."""

Chain = list[Slot]
"""Modules of which each takes only the output of the one before, and is all that takes it."""


def is_plain_sequence(module: nn.Module) -> bool:
    """True if the module calls its children one after the other, as ``nn.Sequential`` does, and does nothing else."""
    sequential = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    return sequential and "forward" not in module.__dict__


class Calls:
    """The calls in a module's ``forward``, as they are recorded without and with its optional arguments."""

    def __init__(self, module: nn.Module) -> None:
        """Record the calls.

        Raises:
            Exception: of any type; the code cannot be followed.
        """
        self.root = module
        optional = {
            name: parameter.default
            for name, parameter in inspect.signature(type(module).forward).parameters.items()
            if parameter.default is not parameter.empty
        }
        self.graphs = [_record(module, {})]
        if optional:
            self.graphs.append(_record(module, optional))

    def steps(self) -> list[tuple[str, str]]:
        """Return what is called, as text."""
        return [(node.op, str(node.target)) for graph in self.graphs for node in graph.nodes]

    def foreign(self) -> set[int]:
        """Return the ``id`` of each module that this one calls though it belongs to another that has a ``forward``."""
        nodes = (node for graph in self.graphs for node in graph.nodes if node.op in ("call_module", "get_attr"))
        paths = {
            str(node.target) if node.op == "call_module" else str(node.target).rpartition(".")[0] for node in nodes
        }
        return {id(self.root.get_submodule(path)) for path in paths if path and self._slot(path) is None}

    def chains(self, wanted: type[nn.Module]) -> list[Chain]:
        """Return the chains that begin at modules of the type ``wanted``, as far as all recordings agree."""
        recorded = [{chain[0]: chain for chain in self._chains(graph, wanted)} for graph in self.graphs]
        firsts = [first for first in recorded[0] if all(first in chains for chains in recorded)]
        return [_common_start([chains[first] for chains in recorded]) for first in firsts]

    def _chains(self, graph: Graph, wanted: type[nn.Module]) -> Iterator[Chain]:
        used = Counter(id(self._module(node)) for node in graph.nodes if node.op == "call_module")
        read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
        for node in graph.nodes:
            if node.op != "call_module" or type(self._module(node)) is not wanted:
                continue
            chain: Chain = []
            current: Node | None = node
            while current is not None and current.op == "call_module":
                module, slot = self._module(current), self._slot(str(current.target))
                plain = len(current.args) == 1 and isinstance(current.args[0], Node) and not current.kwargs
                alone = used[id(module)] == 1 and current.target not in read
                if not is_identity_in_eval(module):
                    if slot is None or not plain or not alone:
                        break
                    chain.append(slot)
                current = next(iter(current.users)) if len(current.users) == 1 else None
            if chain:
                yield chain

    def _module(self, node: Node) -> nn.Module:
        return self.root.get_submodule(str(node.target))

    def _slot(self, path: str) -> Slot | None:
        """Return a module's place if it is the root's own, perhaps in lists; None if another module calls it."""
        owner_path, _, key = path.rpartition(".")
        names = owner_path.split(".") if owner_path else []
        owners = [self.root.get_submodule(".".join(names[: i + 1])) for i in range(len(names))]
        if any(_has_forward(owner) for owner in owners):
            return None
        return Slot(owners[-1] if owners else self.root, key)


def calls_of(module: nn.Module) -> Calls | None:
    """Return the calls in a module's ``forward``; None if they cannot be followed."""
    if "forward" in module.__dict__ or isinstance(module, torch.jit.ScriptModule) or not _has_forward(module):
        return None
    try:
        return Calls(module)
    except Exception:  # whatever a stranger's code raises for inputs that are no tensors
        return None


def _has_forward(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward or "forward" in module.__dict__


def _common_start(chains: list[Chain]) -> Chain:
    steps = zip(*chains, strict=False)  # as many as the shortest has
    return [step[0] for step in takewhile(lambda step: len(set(step)) == 1, steps)]


def _record(module: nn.Module, fixed: dict[str, object]) -> Graph:
    """Record a call of a module's double, which has the same modules and tensors, but attributes of its own."""
    shared = [*module.parameters(), *module.buffers(), *(part for part in module.modules() if part is not module)]
    double = copy.deepcopy(module, {id(value): value for value in shared})
    with _tracing, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _Recorder().trace(double, fixed or None)


class _Recorder(Tracer):
    """Follows a module's own code, but not that of the modules in it."""

    proxy_buffer_attributes = True  # a buffer that forward counts in is not changed

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def call_module(
        self, m: nn.Module, forward: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        # A sequence made in forward, or a module that another thread calls meanwhile, is in no place of the model.
        if m not in (self.submodule_paths or {}):
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)
