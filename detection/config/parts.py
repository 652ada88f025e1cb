"""Parts of a recipe: dataclasses that check their fields, and pydantic's errors as one line."""

from __future__ import annotations

import dataclasses
import functools
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_origin

import pydantic.dataclasses
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import ArgsKwargs

from vovnet.detection.config.fields import UnquotedNull
from vovnet.errors import InputError, did_you_mean

T = TypeVar("T")
_UNKNOWN_KEY = ("unexpected_keyword_argument", "extra_forbidden")  # of a dataclass, of a typed dictionary
_GIVEN = "_given"
_EXPECTED = {  # what an error of pydantic asks for
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_unicode": "keys that are valid Unicode",
    "list_type": "a list",
    "dict_type": "keys and values such as {{key: value}}",
    "dataclass_type": "keys and values such as {{key: value}}",
    "finite_number": "a finite number",
    "literal_error": "one of {expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "too_short": "{min_length} or more entries",
    "too_long": "at most {max_length} entries",
    "value_error": "{error}",
}


def _read_nulls(cls: Any, values: dict[Any, Any]) -> dict[Any, Any]:
    """Return the values of a part's fields, with None for an unquoted null where the field may be null."""
    nullable = {name for name, field in cls.__pydantic_fields__.items() if type(None) in get_args(field.annotation)}
    return {
        key: None if isinstance(value, UnquotedNull) and key in nullable else value for key, value in values.items()
    }


def _read_part(cls: Any, values: Any, make: Callable[[Any], Any]) -> Any:
    """Return a part from its values or its constructor's arguments, and remember which of them were given."""
    if isinstance(values, cls):
        return make(values)
    if isinstance(values, ArgsKwargs):
        given = [*list(cls.__pydantic_fields__)[: len(values.args)], *(values.kwargs or {})]
    else:
        given = list(values) if isinstance(values, dict) else []
    part = make(_read_nulls(cls, values) if isinstance(values, dict) else values)
    part.__dict__[_GIVEN] = frozenset(given)
    return part


@dataclass_transform(field_specifiers=(Field, dataclasses.field))
def recipe_part(section: str) -> Callable[[type[T]], type[T]]:
    """Return a decorator that makes a dataclass whose constructor checks every field.

    ``dataclasses.replace`` and ``asdict`` work on it. A wrong value is an :class:`InputError` that names the field.

    Args:
        section: the key that holds this part in a recipe; empty for the recipe itself.
    """

    def decorate(cls: type[T]) -> type[T]:
        config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
        part: Any = cls
        read: Any = classmethod(_read_part)
        part._read_part = model_validator(mode="wrap")(read)
        made: Any = pydantic.dataclasses.dataclass(config=config)(part)
        checked = made.__init__

        @functools.wraps(checked)
        def construct(self: T, *args: Any, **kwargs: Any) -> None:
            try:
                checked(self, *args, **kwargs)
            except ValidationError as error:
                raise InputError(_explain(error, made, section)) from None

        made.__init__ = construct
        return made

    return decorate


def is_given(part: object, name: str) -> bool:
    """Return False if a field of a recipe's part has its default because nobody gave it a value.

    A file, an override, the constructor, ``dataclasses.replace`` (which gives all) and an assignment give values.
    """
    default: Any = type(part).__dict__["__pydantic_fields__"][name]
    return name in part.__dict__[_GIVEN] or getattr(part, name) != default.get_default(call_default_factory=True)


def validate(schema: type[T], values: Mapping[str, Any], where: str) -> T:
    """Return a recipe or a part of it from plain data.

    Args:
        schema: a class that :func:`recipe_part` decorates.
        values: keys and values; missing ones take their defaults.
        where: the source of the values, for messages.

    Raises:
        InputError: an unknown or missing key, a wrong type or a value out of bounds; the message names the key.
    """
    try:
        return TypeAdapter(schema).validate_python(values)
    except ValidationError as error:
        raise InputError(f"{where}: {_explain(error, schema)}") from None


def _explain(error: ValidationError, schema: type, section: str = "") -> str:
    """Return one line about the first error: the key, what was expected, and what stands there."""
    found = min(error.errors(include_url=False), key=lambda entry: entry["type"] not in _UNKNOWN_KEY)
    path = found["loc"]
    fields = _fields_at(schema, path[:-1])
    key = _key(((section,) if section else ()) + path) or "recipe"
    if found["type"] in _UNKNOWN_KEY:
        known = f"expected one of {', '.join(fields)}" if fields else "leave it out"
        return f"unknown key '{key}'; {did_you_mean(str(path[-1]), fields, known, cutoff=0.5)}"
    if found["type"] == "missing":
        return f"missing key '{key}'"
    # pydantic gives the bounds of a float field as floats.
    bounds = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in found.get("ctx", {}).items()}
    expected = _EXPECTED[found["type"]].format_map(bounds) if found["type"] in _EXPECTED else found["msg"]
    nullable = path and path[-1] in fields and type(None) in get_args(fields[path[-1]].annotation)
    return f"{key}: expected {expected}{' or null' if nullable else ''}, got {shown(found['input'])}"


def shown(value: object) -> str:
    """Return a value as a recipe would write it, shortened where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, ArgsKwargs):
        value = value.kwargs or {}
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer of thousands of digits
        return f"a very large {type(value).__name__}"


def _key(path: Sequence[str | int]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part[:100]}" for part in path]
    return repr("".join(parts).removeprefix("."))[1:-1]


def _fields_at(schema: Any, path: Sequence[str | int]) -> Mapping[Any, Any]:
    """Return the fields of the dataclass that stands at a path of keys and list positions; none of anything else."""
    for name in path:
        if isinstance(name, str):
            annotation = schema.__pydantic_fields__[name].annotation
            inside = (get_args(one)[0] if get_origin(one) is Annotated else one for one in get_args(annotation))
            schema = next((cls for cls in inside if isinstance(cls, type)), annotation)
    return getattr(schema, "__pydantic_fields__", {})
