"""The rooms and their arrows: ``hub → detection → adapters → vovnet``, with the command line as a roof on top."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from house import FLOORS, circles, file_graph, imported, loose_files, room_graph, source_files
from pages import find_page
from walks import files_passed

ROOT = Path(__file__).resolve().parent.parent
ROOF = "vovnet.cli"
# A package that is also a public function: `python -m vovnet.detection.train` must exist under torchrun's name for it.
# It is imported eagerly by its parent, so that the function, bound afterwards, stays.
SHARED_NAMES = {"vovnet.detection.train"}
FILES = source_files(ROOT)


def floor_of(module: str) -> str:
    parts = module.split(".")
    if module == ROOF or module.startswith(ROOF + "."):
        return "roof"
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS[1:] else "vovnet"


def test_every_floor_has_files() -> None:
    assert {floor_of(module) for module in FILES} >= set(FLOORS)


@pytest.mark.parametrize("module", FILES)
def test_imports_follow_the_arrows(module: str) -> None:
    order = (*FLOORS, "roof")
    here = order.index(floor_of(module))
    against = [
        f"{FILES[module].relative_to(ROOT)}:{line} imports {name}"
        for line, name in imported(module, FILES[module])
        if order.index(floor_of(name)) > here or name.split(".")[0] != "vovnet"
    ]
    assert not against, "\n".join(against)


def test_nobody_imports_the_command_line() -> None:
    guests = [
        module
        for module, path in FILES.items()
        if floor_of(module) != "roof" and any(floor_of(name) == "roof" for _, name in imported(module, path))
    ]
    assert not guests


@pytest.mark.parametrize("graph", [file_graph(FILES), room_graph(FILES)], ids=["files", "rooms"])
def test_imports_make_no_circle(graph: dict[str, set[str]]) -> None:
    assert not circles(graph), "\n".join(" → ".join(circle) for circle in circles(graph))


def test_the_checker_finds_a_circle_in_each_group() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"f", "a"}, "f": {"e"}}
    assert [set(circle) for circle in circles(graph)] in ([{*"abc"}, {*"ef"}], [{*"ef"}, {*"abc"}])
    assert not circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})


def test_the_drawings_show_imports_that_exist() -> None:
    rooms = room_graph(FILES)
    drawings = re.findall(r"^```mermaid\n(.*?)^```", find_page("architecture.md").read_text(), re.M | re.S)
    assert len(drawings) == 2
    for prefix, drawing in zip(("vovnet.detection", "vovnet"), drawings, strict=True):
        names = {"vovnet_py": "vovnet", "ops_build": "ops.build", "ops_shipping": "ops.shipping"}
        names["export_web"] = "export.web"
        for upper, lower in re.findall(r"(\w+) --> (\w+)", drawing):
            assert f"{prefix}.{names.get(lower, lower)}" in rooms[f"{prefix}.{names.get(upper, upper)}"], (upper, lower)
    drawn = set(re.findall(r"\w+", drawings[0]))
    assert {room.rpartition(".")[2] for room in rooms if room.startswith("vovnet.detection.")} - drawn <= {"recipes"}


@pytest.mark.parametrize(("folder", "most"), [("detection", 6), ("vovnet", 9)])
def test_files_lie_in_rooms(folder: str, most: int) -> None:
    files = loose_files(ROOT, folder)
    assert len(files) <= most, f"put these files into rooms: {files}"


def test_the_way_from_a_recipe_to_its_detector_is_short_and_straight() -> None:
    from vovnet.detection import build_detector, load_recipe

    overrides = ["model.pretrained=false", "model.num_classes=3", "model.norm=bn"]
    passed = files_passed(lambda: build_detector(load_recipe("mask_rcnn_vovnet39_fpn", overrides)))
    assert 0 < len(passed) <= 16, sorted(passed)
    assert not circles(passed)


def test_the_way_from_a_layer_to_its_fused_copy_is_short_and_straight(monkeypatch: pytest.MonkeyPatch) -> None:
    from vovnet.fusion import fuse

    monkeypatch.setenv("VOVNET_OPS", "off")
    model = timm.create_model("vovnet27_slim").eval()
    passed = files_passed(lambda: fuse(model))
    in_fusion = sorted(path for path in passed if path.startswith("vovnet/fusion/"))
    assert 0 < len(in_fusion) <= 6, in_fusion
    assert not circles(passed)


def test_the_checker_sees_every_kind_of_import(tmp_path: Path) -> None:
    path = tmp_path / "engine.py"
    path.write_text(
        "import vovnet.hub\nfrom vovnet import cli\nfrom .. import hub as h\nfrom ..adapters import fpn\n"
        "def late():\n    from vovnet.cli import main\n"
        "    importlib.import_module('vovnet.hub.cards')\n    import hub\n"
    )
    names = {name for _, name in imported("vovnet.detection.engine", path)}
    assert names == {"vovnet.hub", "vovnet.cli", "vovnet.adapters.fpn", "vovnet.cli.main", "vovnet.hub.cards", "hub"}
    assert {floor_of(name) for name in names - {"hub"}} == {"hub", "roof", "adapters"}


@pytest.mark.parametrize("module", [module for module in FILES if floor_of(module) == "roof"])
def test_the_command_line_is_thin(module: str) -> None:
    text = FILES[module].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    allowed = set(sys.stdlib_module_names) | {"typer", "vovnet.errors"}
    for node in ast.parse(text).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            light = name in allowed or name.split(".")[0] in allowed or name.startswith(ROOF)
            assert light, f"line {node.lineno}: import {name} in a function"


def test_no_adapter_knows_a_backbone_by_name() -> None:
    known = set(timm.list_models())
    for module, path in FILES.items():
        if floor_of(module) != "adapters":
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
        "heavy = {'matplotlib', 'pycocotools', 'pydantic', 'tensorboard'} & set(sys.modules)\n"
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
    links = [ROOT / "vovnet" / room for room in FLOORS[1:]]
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
