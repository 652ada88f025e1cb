"""The rooms and their arrows: ``hub → detection → adapters → vovnet``, with the command line as a roof on top."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# From the ground up; a room may import itself and whatever stands before it.
ROOMS = ("vovnet", "adapters", "detection", "hub")
ROOF = "vovnet.cli"
# A package that is also a public function: `python -m vovnet.detection.train` must exist under torchrun's name for it.
# It is imported eagerly by its parent, so that the function, bound afterwards, stays.
SHARED_NAMES = {"vovnet.detection.train"}


def source_files() -> dict[str, Path]:
    """Dotted module name → file, each file once although links lead to it a second time."""
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            inside = path.relative_to(ROOT / room)
            if room == "vovnet" and inside.parts[0] in ROOMS:
                continue
            parts = ["vovnet", *([] if room == "vovnet" else [room]), *inside.with_suffix("").parts]
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


FILES = source_files()


def room_of(module: str) -> str:
    parts = module.split(".")
    if module == ROOF or module.startswith(ROOF + "."):
        return "roof"
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS[1:] else "vovnet"


def imported(module: str, path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything of ours that a file imports, at any depth, by statement or by text."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Import | ast.ImportFrom | ast.Call):
            continue
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
        elif node.args:
            target = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0]
            if target in ("import_module", "__import__", "run_module") and isinstance(first, ast.Constant):
                names = [str(first.value)]
        for name in names:
            if name.split(".")[0] in ROOMS:
                yield node.lineno, name


def test_every_room_has_files() -> None:
    assert {room_of(module) for module in FILES} >= set(ROOMS)


@pytest.mark.parametrize("module", FILES)
def test_imports_follow_the_arrows(module: str) -> None:
    order = (*ROOMS, "roof")
    here = order.index(room_of(module))
    against = [
        f"{FILES[module].relative_to(ROOT)}:{line} imports {name}"
        for line, name in imported(module, FILES[module])
        if order.index(room_of(name)) > here or name.split(".")[0] != "vovnet"
    ]
    assert not against, "\n".join(against)


def test_nobody_imports_the_command_line() -> None:
    guests = [m for m, path in FILES.items() if m != ROOF and any(room_of(n) == "roof" for _, n in imported(m, path))]
    # `python -m vovnet` is the command line itself.
    assert set(guests) <= {"vovnet.__main__"}


def test_the_checker_sees_every_kind_of_import(tmp_path: Path) -> None:
    path = tmp_path / "engine.py"
    path.write_text(
        "import vovnet.hub\nfrom vovnet import cli\nfrom .. import hub as h\nfrom ..adapters import fpn\n"
        "def late():\n    from vovnet.cli import main\n"
        "    importlib.import_module('vovnet.hub.cards')\n    import hub\n"
    )
    names = {name for _, name in imported("vovnet.detection.engine", path)}
    assert names == {
        "vovnet.hub",
        "vovnet.cli",
        "vovnet.adapters.fpn",
        "vovnet.cli.main",
        "vovnet.hub.cards",
        "hub",
    }
    assert {room_of(name) for name in names - {"hub"}} == {"hub", "roof", "adapters"}


def test_the_command_line_imports_nothing_heavy_at_the_top() -> None:
    tree = ast.parse(FILES[ROOF].read_text(encoding="utf-8"))
    allowed = set(sys.stdlib_module_names) | {"typer", "click", "vovnet.errors"}
    for node in tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name in allowed or name.split(".")[0] in allowed, f"line {node.lineno}: import {name} in a function"


def test_no_adapter_knows_a_backbone_by_name() -> None:
    import timm

    known = set(timm.list_models()) | {"vovnet27_slim", "vovnet39", "vovnet57"}
    for module, path in FILES.items():
        if room_of(module) != "adapters":
            continue
        texts = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)}
        assert not {t for t in texts if isinstance(t, str)} & known, path


def defined_names(path: Path) -> set[str]:
    """Public names that a module binds at its top level, without what it only imports as a module."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
    return {name for name in names if not name.startswith("_")}


def test_no_submodule_shares_the_name_of_a_public_function() -> None:
    functions: dict[str, set[str]] = {}
    for module, path in FILES.items():
        # A function may be offered by any package above the file that defines it.
        parents = module.split(".")
        for depth in range(1, len(parents) + 1):
            functions.setdefault(".".join(parents[:depth]), set()).update(defined_names(path))
    clashes = {
        module
        for module in FILES
        if "." in module and module.rpartition(".")[2] in functions.get(module.rpartition(".")[0], set())
    }
    assert clashes <= SHARED_NAMES


def run_fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_reaches_no_network_and_loads_no_extra() -> None:
    """``vovnet`` needs the base dependencies alone; with the extras, importing a room still opens no socket."""
    run_fresh(
        "import socket, sys\n"
        "def refuse(*args, **kwargs): raise RuntimeError('a socket was opened at import')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "import vovnet\n"
        "heavy = {'matplotlib', 'pycocotools', 'omegaconf', 'tensorboard'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "rooms = {'vovnet.adapters', 'vovnet.detection', 'vovnet.hub', 'vovnet.cli'} & set(sys.modules)\n"
        "assert not rooms, rooms\n"
        "import vovnet.adapters, vovnet.detection, vovnet.hub\n"
        "late = {'matplotlib', 'tensorboard'} & set(sys.modules)\n"
        "assert not late, late\n"
    )


def test_the_one_shared_name_stays_a_function() -> None:
    run_fresh(
        "import vovnet.detection\n"
        "first = vovnet.detection.train\n"
        "import vovnet.detection.train\n"
        "from vovnet.detection.train import __main__\n"
        "assert callable(first) and vovnet.detection.train is first, vovnet.detection.train\n"
    )


def test_links_lead_to_the_rooms() -> None:
    links = [ROOT / "vovnet" / room for room in ROOMS[1:]]
    if not any(link.is_symlink() for link in links):
        pytest.skip("an unpacked sdist has no links: the rooms are found through the installation")
    for link in links:
        assert link.is_symlink()
        assert link.readlink() == Path("..") / link.name


def test_files_fit_in_a_head() -> None:
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in FILES.items()}
    # One file an architecture, as in timm.
    del lines["vovnet.vovnet"]
    long = {module: count for module, count in lines.items() if count > 400}
    assert not long, f"split these files (about 300 lines are meant): {long}"
