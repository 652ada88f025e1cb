"""The files that a layer passes on its way to its fused copy, and what their signatures say."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from house import imported
from timm.layers import ConvNormAct as TimmConvNormAct
from walks import files_passed

import vovnet.fusion
from vovnet import fuse
from vovnet.ops.algorithms import ALGORITHMS, PRECISIONS
from vovnet.vovnet import ConvNormAct, OsaBlock

FOLDER = Path(vovnet.fusion.__file__).parent
# A file imports only those before it.
ORDER = ["base", "chaining", "layers", "linear", "folding", "sequences", "calls", "plain", "residual"]
ORDER += ["pyramid", "two_stage", "one_stage", "detectors", "fuser", "__init__"]
WALK = {"fuser", "folding", "layers", "chaining", "base", "sequences", "plain"}


def imports(name: str) -> set[str]:
    """Files of the room that a file imports anywhere, also in functions and for type checkers."""
    package = "vovnet.fusion"
    names = {found for _, found in imported(f"{package}.{name}", FOLDER / f"{name}.py")}
    return {found.split(".")[2] for found in names if found.startswith(f"{package}.")}


def test_the_order_names_every_file() -> None:
    assert sorted(ORDER) == sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", ORDER)
def test_imports_go_one_way(name: str) -> None:
    assert imports(name) <= set(ORDER[: ORDER.index(name)])


def test_the_walk_goes_down_step_by_step() -> None:
    assert "folding" in imports("fuser")
    assert "layers" in imports("folding")
    assert "chaining" in imports("layers")
    assert imports("chaining") == {"base"}
    assert not imports("base")


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConvNormAct(16, 16, 3),
        lambda: TimmConvNormAct(16, 16, 3),
        lambda: OsaBlock(16, 16, 16, 3, identity=True),
    ],
)
def test_a_layer_passes_seven_files(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOVNET_OPS", "off")
    model = make().eval()
    passed = {Path(path).stem for path in files_passed(lambda: fuse(model)) if path.startswith("vovnet/fusion/")}
    assert passed <= WALK
    assert {"fuser", "folding", "layers", "base"} <= passed


def test_a_classifier_loads_nothing_for_detectors() -> None:
    code = (
        "import sys, timm, vovnet\n"
        "from torchvision.models.detection.rpn import RPNHead\n"
        "vovnet.fuse(timm.create_model('vovnet27_slim').eval())\n"
        "assert 'vovnet.fusion.detectors' not in sys.modules\n"
        "fused = vovnet.fuse(RPNHead(16, 3).eval())\n"
        "assert type(fused) is sys.modules['vovnet.fusion.two_stage'].FusedRpnHead\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={"VOVNET_OPS": "off", "PYTHONPATH": str(FOLDER.parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_no_any_stands_for_a_type() -> None:
    bare = []
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                spec = node.args
                named = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg]
                kinds = [node.returns, *(arg.annotation for arg in named if arg is not None)]
                bare += [
                    f"{path.name}:{node.lineno}" for kind in kinds if isinstance(kind, ast.Name) and kind.id == "Any"
                ]
    assert not bare


def test_editors_see_the_values_of_the_arguments() -> None:
    hints = get_type_hints(fuse)
    assert get_args(hints["precision"]) == PRECISIONS == ("fp32", "bf16")
    assert get_args(hints["algorithm"]) == ALGORITHMS == ("auto", "direct")
