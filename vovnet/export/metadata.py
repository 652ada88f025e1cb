"""What an exported file says about itself: one JSON text, under one key, in every format."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict, cast, get_args

from vovnet.errors import InputError, is_text, reason, shown

KEY = "vovnet"
"""The key of the text in an ONNX file's metadata, OpenVINO's ``rt_info``, and the extra files of the others."""
FORMAT = "vovnet-exported"
FORMAT_VERSION = 1

Kind = Literal["detector", "classifier"]
InputType = Literal["uint8", "float32"]
MaskForm = Literal["box", "image"]
"""``box``: probabilities on a grid over each box. ``image``: 0 or 1 for each pixel of the image."""
BoxFormat = Literal["xyxy", "xyxy_inclusive"]
"""``xyxy_inclusive``: both corners belong to the box, so that its width is ``x1 - x0 + 1``."""
Precision = Literal["fp32", "fp16", "bf16", "int8"]

_MAX_CHARACTERS = 16 * 2**20
_MAX_SIDE = 2**20
_MAX_CATEGORIES = 100_000
_MAX_KEYPOINTS = 1024
_MAX_EDGES = 65_536


class ExportedCategory(TypedDict):
    """A category of a detector, or a class of a classifier.

    ``keypoints`` are the names of its keypoints, and ``skeleton`` has pairs of their positions, from 1.
    """

    id: int
    name: str
    keypoints: NotRequired[list[str]]
    skeleton: NotRequired[list[list[int]]]


@dataclass(frozen=True)
class ExportedInput:
    """What the file takes as ``image``: RGB (or grey) pixels (C, H, W), with a batch (N, C, H, W)."""

    channels: int = 3
    dtype: InputType = "uint8"
    """``uint8``: 0 to 255. ``float32``: 0 to 1."""
    size: tuple[int, int] | None = None
    """Height and width in pixels, if the file takes only images of one size."""
    batch: int | None = None
    """The number of images in a batch; None: the input is one image, without a batch dimension."""


@dataclass(frozen=True)
class ExportMetadata:
    """Everything that a reader of an exported file needs besides its graph."""

    kind: Kind
    version: str
    """The version of vovnet that wrote the file."""
    input: ExportedInput
    categories: Sequence[ExportedCategory]
    """A detector's label k is ``categories[k - 1]``; a classifier's probability k belongs to ``categories[k]``."""
    masks: MaskForm | None = None
    keypoints: int | None = None
    """The number of keypoints of each detection; None if the detector has none."""
    box_format: BoxFormat = "xyxy"
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """As in a detector's ``config.json``; for readers, because the graph has it inside."""
    thresholds: Mapping[str, Any] = field(default_factory=dict)
    """A detector's ``score``, ``nms`` and ``detections`` (the largest number in an image)."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """The model part of the recipe, or a classifier's architecture and arguments."""
    precision: Precision = "fp32"

    def to_json(self) -> str:
        """Return the text to store under :data:`KEY`.

        Raises:
            InputError: a value is not one that :func:`from_json` takes.
        """
        values: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        values["categories"] = [dict(one) for one in self.categories]
        try:
            text = json.dumps(values, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"metadata: a value cannot be written as JSON ({reason(error)})") from error
        from_json(text, "metadata")
        return text


def from_json(text: object, where: str) -> ExportMetadata:
    """Read and check the text of an exported file. Keys that this version does not know are skipped.

    Args:
        text: what the file has under :data:`KEY`; None if it has nothing there.
        where: the file's name, for messages.

    Raises:
        InputError: there is no text, or it is not JSON of this format and version with values of the right types.
    """
    if text is None or text == "":
        raise InputError(
            f"{where}: has no metadata of vovnet, so its categories and input are not known; expected a file that "
            "`vovnet export` wrote"
        )
    values = _parsed(text, where)
    if values.get("format") != FORMAT:
        raise InputError(f"{where}: 'format' in its metadata is {shown(values.get('format'))}, expected '{FORMAT}'")
    version = values.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise InputError(
            f"{where}: 'format_version' in its metadata is {shown(version)}, this vovnet reads {FORMAT_VERSION}; a "
            "newer vovnet may read it, or export the model again"
        )
    fields = _Fields(values, where)
    return ExportMetadata(
        kind=cast(Kind, fields.choice("kind", get_args(Kind))),
        version=fields.text("version"),
        input=_input(_Fields(fields.mapping("input"), where, "input.")),
        categories=_categories(values.get("categories"), where),
        masks=cast("MaskForm | None", fields.choice("masks", (None, *get_args(MaskForm)))),
        keypoints=None if values.get("keypoints") is None else fields.number("keypoints", _MAX_KEYPOINTS),
        box_format=cast(BoxFormat, fields.choice("box_format", get_args(BoxFormat), "xyxy")),
        preprocessing=fields.mapping("preprocessing"),
        thresholds=fields.mapping("thresholds"),
        model=fields.mapping("model"),
        precision=cast(Precision, fields.choice("precision", get_args(Precision), "fp32")),
    )


def _parsed(text: object, where: str) -> dict[str, Any]:
    try:
        if not isinstance(text, str) or len(text) > _MAX_CHARACTERS:
            raise ValueError(f"expected a text of at most {_MAX_CHARACTERS} characters")
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also for integers of thousands of digits
        raise InputError(
            f"{where}: its metadata is not valid JSON ({reason(error)}); the file is damaged or was edited"
        ) from error
    if not isinstance(values, dict):
        raise InputError(f"{where}: its metadata is {shown(values)}, expected a JSON object")
    return values


@dataclass(frozen=True)
class _Fields:
    """The keys of an object in the metadata; each method returns one value, after checking it."""

    values: Mapping[str, Any]
    where: str
    prefix: str = ""

    def wrong(self, key: str, expected: str) -> InputError:
        found = shown(self.values[key]) if key in self.values else "nothing"
        return InputError(f"{self.where}: '{self.prefix}{key}' in its metadata: expected {expected}, got {found}")

    def choice(self, key: str, choices: Sequence[str | None], default: str | None = None) -> str | None:
        value = self.values.get(key, default)
        if not any(value is one or (isinstance(value, str) and value == one) for one in choices):
            raise self.wrong(key, f"one of {', '.join('null' if one is None else one for one in choices)}")
        return value

    def text(self, key: str) -> str:
        value = self.values.get(key)
        if not is_text(value):
            raise self.wrong(key, "a text")
        return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return value

    def number(self, key: str, most: int) -> int:
        value = self.values.get(key)
        if not _is_number(value, 1, most):
            raise self.wrong(key, f"an integer from 1 to {most}")
        return cast(int, value)


def _is_number(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _input(fields: _Fields) -> ExportedInput:
    size = fields.values.get("size")
    if size is not None and not (
        isinstance(size, list) and len(size) == 2 and all(_is_number(side, 1, _MAX_SIDE) for side in size)
    ):
        raise fields.wrong("size", "null or [height, width] in pixels")
    return ExportedInput(
        channels=fields.number("channels", 4096),
        dtype=cast(InputType, fields.choice("dtype", get_args(InputType))),
        size=None if size is None else (size[0], size[1]),
        batch=None if fields.values.get("batch") is None else fields.number("batch", _MAX_SIDE),
    )


def _points(category: Mapping[str, Any], position: int, where: str) -> dict[str, Any]:
    """Return the keypoints' names and the skeleton of a category that has them."""
    names, edges = category.get("keypoints"), category.get("skeleton") or []
    if names is None:
        return {}
    named = isinstance(names, list) and 1 <= len(names) <= _MAX_KEYPOINTS and all(map(is_text, names))
    joined = isinstance(edges, list) and len(edges) <= _MAX_EDGES
    if not named or not joined or not all(_is_edge(edge, len(names)) for edge in edges):
        raise InputError(
            f"{where}: 'categories[{position}]' in its metadata: expected names as 'keypoints' and pairs of their "
            f"positions as 'skeleton', got {shown(names)} and {shown(edges)}"
        )
    return {"keypoints": names, "skeleton": edges}


def _is_edge(edge: object, points: int) -> bool:
    return isinstance(edge, list) and len(edge) == 2 and all(_is_number(end, 1, points) for end in edge)


def _categories(values: object, where: str) -> list[ExportedCategory]:
    if not isinstance(values, list) or not 1 <= len(values) <= _MAX_CATEGORIES:
        raise InputError(f"{where}: 'categories' in its metadata: expected a list of objects, got {shown(values)}")
    found: list[ExportedCategory] = []
    for position, one in enumerate(values):
        if not isinstance(one, dict) or not _is_number(one.get("id"), 0, 2**53) or not is_text(one.get("name")):
            raise InputError(
                f"{where}: 'categories[{position}]' in its metadata: expected an object with an integer 'id' and a "
                f"text 'name', got {shown(one)}"
            )
        found.append({"id": one["id"], "name": one["name"], **_points(one, position, where)})  # type: ignore[typeddict-item]
    if len({one["id"] for one in found}) != len(found):
        raise InputError(f"{where}: 'categories' in its metadata: expected different ids, but an id stands there twice")
    return found
