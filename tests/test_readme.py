"""What the README and the docs tell a reader to type and where to click is there."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
SETUP, TESTS = "make quickstart", "make test"


def names(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


def blocks(page: Path, language: str) -> list[str]:
    """The contents of a page's fenced blocks."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> list[list[str]]:
    """Every `vovnet …` line of a page's shell blocks, joined over continuation lines and split as a shell does.

    `torchrun … -m vovnet.cli X` is `vovnet X`, and `torchrun … -m vovnet.detection.train` is `vovnet train`.
    """
    lines = [line for block in blocks(page, "(?:ba)?sh") for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    found = [line for line in words if line and Path(line[0]).name == "vovnet"]
    for module, subcommand in (("vovnet.cli", []), ("vovnet.detection.train", ["train"])):
        calls = [line for line in words if line[:1] == ["torchrun"] and module in line]
        found += [["vovnet", *subcommand, *line[line.index(module) + 1 :]] for line in calls]
    return found


def test_the_first_two_commands_are_the_two_commands() -> None:
    first, second, *_ = blocks(ROOT / "README.md", "sh")
    assert (first.strip(), second.strip()) == (SETUP, TESTS)


def test_ci_runs_them_word_for_word() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in (SETUP, TESTS, "make lint", "make types", "make wheel"):
        assert re.search(rf"^\s*(step )?{command}\b", script, re.MULTILINE), command
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_make_has_every_target_that_is_named() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"quickstart", "test", "prove", "lint", "types", "wheel"} <= targets
    for page in PAGES:
        text = "\n".join(blocks(page, "sh")) + "\n".join(re.findall(r"`(make [a-z]+)", page.read_text()))
        assert set(re.findall(r"^make ([a-z]+)", text, re.MULTILINE)) <= targets, page.name


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(linked), f"{target}: no such heading"


def test_every_page_can_be_reached() -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
        if not target.startswith("http")
    }
    assert {page for page in PAGES if page.name != "README.md"} <= linked


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_commands_and_options_exist(page: Path) -> None:
    import typer.main

    from vovnet.cli import app

    group = typer.main.get_command(app)
    for command in commands(page):
        named = group
        for word in command[1:]:
            if known := getattr(named, "commands", None):
                assert word in known, f"vovnet … {word}"
                named = known[word]
        options = {option for parameter in named.params for option in parameter.opts}
        given = {word.partition("=")[0] for word in command if word.startswith("--")}
        assert given <= options | {"--help"}, command


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_overrides_and_recipes_exist(page: Path) -> None:
    from vovnet.detection.config.loading import load_recipe

    for _, subcommand, *rest in commands(page):
        if subcommand != "train" or rest[0].isupper():
            continue
        # The pages call a folder of data "photos", and have runs and other recipes in folders.
        recipe = {"photos": "own_data_cpu"}.get(rest[0], rest[0] if "/" not in rest[0] else "quickstart")
        load_recipe(recipe, [word for word in rest if re.match(r"[a-z_]+\.[a-z_.]+=", word)])


def test_no_page_names_a_place_on_somebodys_machine() -> None:
    for page in PAGES:
        # The places in a Dockerfile are the image's own.
        text = re.sub(r"^```dockerfile\n.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        found = re.findall(r"(?<![\w.:/])/(?:root|home|work|tmp|mnt|opt|Users)/\S*", text)
        assert not found, f"{page.name}: {found}"


def test_the_word_is_image() -> None:
    places = [
        ROOT / name for name in ("vovnet", "adapters", "detection", "hub", "benchmarks", "docs", "tests", ".github")
    ]
    suffixes = {".py", ".md", ".yaml", ".yml", ".h", ".cpp", ".cu", ".cuh"}
    files = [path for place in places for path in place.rglob("*") if path.suffix in suffixes] + PAGES
    other = re.compile("pic" + "ture", re.IGNORECASE)
    found = [path for path in files if other.search(path.read_text(encoding="utf-8"))]
    assert files
    assert not found, found
