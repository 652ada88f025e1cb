"""What the site has beyond the pages: the command line's reference, links into the repository, a check of docstrings.

mkdocs calls the functions ``on_…`` (https://www.mkdocs.org/dev-guide/plugins/#events). A warning fails the build,
because ``mkdocs.yml`` is strict.
"""

from __future__ import annotations

import html
import logging
import os
import posixpath
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))
from graphs import as_svg

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

LOG = logging.getLogger("mkdocs.hooks.vovnet")
COMMANDS = "<!-- commands -->"
DEMO = "<!-- demo -->"
DEMO_FOLDER = "build/demo"
DIRECTIVE = re.compile(r"^::: (\S+)", re.MULTILINE)
LINK = re.compile(r"(\]\()(?![a-z]+:)([^)#\s]+)(#[^)\s]*)?(\))")
MERMAID = re.compile(r"^```mermaid\n(.*?)^```", re.MULTILINE | re.DOTALL)
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):<code>(~?)([\w.]+)</code>")
FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page's text as the site has it."""
    root = Path(config.config_file_path).parent
    for name in DIRECTIVE.findall(markdown):
        for missing in undocumented(name, root):
            LOG.warning("%s: %s has no docstring", page.file.src_uri, missing)
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, command_reference(root))
    markdown = MERMAID.sub(lambda match: f"<figure>{as_svg(match[1])}</figure>", markdown)
    markdown = markdown.replace(DEMO, demo(page, root))
    parts = FENCE.split(markdown)
    parts[::2] = [_with_links_into_the_repository(part, page, config) for part in parts[::2]]
    return "".join(parts)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page's HTML in which Sphinx's roles of docstrings are links, where the site has what they name."""

    def link(match: re.Match[str]) -> str:
        shown = match[2].rpartition(".")[2] if match[1] else match[2]
        return f'<autoref identifier="{match[2]}" optional><code>{shown}</code></autoref>'

    return ROLE.sub(link, html)


def on_post_build(config: MkDocsConfig) -> None:
    """Copy the demo into the site, if `make docs` has written one."""
    folder = Path(config.config_file_path).parent / DEMO_FOLDER
    if folder.is_dir():
        shutil.copytree(folder, Path(config.site_dir) / "demo", dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))


def demo(page: Page, root: Path) -> str:
    """Return the HTML that shows the quickstart's detector, or how a site gets it."""
    if not (root / DEMO_FOLDER / "index.html").is_file():
        return "*This site was built without the quickstart's detector; `make quickstart docs` shows it here.*"
    address = posixpath.relpath("demo/index.html", page.url)
    return (
        f'<iframe class="demo" src="{address}" title="The quickstart\'s detector" loading="lazy"></iframe>\n\n'
        f'<p><a href="{address}">The same on a page of its own</a></p>'
    )


def command_reference(root: Path) -> str:
    """Return what Typer writes of every command: usage, arguments and options, as Markdown.

    A process of its own makes it, so that mkdocs does not import PyTorch.
    """
    words = [sys.executable, "-m", "typer", "vovnet.cli", "utils", "docs", "--name", "vovnet"]
    paths = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": paths, "NO_COLOR": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    text = html.unescape(done.stdout.split("\n", 1)[1])
    for superfluous in (r"^\* `--help`.*\n", r"^\*\*Options\*\*:\n\n(?!\*)", r"^\*\*Commands\*\*:\n\n(\*.*\n)+"):
        text = re.sub(superfluous, "", text, flags=re.MULTILINE)
    return text.replace("```console\n$ ", "```text\n")


def undocumented(name: str, root: Path) -> list[str]:
    """Return the paths of what is public of an object of the package, itself included, and has no docstring."""
    try:
        found: Any = _package(name.partition(".")[0], root)
        for part in name.split(".")[1:]:
            found = found[part]
    except KeyError:
        return []  # mkdocstrings says it
    found = found.final_target if found.is_alias else found
    members = found.members.values() if found.is_class else ()
    documentable = [member for member in members if not member.is_alias and (member.is_function or member.is_class)]
    wanted = [found, *(member for member in documentable if member.is_public and not member.name.startswith("__"))]
    return [one.path for one in wanted if one.docstring is None or not one.docstring.value.strip()]


@cache
def _package(name: str, root: Path) -> Any:
    return griffe.load(name, search_paths=[str(root)], resolve_aliases=True, resolve_external=False)


def _with_links_into_the_repository(text: str, page: Page, config: MkDocsConfig) -> str:
    """Return the text whose links to files outside of docs/ lead to GitHub: the site does not have these files."""
    home = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def absolute(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(home, match[2]))
        if path.startswith("docs/"):
            return match[0]
        return f"{match[1]}{config.repo_url}/blob/main/{path}{match[3] or ''}{match[4]}"

    return LINK.sub(absolute, text)
