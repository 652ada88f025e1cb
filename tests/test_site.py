"""What `make docs` refuses. CI builds the whole site; here small ones are built with its configuration."""

import re
import runpy
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("mkdocs", reason="the extra docs is not installed")
pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")

import griffe
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

ROOT = Path(__file__).resolve().parent.parent
CODE = '''"""A package."""


def doubled(x: int) -> int:
    """Return twice ``x``."""
    return 2 * x


def quadrupled(x: int) -> int:
    """Return :func:`~small.doubled` of that, but no :class:`small.Other`."""
    return 4 * x
'''
HOME = "# Home\n\n[code](code.md#small)\n"
PAGE = """# Code

[home](index.md), [its anchor](#small) and [outside](../README.md)

## Small

::: small.doubled

::: small.quadrupled
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The folder of a sound site of two pages and a package of one function."""
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[0]
    (tmp_path / "mkdocs.yml").write_text(f"{config}\nnav: [index.md, code.md]\n", encoding="utf-8")
    (tmp_path / "docs").mkdir()
    shutil.copytree(ROOT / "docs" / "site", tmp_path / "docs" / "site")
    (tmp_path / "docs" / "index.md").write_text(HOME)
    (tmp_path / "docs" / "code.md").write_text(PAGE)
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "__init__.py").write_text(CODE)
    return tmp_path


def built(site: Path) -> str:
    build(load_config(str(site / "mkdocs.yml")))
    return (site / "build" / "site" / "code" / "index.html").read_text(encoding="utf-8")


def test_a_sound_site_is_built_and_loads_nothing_from_elsewhere(site: Path) -> None:
    page = built(site)
    assert "Return twice" in page
    assert re.search(r'href="#small.doubled"[^>]*><code>doubled</code>', page)
    assert ":class:" not in page
    assert "https://github.com/vovnet/vovnet/blob/main/README.md" in page
    loaded = re.findall(
        r'<(?:script|img|iframe)[^>]* src="([^"]+)"|<link rel="(?:stylesheet|preconnect)" href="([^"]+)"', page
    )
    assert loaded
    assert not [address for pair in loaded for address in pair if "//" in address]
    assert 'data-md-component="source"' not in page  # it asks GitHub for stars
    assert (site / "build" / "site" / "search" / "search_index.json").is_file()


def test_the_detector_of_a_quickstart_is_shown_where_make_docs_has_written_its_page(site: Path) -> None:
    (site / "docs" / "code.md").write_text(f"{PAGE}\n<!-- demo -->\n")
    assert "<iframe" not in built(site)
    assert not (site / "build" / "site" / "demo").exists()
    (site / "build" / "demo" / "ort").mkdir(parents=True)
    (site / "build" / "demo" / ".lock").touch()
    for name in ("index.html", "ort/ort.js"):
        (site / "build" / "demo" / name).write_text(name)
    (address,) = re.findall(r'<iframe[^>]* src="([^"]+)"', built(site))
    shown = (site / "build" / "site" / "code" / address).resolve()
    assert shown.read_text() == "index.html"
    assert (shown.parent / "ort" / "ort.js").is_file()
    assert not (shown.parent / ".lock").exists()


FAULTS = {
    "a broken link": ("docs/code.md", "index.md", "nowhere.md"),
    "a broken anchor": ("docs/code.md", "(#small)", "(#nowhere)"),
    "a broken anchor of another page": ("docs/index.md", "code.md#small", "code.md#nowhere"),
    "a missing docstring": ("small/__init__.py", '    """Return twice ``x``."""\n', ""),
    "a missing image": ("docs/code.md", "[home](index.md)", "![home](nowhere.png)"),
    "a page that nothing leads to": ("mkdocs.yml", "nav: [index.md, code.md]", "nav: [index.md]"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_fails_the_build(fault: str, site: Path) -> None:
    name, good, bad = FAULTS[fault]
    text = (site / name).read_text(encoding="utf-8")
    assert text.count(good) == 1
    (site / name).write_text(text.replace(good, bad), encoding="utf-8")
    with pytest.raises(Abort, match="1 warning"):
        built(site)


def test_every_public_name_is_in_the_reference() -> None:
    import vovnet
    from vovnet import adapters, detection, hub, ops

    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    listed = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)", page, re.MULTILINE)}
    public = {name for package in (vovnet, adapters, detection, hub, ops) for name in package.__all__}
    assert public - listed <= {"__version__"}


def test_the_pages_that_the_code_names_exist() -> None:
    folders = [ROOT / name for name in ("vovnet", "adapters", "detection", "hub", "benchmarks", "tests", ".github")]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in {".py", ".yaml", ".yml", ".md"}]
    named = {name for path in files for name in re.findall(r"\bdocs/[\w-]+/\w+\.\w+", path.read_text(encoding="utf-8"))}
    assert "docs/how-to/reproduce.md" in named
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_the_pages_name_what_exists_and_the_reference_has_it() -> None:
    package = griffe.load("vovnet", search_paths=[str(ROOT)], resolve_aliases=True)

    def found(name: str) -> griffe.Object:
        one = package[name.partition(".")[2]]
        return one.final_target if isinstance(one, griffe.Alias) else one

    reference = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    listed = {found(name).path for name in re.findall(r"^::: (\S+)", reference, re.MULTILINE)}
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    texts = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    named = set(re.findall(r"\bvovnet(?:\.[A-Za-z_]\w*)+(?!\w*[./]\w*\.md)", texts)) - {"vovnet.md", "vovnet.py"}
    objects = [found(name) for name in named]
    assert len(objects) > 20
    missing = {one.path for one in objects if one.is_function or one.is_class} - listed
    assert not missing, "docs/reference/python.md lacks these"


def test_the_figures_are_current() -> None:
    """They are drawn: ``python docs/site/figures.py`` writes them."""
    drawn = runpy.run_path(str(ROOT / "docs" / "site" / "figures.py"))["figures"]()
    assert len(drawn) == 2
    for path, text in drawn.items():
        assert path.read_text(encoding="utf-8") == text, path


def test_the_list_of_pages_is_current() -> None:
    """It is made: ``python docs/site/page_list.py`` writes it."""
    made = runpy.run_path(str(ROOT / "docs" / "site" / "page_list.py"))["page"]()
    assert (ROOT / "docs" / "index.md").read_text(encoding="utf-8") == made


def test_a_graph_is_drawn_with_every_node_and_arrow() -> None:
    as_svg = runpy.run_path(str(ROOT / "docs" / "site" / "graphs.py"))["as_svg"]
    drawing = ElementTree.fromstring(as_svg('subgraph room\n a --> b\n b --> c_py["c.py"]\n a --> c_py\nend\n'))
    names = [text.text for text in drawing.iter("text")]
    assert sorted(names) == ["a", "b", "c.py"]
    boxes = {}
    for name, box in zip(names, drawing.iter("rect"), strict=True):
        x, y, width, height = (float(box.attrib[key]) for key in ("x", "y", "width", "height"))
        boxes[name] = (x + width / 2, y, y + height)
    lines = [path.attrib["d"] for path in drawing.iter("path") if "marker-end" in path.attrib]
    for (upper, lower), line in zip([("a", "b"), ("b", "c.py"), ("a", "c.py")], lines, strict=True):
        x, y, *_, to_x, to_y = (float(number) for number in re.findall(r"[\d.]+", line))
        assert (x, y) == pytest.approx((boxes[upper][0], boxes[upper][2]), abs=1)
        assert (to_x, to_y) == pytest.approx(boxes[lower][:2], abs=1)
    assert boxes["a"][2] < boxes["b"][1] < boxes["b"][2] < boxes["c.py"][1]
