"""The code on the page "Works with" runs as it stands, block by block."""

import ast
import importlib.util

import pytest
from pages import fenced


@pytest.mark.parametrize("block", fenced("works_with.md", "python"), ids=lambda block: block.split()[1])
def test_code_blocks(block: str) -> None:
    imports = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {(node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    for name in {name.partition(".")[0] for name in names}:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    exec(compile(block, "works_with.md", "exec"), {"__name__": "page"})
