"""The tables of the docs say what the code says."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of every table row below a heading, up to the next one."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    section = re.split(r"^#+ ", text.split(heading, 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line.strip().strip("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines if not set(line) <= set("-|")]


def defaults(recipe: type[Any]) -> dict[str, Any]:
    return {
        field.name: getattr(recipe(), field.name)
        for field in dataclasses.fields(recipe)
        if not dataclasses.is_dataclass(getattr(recipe(), field.name))
    }


@pytest.mark.parametrize(
    ("heading", "schemas"),
    [
        ("### `model`", ["ModelRecipe"]),
        ("### `data`", ["DataRecipe"]),
        ("### `solver`", ["SolverRecipe"]),
        ("### `log`", ["LogRecipe", "Recipe"]),
    ],
)
def test_every_key_of_a_recipe_is_documented_with_its_default(heading: str, schemas: list[str]) -> None:
    from vovnet.detection import recipe

    expected: dict[str, Any] = {}
    for schema in schemas:
        expected |= defaults(getattr(recipe, schema))
    table = {row[0].strip("`"): row[1].strip("`") for row in rows("training.md", heading) if row[0] != "key"}
    assert list(table) == list(expected)
    for key, value in expected.items():
        assert table[key] == (value if isinstance(value, str) else json.dumps(value)), key


def test_every_recipe_is_listed() -> None:
    from vovnet.detection.recipe import recipe_names

    listed = {name for row in rows("training.md", "# Training") for name in re.findall(r"`(\w+)`", row[0])}
    assert listed == set(recipe_names())


def test_every_kind_of_problem_is_documented() -> None:
    from vovnet.detection.data.report import KINDS

    table = [(row[0], row[1]) for row in rows("data.md", "## Check it first") if row[0] != "what is wrong"]
    assert table == [(kind.text, kind.action) for kind in KINDS.values()]


def test_the_networks_are_as_the_table_says() -> None:
    import timm

    import vovnet  # noqa: F401

    for name, convs, outs, blocks, millions in rows("architecture.md", "## The networks")[1:]:
        model: Any = timm.create_model(name.strip("`"))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        assert f"{parameters / 1e6:.1f} M" == millions
        stages = list(model.stages)
        assert ", ".join(str(s.blocks[0].conv_mid[0].conv.out_channels) for s in stages) == convs
        assert ", ".join(str(s.blocks[0].conv_concat.conv.out_channels) for s in stages) == outs
        assert ", ".join(str(len(s.blocks)) for s in stages) == blocks


def test_the_example_of_a_coco_file_is_sound(tmp_path: Path) -> None:
    from PIL import Image

    from vovnet.detection.data.checks import check_data

    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8").split("```json\n")[1].split("```")[0]
    (tmp_path / "a.json").write_text(text)
    Image.new("RGB", (640, 480)).save(tmp_path / "a.jpg")
    report = check_data(tmp_path, tmp_path / "a.json")
    assert report.ok, report.table()
    assert report.masks == 1
