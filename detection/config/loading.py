"""Recipes from YAML files, command-line overrides and plain data, and back to YAML.

Unknown keys, wrong types and values out of bounds are errors that name the key. ``${…}`` is refused everywhere: recipes
are data, and an environment variable with a secret would end in a published file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from vovnet.detection.config.fields import AUTO, Unquoted, UnquotedNull, resolve
from vovnet.detection.config.parts import validate
from vovnet.detection.config.schema import Recipe
from vovnet.detection.config.validation import check_recipe
from vovnet.errors import InputError, did_you_mean
from vovnet.folders.home import expand_home

_MAX_BYTES = 2**16
_MAX_DEPTH = 20
_MAX_VALUES = 100_000


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("vovnet.detection.recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by its name in the package or from a YAML file, then apply overrides.

    Args:
        name_or_path: one of :func:`recipe_names`, or a path that ends in ``.yaml`` or ``.yml``.
        overrides: ``key=value`` texts such as ``solver.base_lr=0.01``; the value is YAML, and a list replaces the
            whole list (``data.val=[{images: a, annotations: c.json}]``).

    Raises:
        InputError: no such recipe, text that is not YAML, an unknown or missing key, a wrong type, a value out of
            bounds, or ``${…}``.
    """
    values = _read_yaml(_find(name_or_path))
    recipe = _validate(values, str(name_or_path))
    for text in overrides:
        # Each override is checked by itself, so that a message names the one that is wrong.
        values = _merge(values, _read_override(text))
        recipe = _validate(values, _override(text))
    check_recipe(recipe)
    return recipe


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain data, as checkpoints store it. Sources of data have the keys that they use."""
    values = dataclasses.asdict(recipe)
    for split in ("train", "val"):
        sources = values["data"][split]
        values["data"][split] = [
            {key: one for key, one in source.items() if one not in (None, "")} for source in sources
        ]
    return values


def flat_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe's values by their keys, such as ``solver.base_lr``."""
    return _flat(recipe_to_dict(recipe))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value})
    return flat


def recipe_from_dict(values: Mapping[str, Any], where: str) -> Recipe:
    """Return the recipe that :func:`recipe_to_dict` described.

    Args:
        values: keys and values; missing ones take their defaults.
        where: the source of the values, for messages.

    Raises:
        InputError: an unknown or missing key, a wrong type, a value out of bounds, or ``${…}``.
    """
    recipe = _validate(values, where)
    check_recipe(recipe)
    return recipe


def recipe_to_yaml(recipe: Recipe) -> str:
    """Return the recipe as YAML text that :func:`load_recipe` reads back to an equal recipe."""
    return yaml.dump(recipe_to_dict(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31)


def check_plain(values: Any, where: str) -> None:
    """Check that data from a file has no ``${…}`` and is not absurdly large or deep.

    Raises:
        InputError: the message begins with ``where`` and names the key.
    """
    waiting: list[tuple[Any, str, int]] = [(values, "", 0)]
    count = 0
    while waiting:
        value, key, depth = waiting.pop()
        count += 1
        if depth > _MAX_DEPTH or count > _MAX_VALUES:
            raise InputError(f"{where}: expected at most {_MAX_VALUES} values in {_MAX_DEPTH} levels; there are more")
        if isinstance(value, Mapping):
            waiting += [(entry, f"{key}.{name}" if key else str(name), depth + 1) for name, entry in value.items()]
        elif isinstance(value, list):
            waiting += [(entry, f"{key}[{index}]", depth + 1) for index, entry in enumerate(value)]
        elif isinstance(value, str) and "${" in value:
            raise InputError(f"{where}: {key}: '${{…}}' is not allowed in a recipe; write the value itself")


def _validate(values: Mapping[str, Any], where: str) -> Recipe:
    check_plain(values, where)
    return validate(Recipe, values, where)


def _find(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    names = recipe_names()
    if text.endswith((".yaml", ".yml")):
        path = expand_home(text)
        if not path.is_file():
            raise InputError(f"recipe: there is no file '{text}'; expected a YAML file or one of {', '.join(names)}")
        return path
    if text not in names:
        raise InputError(
            f"recipe: '{text}' is unknown; {did_you_mean(text, names)} expected one of {', '.join(names)}, a path that "
            "ends in .yaml, or a folder or file of labels, for `vovnet train`"
        )
    return Path(str(resources.files("vovnet.detection.recipes") / f"{text}.yaml"))


def _read_yaml(path: Path) -> dict[str, Any]:
    where = f"recipe '{path}'"
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{where}: larger than {_MAX_BYTES // 2**10} KiB, which no recipe is")
        values = resolve(_parse(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: cannot be read as UTF-8 text ({error})") from error
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not valid YAML: {_line(error)}") from error
    if not isinstance(values, dict | None):
        raise InputError(f"{where}: expected a mapping of keys to values such as 'solver: {{base_lr: 0.01}}'")
    return values or {}


def _read_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    parts = key.split(".")
    if not equals or not all(part.isidentifier() for part in parts):
        raise InputError(f"{_override(text)}: expected key=value such as solver.base_lr=0.01")
    try:
        values = _parse(value)
    except yaml.YAMLError as error:
        raise InputError(
            f"{_override(text)}: the value is not valid YAML; quote text with special characters ({_line(error)})"
        ) from error
    for part in reversed(parts):
        values = {part: values}
    return values


def _override(text: str) -> str:
    return f"override {text[:100]!r}"


def _line(error: yaml.YAMLError) -> str:
    return " ".join(str(error).split())[:300]


def _merge(base: Any, over: Any) -> Any:
    """Return ``base`` with the values of ``over``; mappings are merged, everything else is replaced."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    return base | {key: _merge(base.get(key), value) for key, value in over.items()}


class _Loader(yaml.SafeLoader):
    """Reads YAML without deciding what an unquoted scalar means."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.yaml_implicit_resolvers = {}
        self.count = 0

    def value_of(self, node: Any) -> Any:
        self.count += 1
        # An alias counts each time it is used: a few of them can stand for billions of values.
        if self.count > _MAX_VALUES:
            raise yaml.YAMLError(f"more than {_MAX_VALUES} values")
        if node.tag not in (self.DEFAULT_SCALAR_TAG, self.DEFAULT_SEQUENCE_TAG, self.DEFAULT_MAPPING_TAG):
            raise yaml.YAMLError(f"the tag {node.tag} is not allowed in a recipe")
        if isinstance(node, yaml.SequenceNode):
            return [self.value_of(entry) for entry in node.value]
        if isinstance(node, yaml.MappingNode):
            return self.mapping_of(node)
        if node.style is not None:
            return node.value
        return (UnquotedNull if node.value in UnquotedNull.SPELLINGS else Unquoted)(node.value)

    def mapping_of(self, node: Any) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, entry in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise yaml.YAMLError(f"expected text as a key, got a {name.id}")
            if name.value in values:
                raise yaml.YAMLError(f"the key '{name.value}' stands there twice")
            values[name.value] = self.value_of(entry)
        return values


def _parse(text: str) -> Any:
    """Return lists, dicts and text; unquoted text is :class:`Unquoted`. A file of nothing is None.

    Raises:
        yaml.YAMLError: the text is not YAML, or has tags, duplicate keys, or far too many values.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else loader.value_of(node)
    except RecursionError as error:
        raise yaml.YAMLError("too many levels") from error


class _Dumper(yaml.SafeDumper):
    """Quotes text that would be read back as something else where no field says that it is text."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        ambiguous = text in UnquotedNull.SPELLINGS or not isinstance(resolve(Unquoted(text)), str)
        # PyYAML reads \x85 and its like back as a space unless they are escaped, which only double quotes do.
        style = "'" if text.isprintable() else '"'
        return self.represent_scalar(_Loader.DEFAULT_SCALAR_TAG, text, style if ambiguous or style == '"' else None)


_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_representer(type(AUTO), lambda dumper, auto: dumper.represent_text(repr(auto)))
