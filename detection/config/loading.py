"""Recipes: everything that decides a training run, as typed data.

A recipe is a YAML file read into the dataclasses below with OmegaConf. Unknown keys, wrong types and missing values are
errors that name the key, and ``${…}`` is refused: recipes are data, and an interpolated environment variable would end
in a published file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from vovnet.detection.config.schema import ModelRecipe, Recipe
from vovnet.detection.config.validation import check_recipe
from vovnet.errors import InputError, did_you_mean, reason

if TYPE_CHECKING:
    from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")


def model_from_dict(values: Mapping[str, Any], where: str) -> ModelRecipe:
    """Read the model part of a recipe from plain data.

    Args:
        values: keys and values of :class:`ModelRecipe`; missing ones take their defaults.
        where: what the values come from, for messages.

    Raises:
        InputError: an unknown key, a wrong type, or an interpolation; the message names the key.
    """
    return _merge(ModelRecipe, [(where, values)])


def recipe_names() -> list[str]:
    """Names of the recipes that the package ships."""
    folder = resources.files("vovnet.detection.recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by its name in the package or from a YAML file, then apply overrides.

    Args:
        name_or_path: one of :func:`recipe_names`, or a path that ends in ``.yaml`` or ``.yml``.
        overrides: ``key=value`` texts such as ``solver.base_lr=0.01``; the value is YAML, and a list replaces the
            whole list (``data.val=[{images: a, annotations: c.json}]``).

    Raises:
        InputError: no such recipe, text that is not YAML, an unknown key, a wrong type, a missing value, ``${…}``.
    """
    path = _find(name_or_path)
    layers: list[tuple[str, Mapping[str, Any]]] = [(str(name_or_path), _read_yaml(path))]
    layers += [(f"override '{text}'", _read_override(text)) for text in overrides]
    recipe = _merge(Recipe, layers)
    check_recipe(recipe)
    return recipe


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data: what is stored in checkpoints and compared on resumption."""
    return dataclasses.asdict(recipe)


def recipe_from_dict(values: Mapping[str, Any], where: str) -> Recipe:
    """The inverse of :func:`recipe_to_dict`, with the same errors as :func:`load_recipe`."""
    recipe = _merge(Recipe, [(where, values)])
    check_recipe(recipe)
    return recipe


def recipe_to_yaml(recipe: Recipe) -> str:
    """The recipe as YAML text that :func:`load_recipe` reads back to an equal recipe."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(recipe_to_dict(recipe)))


def _find(name_or_path: str | Path) -> Path:

    text = str(name_or_path)
    if text.endswith((".yaml", ".yml")):
        path = Path(text)
        if not path.is_file():
            raise InputError(
                f"recipe: there is no file '{path}'; expected a YAML file or one of {', '.join(recipe_names())}"
            )
        return path
    names = recipe_names()
    if text not in names:
        hint = did_you_mean(text, names)
        raise InputError(
            f"recipe: '{text}' is unknown; {hint} expected one of {', '.join(names)}, or a path that ends in .yaml"
        )
    return Path(str(resources.files("vovnet.detection.recipes") / f"{text}.yaml"))


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"recipe '{path}': cannot be read as UTF-8 text ({error})") from error
    return _parse(text, f"recipe '{path}'")


def _parse(text: str, where: str) -> Mapping[str, Any]:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    values: Any
    try:
        values = OmegaConf.to_container(OmegaConf.create(text), resolve=False) if text.strip() else {}
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise InputError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InputError(f"{where}: expected a mapping of keys to values such as 'solver: {{base_lr: 0.01}}'")
    return values


def _read_override(text: str) -> Mapping[str, Any]:
    key, equals, value = text.partition("=")
    parts = key.split(".")
    if not equals or not all(part.isidentifier() for part in parts):
        raise InputError(f"override '{text}': expected key=value such as solver.base_lr=0.01")
    import yaml

    _refuse_interpolation(value, f"override '{text}'")
    parsed: Any
    try:
        parsed = _parse(f"value: {value}", f"override '{text}'")["value"] if value.strip() else None
    except (InputError, KeyError, yaml.YAMLError) as error:
        raise InputError(
            f"override '{text}': the value is not valid YAML; quote text with special characters"
        ) from error
    for part in reversed(parts):
        parsed = {part: parsed}
    return parsed


def _refuse_interpolation(values: Any, where: str, key: str = "") -> None:
    if isinstance(values, Mapping):
        for name, value in values.items():
            _refuse_interpolation(value, where, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list):
        for value in values:
            _refuse_interpolation(value, where, key)
    elif isinstance(values, str) and "${" in values:
        raise InputError(f"{where}: {key or 'value'}: '${{…}}' is not allowed in a recipe; write the value itself")
    elif values == "???":
        raise InputError(f"{where}: {key}: the value is missing ('???')")


def _merge(schema: type[T], layers: Sequence[tuple[str, Mapping[str, Any]]]) -> T:
    """Layer plain values over a dataclass's defaults; every error names where it came from and the key."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged = OmegaConf.structured(schema)
    sections = [entry.name for entry in dataclasses.fields(schema) if dataclasses.is_dataclass(entry.default_factory)]  # type: ignore[arg-type]
    for where, values in layers:
        _refuse_interpolation(values, where)
        for name in sections:
            if not isinstance(values.get(name, {}), Mapping):
                raise InputError(f"{where}: {name}: expected keys and values, got {values[name]!r}")
        try:
            merged = OmegaConf.merge(merged, OmegaConf.create(dict(values)))
        except OmegaConfBaseException as error:
            raise InputError(f"{where}: {_explain(error)}") from error
    try:
        return cast(T, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise InputError(f"{layers[-1][0]}: missing key '{getattr(error, 'full_key', None)}'") from error


def _explain(error: OmegaConfBaseException) -> str:
    """One line for what OmegaConf says: the full key first, and for an unknown key those that would have worked."""
    key = error.full_key or error.key
    if type(error).__name__ == "ConfigKeyError" and dataclasses.is_dataclass(error.object_type):
        known = sorted(entry.name for entry in dataclasses.fields(error.object_type))
        hint = did_you_mean(str(error.key), known, f"expected one of {', '.join(known)}", cutoff=0.5)
        return f"unknown key '{key}'; {hint}"
    return f"{key}: {reason(error)}" if key else reason(error)
