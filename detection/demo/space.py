"""The demo as a Space of Hugging Face: a folder with the program, what it needs, its card, and the weights."""

from __future__ import annotations

import importlib.metadata
import os
import pprint
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

from huggingface_hub import SpaceCard, SpaceCardData

from vovnet.checkpoints.places import is_torchvision, locate
from vovnet.detection.checkpoints.folder import find_folder
from vovnet.detection.demo.content import Content
from vovnet.errors import SOURCE, InputError, absent_package
from vovnet.export.runtime import is_exported
from vovnet.files import MODEL_FILES, atomic_path, write_text
from vovnet.folders.claim import claimed_folder
from vovnet.folders.home import expand_home
from vovnet.results.run_options import RunOptions, RunSettings

_APP = '''"""The demo: `python app.py`. In a Space, Hugging Face runs this file. `vovnet demo` wrote it."""

import os
from pathlib import Path

from vovnet.detection.demo.bounds import Bounds
from vovnet.detection.demo.opening import open_content
from vovnet.detection.demo.server import serve

HERE = Path(__file__).parent
# Visitors choose among these, and no others. Those with a leading point lie beside this file.
WEIGHTS = {weights}
OPTIONS = {options}
BOUNDS = Bounds({bounds})

if "SPACE_ID" in os.environ:
    # Requests come through Hugging Face's proxy, which tells whom they are from.
    os.environ.setdefault("FORWARDED_ALLOW_IPS", "*")
content = open_content(
    [str(HERE / name) if name.startswith("./") else name for name in WEIGHTS],
    title={title!r},
    examples={examples},
    bounds=BOUNDS,
    threshold={threshold!r},
    **OPTIONS,
)
serve(content)
'''

_CARD = """
# {title}

Drop images, and see what {detectors} find{s} in them: boxes, masks, keypoints, counts of each class, and tables to
download. The threshold moves without running a detector again.

- `python app.py` serves the same page on your computer, after `pip install -r requirements.txt`.
- `hf upload ORG/NAME . --repo-type space` publishes this folder as a Space.
- Images are kept in the memory of the server while the page is open, for an hour at most. The server writes none of
  them elsewhere than into its own temporary folder, and removes them there within minutes.
- An image file has at most {bounds.max_size_mb:g} MB and {bounds.max_pixels:,} pixels, and a visitor may have
  {bounds.rate} images looked at in a minute.

The weights have their own licences. State them here before you publish the Space. Made with [vovnet]({source}).
"""


def export_demo(
    content: Content,
    weights: Sequence[str],
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    fuse: bool = False,
    **options: Unpack[RunOptions],
) -> str:
    """Write a folder that serves the same page anywhere, and that Hugging Face runs as a Space.

    It has ``app.py``, ``requirements.txt``, ``README.md`` (the card), the weights that are files, and the examples.

    Args:
        content: of the page.
        weights: what it was opened from. Files and folders are copied; names are loaded when the page starts.
        output: the folder.
        overwrite: replace files in a folder that is not empty.
        fuse: as for :func:`vovnet.detection.demo.opening.open_detectors`.
        **options: the same.

    Returns:
        What was written, and what to do with it, as text.

    Raises:
        InputError: the folder is not empty, or cannot be written.
    """
    changed = {name: value for name, value in options.items() if value != getattr(RunSettings(), name)}
    with claimed_folder(output, overwrite=overwrite) as folder:
        places = [_place(one, name, folder) for one, name in zip(weights, content.detectors, strict=True)]
        _write_examples(folder, content.examples)
        app = _app(content, places, {**({"fuse": True} if fuse else {}), **changed})
        write_text(folder / "requirements.txt", _requirements(weights))
        write_text(
            folder / ".gitattributes", "".join(f"*{end} filter=lfs diff=lfs merge=lfs -text\n" for end in _LARGE)
        )
        write_text(folder / "README.md", space_card(content, weights))
        write_text(folder / "app.py", app)
        return (
            f"{folder}: app.py, requirements.txt, README.md and the weights. Try it with `python {folder / 'app.py'}`, "
            f"and publish it with `hf upload ORG/NAME {folder} --repo-type space`"
        )


_LARGE = (".safetensors", ".onnx", ".bin", ".pt", ".pt2", ".torchscript", ".png", ".jpg")
"""Files that git keeps outside of its history, in the Hub's way."""


def space_card(content: Content, weights: Sequence[str]) -> str:
    """Return the text of a Space's ``README.md``."""
    names = list(content.detectors)
    published = [one.partition("@")[0] for one in weights if isinstance(_located(one), str)]
    data = SpaceCardData(
        title=content.title,
        emoji="🔍",
        colorFrom="blue",
        colorTo="green",
        sdk="gradio",
        sdk_version=_gradio_version(),
        python_version="3.11",
        app_file="app.py",
        pinned=False,
        models=sorted(set(published)) or None,
        tags=["object-detection", "vovnet"],
    )
    text = _CARD.format(
        title=content.title,
        detectors=" and ".join(f"`{name}`" for name in names),
        s="s" if len(names) == 1 else "",
        bounds=content.bounds,
        source=SOURCE,
    )
    return str(SpaceCard(f"---\n{data}\n---\n{text}"))


def _located(weights: str) -> Path | str | None:
    """Return the path of weights that are files, or their name on the Hub; None if they are torchvision's."""
    if is_torchvision(weights):
        return None
    return expand_home(weights) if is_exported(weights) else locate(weights)


def _gradio_version() -> str:
    if absent_package("gradio"):
        raise InputError("the card names the version of Gradio, which is not installed: pip install gradio")
    return importlib.metadata.version("gradio")


def _place(weights: str, name: str, folder: Path) -> str:
    """Copy weights that are files into a folder; return how ``app.py`` names them."""
    found = _located(weights)
    if not isinstance(found, Path):
        return weights
    if not found.is_dir():
        for part in (found, *([found.with_suffix(".bin")] if found.suffix == ".xml" else [])):
            _copy(part, folder / "weights" / f"{name}{part.suffix}")
        return f"./weights/{name}{found.suffix}"
    source = find_folder(weights)
    for file in MODEL_FILES:
        _copy(source / file, folder / "weights" / name / file)
    return f"./weights/{name}"


def _copy(source: Path, target: Path) -> None:
    if target.exists() and source.samefile(target):
        return
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def _write_examples(folder: Path, examples: Sequence[tuple[str, bytes]]) -> None:
    shutil.rmtree(folder / "examples", ignore_errors=True)
    for name, content in examples:
        with atomic_path(folder / "examples" / name) as temporary:
            temporary.write_bytes(content)


def _app(content: Content, places: Sequence[str], options: Mapping[str, Any]) -> str:
    return _APP.format(
        weights=pprint.pformat(list(places), width=110),
        options=pprint.pformat(dict(options), width=110),
        bounds=", ".join(f"{name}={value!r}" for name, value in asdict(content.bounds).items()),
        title=content.title,
        examples='HERE / "examples"' if content.examples else "None",
        threshold=content.threshold,
    )


def _requirements(weights: Sequence[str]) -> str:
    suffixes = {Path(one).suffix.lower() for one in weights if is_exported(one)}
    runtimes = [extra for suffix, extra in ((".onnx", "onnx"), (".xml", "openvino")) if suffix in suffixes]
    extras = ",".join(["detection", "demo", *runtimes])
    return (
        "# PyTorch for CPUs. For a Space with a GPU, remove this line.\n"
        "--extra-index-url https://download.pytorch.org/whl/cpu\n"
        f"vovnet[{extras}] @ git+{SOURCE}\n"
    )
