"""The key tables of docs/reference/recipes.md and the JSON Schema of recipes, generated from the schema's fields.

``python tests/helpers/recipe_reference.py``, run in the checkout, writes both.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from vovnet.detection.config.schema import Recipe

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "recipes.md"
SCHEMA = ROOT / "detection" / "recipes" / "recipe.schema.json"
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def json_schema() -> str:
    """Return the JSON Schema of a recipe, by which an editor completes and checks keys."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **_described()}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def page() -> str:
    """Return docs/reference/recipes.md with the tables that the schema makes."""

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}\n{key_table(match[2])}{match[3]}"

    text = PAGE.read_text(encoding="utf-8")
    return re.sub(r"(<!-- keys: (\w+) -->)\n.*?(<!-- end -->)", table, text, flags=re.DOTALL)


def key_table(section: str) -> str:
    """Return the rows of one section of a recipe; ``recipe`` stands for the keys outside of every section."""
    schema = _described()
    if section == "recipe":
        properties = {key: value for key, value in schema["properties"].items() if "$ref" not in value}
    else:
        properties = schema["$defs"][schema["properties"][section]["$ref"].rpartition("/")[2]]["properties"]
    rows = [f"| `{key}` | `{_default(value)}` | {_text(value)} |" for key, value in properties.items()]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows, ""])


def _described() -> dict[str, Any]:
    schema = _tidy(TypeAdapter(Recipe).json_schema())
    for name, part in [("", schema), *schema["$defs"].items()]:
        made = Recipe() if not name else next((v for v in vars(Recipe()).values() if type(v).__name__ == name), None)
        for key, value in part["properties"].items():
            if made is not None and "$ref" not in value:
                value["default"] = getattr(made, key)
    return schema


def _tidy(schema: Any) -> Any:
    """Return the schema in the words of JSON Schema, on one line a description, without titles."""
    if isinstance(schema, list):
        return [_tidy(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    tidy = {_BOUNDS.get(key, key): _tidy(value) for key, value in schema.items() if key != "title"}
    if isinstance(tidy.get("description"), str):
        tidy["description"] = " ".join(tidy["description"].replace("``", "`").split())
    return tidy


def _default(value: dict[str, Any]) -> str:
    default = value["default"]
    return default if isinstance(default, str) else json.dumps(default)


def _text(value: dict[str, Any]) -> str:
    links = {
        r"arXiv:(\d+\.\d+)": r"[arXiv:\1](https://arxiv.org/abs/\1)",
        r"docs/reference/(\w+)\.md": r"[\1](\1.md)",
        r"docs/([\w-]+)/(\w+)\.md": r"[\2](../\1/\2.md)",
    }
    text: str = value["description"]
    for pattern, link in links.items():
        text = re.sub(pattern, link, text)
    choices = [choice for part in (value, *value.get("anyOf", ())) for choice in part.get("enum", ())]
    if choices:
        null = ["null"] if {"type": "null"} in value.get("anyOf", ()) else []
        text = f"{', '.join(f'`{choice}`' for choice in [*choices, *null])}. {text}"
    return text.replace("|", r"\|")


if __name__ == "__main__":
    SCHEMA.write_text(json_schema(), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
