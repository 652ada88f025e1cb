"""Write the page: its files, the detector, what the page has to know of it, examples, and ONNX Runtime Web."""

from __future__ import annotations

import importlib.resources
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vovnet.errors import InputError
from vovnet.export.metadata import ExportMetadata
from vovnet.export.prediction import exported_limits
from vovnet.export.runtime import open_exported
from vovnet.export.web.runtime import WebRuntime, web_runtime
from vovnet.files import atomic_path, write_json
from vovnet.folders.claim import claimed_folder
from vovnet.images.reading import read_image
from vovnet.results.lettering import Rgb, category_colour, is_dark
from vovnet.results.skeletons import Skeleton, skeletons_of
from vovnet.terminal.text import printable

MOST_PIXELS = 32_000_000
"""The page refuses larger images: each float32 copy takes 12 bytes a pixel, and WebAssembly has 4 GB in all."""

_MODEL, _EXAMPLES, _LICENCE = "model.onnx", "examples", "onnxruntime-web.LICENSE.txt"


def write_web_page(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    examples: Sequence[str | os.PathLike[str]] = (),
    title: str | None = None,
    threshold: float = 0.5,
    ort: Path | WebRuntime | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a folder of static files that shows a detector in browsers, behind any HTTP server.

    The page loads nothing from elsewhere, and sends images nowhere. It computes what ``vovnet predict --weights MODEL``
    does, in one thread, or in up to four if the server sends the headers that browsers ask for (COOP and COEP).

    Args:
        model: an ``.onnx`` file of a detector, with masks on grids or without, for single images.
        output: the folder.
        examples: images that the page offers.
        title: the heading; None names the categories.
        threshold: the lowest score that is shown at first, 0 to 1.
        ort: ONNX Runtime Web, or what :func:`~vovnet.export.web.runtime.web_runtime` takes.
        overwrite: accept a folder that is not empty, and replace the page's files in it.

    Returns:
        The path of ``index.html``.

    Raises:
        InputError: the page cannot show the model, an example cannot be read, ONNX Runtime Web cannot be had, or the
            folder is not empty.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold: expected a number from 0 to 1, got {threshold}")
    path = Path(model)
    if path.suffix.lower() != ".onnx":
        raise InputError(f"{path}: expected an .onnx file, which `vovnet export --format onnx` writes")
    metadata = open_exported(path).metadata
    _check(metadata, path)
    pages = [(Path(one).name, read_image(one)) for one in examples]
    with claimed_folder(output, overwrite=overwrite) as folder:
        runtime = ort if isinstance(ort, WebRuntime) else web_runtime(ort)
        facts = _facts(metadata, threshold, title)
        shown = _write_examples(folder / _EXAMPLES, pages)
        facts |= {"examples": shown, "runtime": runtime.version}
        _write(folder / _MODEL, path.read_bytes())
        sizes = {"model_bytes": path.stat().st_size, "bytes": path.stat().st_size + len(runtime.binary)}
        _write_runtime(folder / "ort", runtime)
        write_json(folder / "model.json", {**facts, **sizes})
        return _write_static(folder)


def _check(metadata: ExportMetadata, path: Path) -> None:
    """Refuse a model that the page cannot run.

    Raises:
        InputError: it is one.
    """
    faults = {
        f"is a {metadata.kind}'s file, expected a detector's": metadata.kind != "detector",
        "takes a batch of images, and the page one; export it without --batch": metadata.input.batch is not None,
        "has masks as large as the image, which a browser has no memory for; export it with --masks box": (
            metadata.masks == "image"
        ),
        f"takes {metadata.input.channels} channels, and browsers read 1 or 3": metadata.input.channels not in (1, 3),
    }
    for fault, found in faults.items():
        if found:
            raise InputError(f"{path}: {fault}")


def _facts(metadata: ExportMetadata, threshold: float, title: str | None) -> dict[str, Any]:
    """Return what the page has to know: ONNX Runtime Web does not show the metadata of a file."""
    limits = exported_limits(metadata)
    score = metadata.thresholds.get("score")
    least = score if isinstance(score, int | float) and 0 <= score < 1 else 0.0
    return {
        "title": title or _title(metadata),
        "vovnet": metadata.version,
        "file": _MODEL,
        "input": {"channels": metadata.input.channels, "dtype": metadata.input.dtype, "size": metadata.input.size},
        "box_format": metadata.box_format,
        "categories": _categories(metadata),
        "limit": limits.detections,
        "least": math.floor(least * 100) / 100,
        "threshold": max(threshold, least),
        "max_pixels": MOST_PIXELS,
    }


def _title(metadata: ExportMetadata) -> str:
    names = [printable(one["name"]) for one in metadata.categories]
    return f"Object detection: {', '.join(names) if len(names) <= 5 else f'{len(names)} categories'}"


def _categories(metadata: ExportMetadata) -> list[dict[str, Any]]:
    skeletons = skeletons_of(metadata.categories)
    return [_category(one, skeletons, metadata.keypoints or 0) for one in metadata.categories]


def _category(one: Mapping[str, Any], skeletons: Mapping[int, Skeleton], points: int) -> dict[str, Any]:
    """Return a category with its colours, and with its keypoints' as :func:`draw_detections` has them."""
    colour = category_colour(one["id"])
    shown: dict[str, Any] = {"id": one["id"], "name": one["name"], "colour": _css(colour), "dark": is_dark(colour)}
    skeleton = skeletons.get(one["id"], None if skeletons else Skeleton())
    if points and skeleton is not None:
        shown["points"] = [_css(skeleton.colour(position)) for position in range(points)]
        shown["skeleton"] = [list(edge) for edge in skeleton.edges]
    return shown


def _css(colour: Rgb) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _write_examples(folder: Path, images: Sequence[tuple[str, Image.Image]]) -> list[dict[str, str]]:
    """Write the examples as PNG, and remove those of an earlier page."""
    for earlier in folder.glob("*.png"):
        earlier.unlink()
    shown = []
    for number, (name, image) in enumerate(images, start=1):
        with atomic_path(folder / f"{number}.png") as temporary:
            image.save(temporary)
        shown.append({"file": f"{_EXAMPLES}/{number}.png", "name": printable(name)})
    return shown


def _write_runtime(folder: Path, runtime: WebRuntime) -> None:
    # Names that every server knows the type of: some do not know .mjs, and browsers refuse such a module.
    _write(folder / "ort.js", runtime.script)
    _write(folder / "runtime.wasm.gz", runtime.binary)
    _write(folder / "LICENSE.txt", (importlib.resources.files(__package__) / "static" / _LICENCE).read_bytes())


def _write_static(folder: Path) -> Path:
    """Write the page's own files, ``index.html`` last."""
    static = importlib.resources.files(__package__) / "static"
    names = [one.name for one in static.iterdir() if one.name != _LICENCE]
    names.sort(key=lambda name: name == "index.html")
    for name in names:
        _write(folder / name, (static / name).read_bytes())
    return folder / "index.html"


def _write(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
