"""The import graph of the sources, and the figures that tests/test_architecture.py holds them to.

``python tests/helpers/house.py [CHECKOUT]`` prints the figures.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

# From the ground up; a room may import itself and whatever stands before it.
FLOORS = ("vovnet", "adapters", "detection", "hub")
# Imported inside functions, upwards: only a recipe that names maskrcnn-benchmark's conventions needs legacy/.
LAZY_ARROWS = {
    ("vovnet.detection.models", "vovnet.detection.legacy"),
    ("vovnet.detection.zoo", "vovnet.detection.legacy"),
}

Graph = dict[str, set[str]]


def source_files(root: Path) -> dict[str, Path]:
    """Return the file of every module by its dotted name. The links inside vovnet/ are not followed."""
    found = {}
    for floor in FLOORS:
        for path in sorted((root / floor).rglob("*.py")):
            inside = path.relative_to(root / floor)
            if floor == "vovnet" and inside.parts[0] in FLOORS:
                continue
            parts = ["vovnet", *([] if floor == "vovnet" else [floor]), *inside.with_suffix("").parts]
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imported(module: str, path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and absolute name of every import of our own modules: nested, for type checkers, or by text."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(_parsed(path)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            # `from vovnet import hub` imports a room as surely as `import vovnet.hub`.
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and node.args:
            target = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0]
            if target in ("import_module", "__import__", "run_module") and isinstance(first, ast.Constant):
                names = [str(first.value)]
        for name in names:
            if name.split(".")[0] in FLOORS:
                yield node.lineno, name


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def room_of(module: str, files: Mapping[str, Path]) -> str:
    """Return the package that holds a module. A file directly in vovnet/ or detection/ is a room of its own."""
    if files[module].name == "__init__.py":
        return module
    package = module.rpartition(".")[0]
    return module if package in ("vovnet", "vovnet.detection") else package


def file_graph(files: Mapping[str, Path]) -> Graph:
    """Return, for every module, the modules whose files it imports; a package is its ``__init__.py``."""
    graph: Graph = {module: set() for module in files}
    for module, path in files.items():
        for _, name in imported(module, path):
            while name and name not in files:
                name = name.rpartition(".")[0]
            arrow = (room_of(module, files), room_of(name, files)) if name else None
            if name and name != module and arrow not in LAZY_ARROWS:
                graph[module].add(name)
    return graph


def room_graph(files: Mapping[str, Path]) -> Graph:
    """Return the arrows of :func:`file_graph` between rooms."""
    rooms: Graph = {}
    for module, targets in file_graph(files).items():
        room = room_of(module, files)
        rooms.setdefault(room, set()).update({room_of(target, files) for target in targets} - {room})
    return rooms


def circles(graph: Graph) -> list[list[str]]:
    """Return one circle for each group of nodes that reach one another."""
    found = []
    rest = {node: set(targets) for node, targets in graph.items()}
    while True:
        try:
            TopologicalSorter(rest).prepare()
            return found
        except CycleError as error:
            found.append(list(reversed(error.args[1])))
            group = _reach_one_another(rest, error.args[1][0])
            rest = {node: targets - group for node, targets in rest.items() if node not in group}


def _reach_one_another(graph: Graph, node: str) -> set[str]:
    return {other for other in _reachable(graph, node) if node in _reachable(graph, other)}


def _reachable(graph: Graph, node: str) -> set[str]:
    seen: set[str] = set()
    waiting = [node]
    while waiting:
        new = graph.get(waiting.pop(), set()) - seen
        seen |= new
        waiting += new
    return seen


def longest_chain(graph: Graph, inside: set[str]) -> list[str]:
    """Return the longest chain of imports among the nodes ``inside``, from the top down; a circle is one link."""

    @cache
    def chain(node: str) -> list[str]:
        circle = _reach_one_another(graph, node) | {node}
        below = {target for member in circle for target in graph[member] & inside} - circle
        return ["/".join(sorted(circle)), *max((chain(target) for target in sorted(below)), key=len, default=[])]

    return max((chain(node) for node in sorted(inside)), key=len)


def bare_any(files: Mapping[str, Path], package: str) -> tuple[int, int]:
    """Return how many parameters and returned values a package annotates as a bare ``Any``."""
    parameters = returns = 0
    for module, path in files.items():
        if module == package or module.startswith(package + "."):
            for node in ast.walk(_parsed(path)):
                if isinstance(node, ast.FunctionDef):
                    everything = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                    parameters += sum(_is_any(argument.annotation) for argument in everything)
                    returns += _is_any(node.returns)
    return parameters, returns


def _is_any(annotation: ast.expr | None) -> bool:
    return isinstance(annotation, ast.Name) and annotation.id == "Any"


def loose_files(root: Path, folder: str) -> list[str]:
    """Return the names of the Python files that lie directly in a folder."""
    return sorted(path.name for path in (root / folder).glob("*.py"))


def main(root: Path) -> None:
    """Print the figures of a checkout."""
    files = source_files(root)
    rooms = room_graph(files)
    # The package itself only re-exports what its rooms offer.
    detection = {room: targets for room, targets in rooms.items() if room.startswith("vovnet.detection.")}
    chain = longest_chain(detection, set(detection))
    arrows = sum(len(targets & set(detection)) for targets in detection.values())
    of_files, of_rooms = circles(file_graph(files)), circles(rooms)
    print(f"circles between files: {len(of_files)}; between rooms: {len(of_rooms)}")
    for circle in (*of_files, *of_rooms):
        print("   ", " → ".join(circle))
    for folder in ("detection", "vovnet"):
        print(f"loose files in {folder}/: {len(loose_files(root, folder))}")
    names = [name.replace("vovnet.detection.", "") for name in chain]
    print(f"floors of detection/: {len(chain)} ({' → '.join(names)}); arrows: {arrows}")
    parameters, returns = bare_any(files, "vovnet.fusion")
    print(f"bare Any in fusion: {parameters} parameters, {returns} returned values")
    lines: dict[str, int] = {}
    for module, path in files.items():
        lines[room_of(module, files)] = lines.get(room_of(module, files), 0) + len(path.read_text().splitlines())
    print(f"lines of Python by room ({sum(lines.values())} in all):")
    for room, count in sorted(lines.items()):
        print(f"    {count:5} {room}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve())
