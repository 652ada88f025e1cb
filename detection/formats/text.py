"""Read the text, JSON and XML of files of labels: in any usual encoding, bounded in size."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from vovnet.errors import InputError, reason

MOST_BYTES = 2**30
"""Larger files of labels are refused."""

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the contents of a file.

    Raises:
        InputError: It cannot be read, or has more than ``most`` bytes.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path}: no such file" if not path.exists() else f"{path}: expected a file")
        if path.stat().st_size > most:
            raise InputError(f"{path}: larger than {most // 2**20} MiB, which no such file is")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """Return the text of a file: UTF-8, or UTF-16 or UTF-32 with a byte order mark, as Windows' programs write it.

    Raises:
        InputError: It cannot be read or is in another encoding.
    """
    data = read_bytes(path, most)
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        where = f"byte {error.start}"
        raise InputError(f"{path}: is not {encoding.upper()[:6]} text ({where}); save it as UTF-8") from error


def read_json(path: Path, most: int = MOST_BYTES) -> Any:
    """Return the value in a JSON file.

    Raises:
        InputError: It cannot be read or is not JSON.
    """
    data = read_bytes(path, most)
    try:
        encoding = json.detect_encoding(data[:4])
        return json.loads(data.decode(encoding))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not valid JSON ({reason(error)})") from error


def read_xml(path: Path, most: int = MOST_BYTES) -> Element:
    """Return the root element of an XML file. Document types are refused: entities could fill the memory.

    Raises:
        InputError: It cannot be read or is not XML.
    """
    data = read_bytes(path, most)
    builder = TreeBuilder()
    parser = expat.ParserCreate()

    def refuse(*_: Any) -> None:
        raise InputError(f"{path}: has a document type (<!DOCTYPE>), which no file of labels needs; remove it")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
        return builder.close()
    except InputError:
        raise
    # Codecs raise what they like for encodings that a file only claims to have.
    except (expat.ExpatError, ValueError, LookupError, AssertionError) as error:
        raise InputError(f"{path}: is not valid XML ({reason(error)})") from error


def number_of(text: object) -> float | None:
    """Return the finite or infinite number that a text or a JSON value states, or None."""
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        return None
    try:
        return float(text)
    except (ValueError, OverflowError):
        return None
