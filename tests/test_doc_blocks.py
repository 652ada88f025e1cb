"""Every code block of the README and the pages runs, or says why it cannot (tests/helpers/doc_blocks.py).

`make test` checks what needs no time: syntax, imports, attributes of modules, data, and the comments. `make prove` runs
the blocks, those of a page in order, in one folder with small inputs and short trainings (tests/helpers/doc_vovnet.py).
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from doc_blocks import DATA, ELSEWHERE, NO_CODE, NOTEBOOKS, PAGES, PYTHON, ROOT, SHELL, Block, blocks_of, markers_of
from PIL import Image

from vovnet.detection.data import synthetic

ALL = [block for page in [*PAGES, *NOTEBOOKS] for block in blocks_of(page)]
RUNNING = [page for page in PAGES if any(block.runs for block in blocks_of(page))]
MAKES_PHOTOS = {"own_data.md"}
"""Pages that make the folder that others have."""
WORDY = 10
"""Characters of a reason, at least."""


def of(*languages: str) -> list[Block]:
    return [block for block in ALL if block.language in languages]


def names(pages: list[Path]) -> list[str]:
    return [page.relative_to(ROOT).as_posix() for page in pages]


def test_every_fence_is_read() -> None:
    """Otherwise a block with a slip in its fence would not be checked."""
    for page in PAGES:
        fences = [line for line in page.read_text(encoding="utf-8").splitlines() if line.lstrip().startswith("```")]
        assert len(fences) == 2 * len(blocks_of(page)), page


def test_every_language_is_known() -> None:
    """Give output the language ``text``."""
    known = {*SHELL, *PYTHON, *DATA, *ELSEWHERE, *NO_CODE}
    assert not [block.place for block in ALL if block.language not in known]


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_reasons_are_given_and_belong_to_a_block(page: Path) -> None:
    """``<!-- not run: REASON -->`` stands on a line of its own, right before the fence of a program."""
    blocks = blocks_of(page)
    marked = [block for block in blocks if block.reason is not None]
    assert len(marked) == markers_of(page), "a comment without a block"
    for block in marked:
        assert len(str(block.reason)) >= WORDY, block.place
        assert block.language in SHELL + PYTHON + ELSEWHERE, f"{block.place} is no program"
    assert not [block.place for block in blocks if block.language in ELSEWHERE and block.reason is None]


def test_shell_blocks_are_sound() -> None:
    for block in of(*SHELL):
        done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block.place}: {done.stderr}"


def test_data_blocks_are_sound() -> None:
    for block in of(*DATA):
        assert json.loads(block.text) if block.language == "json" else yaml.safe_load(block.text) is not Ellipsis


CLIENTS = {"fiftyone", "lightly_train", "ptflops", "pytorch_grad_cam", "sahi"}
"""Programs that use ours, on pages about them, and that are not installed here."""


def modules_of(tree: ast.AST, place: str) -> dict[str, ModuleType]:
    """The modules that a block imports, by their names in it; what it imports from modules exists."""
    found: dict[str, ModuleType] = {}
    for node in ast.walk(tree):
        wanted = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        wanted += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        for name in wanted:
            top = name.partition(".")[0]
            if importlib.util.find_spec(top) is None:
                assert top in CLIENTS, f"{place}: no module {name}"
                continue
            module = importlib.import_module(name)
            if isinstance(node, ast.ImportFrom):
                assert all(hasattr(module, alias.name) for alias in node.names), f"{place}: {ast.unparse(node)}"
            else:
                (alias,) = (alias for alias in node.names if alias.name == name)  # type: ignore[attr-defined]
                found[alias.asname or top] = module if alias.asname else sys.modules[top]
    return found


def dotted(node: ast.Attribute) -> list[str]:
    """The names of ``a.b.c``, or nothing if it does not begin with a name."""
    parts: list[str] = [node.attr]
    inner: ast.expr = node.value
    while isinstance(inner, ast.Attribute):
        parts.append(inner.attr)
        inner = inner.value
    return [inner.id, *reversed(parts)] if isinstance(inner, ast.Name) else []


def test_python_blocks_name_what_exists() -> None:
    """Every import, and every attribute of an imported module."""
    for page in [*PAGES, *NOTEBOOKS]:
        known: dict[str, ModuleType] = {}
        for block in blocks_of(page):
            if block.language not in PYTHON:
                continue
            tree = ast.parse(block.text, block.place)
            known |= modules_of(tree, block.place)
            for node in ast.walk(tree):
                first, *rest = (dotted(node) if isinstance(node, ast.Attribute) else []) or [""]
                value: Any = known.get(first)
                for name in rest:
                    if not isinstance(value, ModuleType):
                        break
                    assert hasattr(value, name), f"{block.place}: {ast.unparse(node)}"
                    value = getattr(value, name)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of doc_folder."""
    from doc_folder import write_folder

    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_folder()
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", RUNNING, ids=names(RUNNING))
def test_blocks_run(page: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a page in order; Python blocks share their names, as the cells of a notebook do."""
    from doc_folder import write_exported
    from doc_vovnet import run_block, small

    from vovnet.detection.config.loading import load_recipe

    folder = tmp_path / "page"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    write_exported(page.read_text(encoding="utf-8"))
    if page.name in MAKES_PHOTOS:
        shutil.rmtree("photos")
    monkeypatch.setattr("vovnet.detection.load_recipe", lambda recipe, keys=(): load_recipe(recipe, small(keys)))
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of(page):
        if block.runs and block.language in SHELL:
            run_block(block.text, block.place)
        elif block.runs:
            exec(compile(block.text, block.place, "exec"), names)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=names(NOTEBOOKS))
def test_notebooks_run(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cells in order, on few images and with a short training."""
    from doc_vovnet import run_block

    monkeypatch.chdir(tmp_path)
    draw = synthetic.generate_shapes
    few: dict[str, Any] = {"train": 12, "val": 4, "size": (64, 64)}
    monkeypatch.setattr(synthetic, "generate_shapes", lambda folder, **given: draw(folder, **given | few))
    known: dict[str, Any] = {}
    for cell in blocks_of(notebook):
        if not cell.runs:
            continue
        if cell.language in PYTHON:
            exec(compile(cell.text, cell.place, "exec"), known)
            continue
        run_block(cell.text, cell.place)
    assert (tmp_path / "detector.zip").stat().st_size > 0


def drawn(number: int) -> Image.Image:
    """The image of that number among the generated shapes of the tutorials."""
    return synthetic.draw_image(np.random.default_rng([0, number]), (128, 128), 3)[0]


def alike(shown: str, made: Image.Image) -> float:
    """The share of a page's image that is what its code made, up to rounding; detections are drawn over the rest."""
    pixels = [np.asarray(image.convert("RGB"), int) for image in (Image.open(ROOT / "docs" / shown), made)]
    assert pixels[0].shape == pixels[1].shape
    return float((abs(pixels[0] - pixels[1]).max(-1) <= 8).mean())


def test_images_of_the_tutorials_show_what_their_code_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a detector finds in them differs from machine to machine, so the images below the drawings are compared."""
    assert alike("tutorials/quickstart.png", drawn(402)) > 0.7
    monkeypatch.chdir(tmp_path)
    Path("shapes/val").mkdir(parents=True)
    for number in range(201, 241):
        drawn(number).save(f"shapes/val/{number:06d}.png")
    (block,) = (block for block in of(*PYTHON) if "sheet.save" in block.text)
    exec(compile(block.text, block.place, "exec"), {})
    assert alike("tutorials/own_data.png", Image.open("sheet.png")) > 0.7
    assert alike("tutorials/own_data.png", Image.open("sheet.png").rotate(180)) < 0.5


def test_every_image_has_a_maker() -> None:
    """These are compared above; drawings (SVG) are made by docs/site/figures.py, and compared in test_site.py."""
    files = {path for suffix in ("png", "jpg", "gif", "webp") for path in (ROOT / "docs").rglob(f"*.{suffix}")}
    assert {path.name for path in files} == {"quickstart.png", "own_data.png"}
