"""Types of a recipe's fields.

A YAML scalar without quotes arrives as :class:`Unquoted` text, and the type of its field decides what it means:
``2024_01`` is a folder where text is expected and an integer where a number is. Values from Python or JSON are not
converted: ``true`` is no integer and ``"5"`` no number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, WrapValidator

from vovnet.folders.home import VARIABLE

_MAX_ENTRIES = 64
_MAX_NUMBER = 100_000
_MAX_DEPTH = 8
_MAX_PIXELS = 20_000
MAX_ITERATIONS = 2**63 - 1
"""Largest number of iterations."""

_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


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
Pixels = Annotated[Integer, Field(ge=1, le=_MAX_PIXELS)]
Iteration = Annotated[Integer, Field(ge=0, le=MAX_ITERATIONS)]
Positive = Annotated[Number, Field(gt=0, le=100_000)]
Flag = Annotated[bool, Field(strict=True), BeforeValidator(_read_flag)]
Text = Annotated[str, Field(strict=True), BeforeValidator(_read_text), AfterValidator(_unicode)]
Backend = Literal["pycocotools", "faster"]
"""The program that computes COCO's numbers; ``faster`` is faster-coco-eval."""
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
