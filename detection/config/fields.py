"""Types of a recipe's fields, and pydantic's errors as one line.

A YAML scalar without quotes arrives as :class:`Unquoted` text, and the type of its field decides what it means:
``2024_01`` is a folder where text is expected and an integer where a number is. Values from Python or JSON are not
converted: ``true`` is no integer and ``"5"`` no number.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_origin

import pydantic.dataclasses
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import ArgsKwargs

from vovnet.errors import InputError, did_you_mean
from vovnet.folders.home import VARIABLE

T = TypeVar("T")

_MAX_ENTRIES = 64
_MAX_NUMBER = 100_000
_MAX_DEPTH = 8
_UNKNOWN_KEY = ("unexpected_keyword_argument", "extra_forbidden")  # of a dataclass, of a typed dictionary
_GIVEN = "_given"
_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
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


class Unquoted(str):
    """A YAML scalar without quotes, before its field has read it."""

    def __repr__(self) -> str:
        return super().__repr__()[1:-1]


class UnquotedNull(Unquoted):
    """An unquoted ``null``, ``~`` or nothing. It is null where a field may be null, otherwise text as written."""

    SPELLINGS = ("", "~", "null", "Null", "NULL")

    def __repr__(self) -> str:
        return "null"


def _reader(convert: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Return a function that converts unquoted text where that is possible and leaves other values as they are."""

    def read(value: Any) -> Any:
        if isinstance(value, Unquoted):
            with suppress(ValueError, KeyError):
                return convert(value)
        return value

    return read


_read_integer = _reader(lambda text: int(text, 0))
_read_number = _reader(float)
_read_flag = _reader(lambda text: _FLAGS[text.lower()])


def resolve(value: Any) -> Any:
    """Return the null, flag or number that unquoted text is where no field has a type; other values unchanged."""
    if isinstance(value, UnquotedNull):
        return None
    for read in (_read_flag, _read_integer, _read_number):
        value = read(value)
    return value


def _read_text(value: Any) -> Any:
    return None if isinstance(value, UnquotedNull) and not value else value  # nothing is no text


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


def _without_variables(value: str) -> str:
    if found := VARIABLE.search(value):
        raise ValueError(f"the path itself, as variables such as {found[0]} are not replaced")
    return value


def _unicode(value: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("text that is valid Unicode")
    return value


def _untyped(value: Any, depth: int = 0) -> Any:
    """Return plain data where no field has a type.

    Raises:
        ValueError: a value that is no plain data, or one that is out of bounds; the message is what was expected.
    """
    if depth > _MAX_DEPTH:
        raise ValueError(f"at most {_MAX_DEPTH} levels of lists and mappings")
    value = resolve(value)
    if isinstance(value, str):
        return _unicode(str(value))
    if isinstance(value, Mapping | list | tuple):
        if len(value) > _MAX_ENTRIES:
            raise ValueError(f"at most {_MAX_ENTRIES} entries")
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) for key in value):
                raise ValueError("text as keys")
            return {_unicode(key): _untyped(entry, depth + 1) for key, entry in value.items()}
        return type(value)(_untyped(entry, depth + 1) for entry in value)
    if isinstance(value, int | float):
        if not (math.isfinite(value) and abs(value) <= _MAX_NUMBER):
            raise ValueError(f"numbers from -{_MAX_NUMBER} to {_MAX_NUMBER}")
    elif value is not None:
        raise ValueError("numbers, text, true, false, null, and lists and mappings of them")
    return value


Integer = Annotated[int, Field(strict=True), BeforeValidator(_read_integer)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False), BeforeValidator(_read_number)]
Flag = Annotated[bool, Field(strict=True), BeforeValidator(_read_flag)]
Text = Annotated[str, Field(strict=True), BeforeValidator(_read_text), AfterValidator(_unicode)]
PathText = Annotated[Text, AfterValidator(_without_variables)]
"""A path as the user wrote it: ``~`` is expanded where it is used. ``$NAME`` is refused, as ``${…}`` is everywhere."""


class _Auto(int):
    """The value of ``auto`` where a number is expected. The run replaces it by a number before it is used."""

    def __repr__(self) -> str:
        return "auto"

    def __reduce__(self) -> str:  # copies and pickles are AUTO itself
        return "AUTO"


AUTO = _Auto(0)


def _number_or_auto(value: Any, read: Callable[[Any], int]) -> int:
    return AUTO if value is AUTO or value == "auto" else read(value)


BatchSize = Annotated[
    int,
    Field(strict=True, ge=1, le=1_000_000),
    BeforeValidator(_read_integer),
    WrapValidator(_number_or_auto),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": 1_000_000}]}),
]
"""A number of images, or :data:`AUTO`."""
Arguments = Annotated[dict[str, Any], BeforeValidator(_untyped)]
"""Keyword arguments of a function whose parameters are not known here."""


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
