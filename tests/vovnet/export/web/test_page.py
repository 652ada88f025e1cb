"""The page of a detector: which files it has, what it knows of the model, and which models are refused."""

from __future__ import annotations

import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from exported_files import CATEGORIES, CLASSIFIER, DETECTOR, changed, write_onnx
from PIL import Image, ImageColor
from support import command, contents

from vovnet.errors import InputError
from vovnet.export.metadata import ExportMetadata
from vovnet.export.web import write_web_page
from vovnet.results.lettering import category_colour
from vovnet.results.skeletons import SIDE_COLOURS


def facts_of(folder: Path) -> dict:
    return json.loads((folder / "model.json").read_text(encoding="utf-8"))


def test_the_folder_has_all_that_its_files_refer_to_and_no_address_of_another_host(ort: Path, tmp_path: Path) -> None:
    model = write_onnx(tmp_path / "m.onnx")
    Image.new("RGB", (20, 10), "red").save(tmp_path / "red.jpg")
    page = write_web_page(model, tmp_path / "out", ort=ort, examples=[tmp_path / "red.jpg"])
    assert page == tmp_path / "out" / "index.html"
    files = contents(tmp_path / "out")
    assert files["model.onnx"] == model.read_bytes()
    assert files["ort/ort.js"] == b"export {};"
    assert gzip.decompress(files["ort/runtime.wasm.gz"]) == b"\0asm" * 1000
    assert b"Copyright (c) Microsoft Corporation" in files["ort/LICENSE.txt"]
    own = {name: text.decode() for name, text in files.items() if re.fullmatch(r"[a-z]+\.(html|js|css)", name)}
    pattern = r'(?:from|Worker\(|src=|href=) ?"([^"]+)"|"((?:ort/)?[\w.]+\.(?:gz|json|txt))"'
    found = (one for text in own.values() for one in re.findall(pattern, text))
    referred = {first or second for first, second in found}
    referred |= {one["file"] for one in facts_of(tmp_path / "out")["examples"]}
    missing = {name for name in referred if name.removeprefix("./") not in files and not name.startswith("data:")}
    assert referred >= {"app.js", "style.css", "worker.js", "model.json", "ort/runtime.wasm.gz", "examples/1.png"}
    assert not missing
    assert not any("//" in re.sub(r"^\s*(//|/\*).*|\s// .*", "", text, flags=re.MULTILINE) for text in own.values())
    with Image.open(tmp_path / "out" / "examples" / "1.png") as example:
        assert example.size == (20, 10)


def test_the_same_arguments_write_the_same_bytes_and_replace_an_earlier_page(ort: Path, tmp_path: Path) -> None:
    model = write_onnx(tmp_path / "m.onnx")
    for number in (1, 2):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
    images = [tmp_path / "1.png", tmp_path / "2.png"]
    write_web_page(model, tmp_path / "one", ort=ort, examples=images[:1])
    write_web_page(model, tmp_path / "two", ort=ort, examples=images, title="Another")
    with pytest.raises(InputError, match="--overwrite"):
        write_web_page(model, tmp_path / "two", ort=ort)
    write_web_page(model, tmp_path / "two", ort=ort, examples=images[:1], overwrite=True)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_page_knows_what_the_metadata_says(ort: Path, tmp_path: Path) -> None:
    points = {"keypoints": ["left_eye", "right_eye", "nose"], "skeleton": [[1, 3], [2, 3]]}
    categories = [{"id": 7, "name": "<b>cell</b>", **points}, {"id": 3, "name": "disc"}]
    known = changed(DETECTOR, categories=categories, keypoints=3, masks=None, box_format="xyxy_inclusive", size=(6, 8))
    model = write_onnx(tmp_path / "m.onnx", known)
    write_web_page(model, tmp_path / "out", ort=ort, threshold=0.01, title="Cells")
    facts = facts_of(tmp_path / "out")
    assert facts["title"] == "Cells"
    assert facts["input"] == {"channels": 3, "dtype": "uint8", "size": [6, 8]}
    assert (facts["box_format"], facts["limit"]) == ("xyxy_inclusive", 100)
    assert (facts["least"], facts["threshold"]) == (0.05, 0.05)
    assert (facts["runtime"], facts["vovnet"]) == ("1.2.3", known.version)
    cell, disc = facts["categories"]
    assert (cell["id"], cell["name"]) == (7, "<b>cell</b>")
    assert [ImageColor.getrgb(one["colour"]) for one in (cell, disc)] == [category_colour(7), category_colour(3)]
    assert [ImageColor.getrgb(one) for one in cell["points"]] == [SIDE_COLOURS[one] for one in ("left", "right", None)]
    assert cell["skeleton"] == [[0, 2], [1, 2]]
    assert "points" not in disc  # its keypoints mean nothing
    assert facts["model_bytes"] == model.stat().st_size
    assert facts["bytes"] == facts["model_bytes"] + (tmp_path / "out" / "ort" / "runtime.wasm.gz").stat().st_size


def test_without_skeletons_every_category_shows_its_points(ort: Path, tmp_path: Path) -> None:
    write_web_page(write_onnx(tmp_path / "m.onnx", changed(keypoints=2)), tmp_path / "out", ort=ort)
    assert [len(one["points"]) for one in facts_of(tmp_path / "out")["categories"]] == [2, 2]


@pytest.mark.parametrize(
    ("metadata", "word"),
    [
        (CLASSIFIER, "classifier"),
        (changed(batch=2, size=(8, 8)).to_json(), "--batch"),
        (changed(masks="image"), "--masks box"),
        (changed(channels=4), "4 channels"),
    ],
)
def test_what_a_page_cannot_run_is_refused_and_nothing_is_written(
    metadata: ExportMetadata | str, word: str, ort: Path, tmp_path: Path
) -> None:
    model = write_onnx(tmp_path / "m.onnx", metadata)
    with pytest.raises(InputError, match=word):
        write_web_page(model, tmp_path / "out", ort=ort)
    assert not (tmp_path / "out").exists()


def test_the_command_writes_the_page_and_says_how_to_see_it(ort: Path, tmp_path: Path) -> None:
    model = write_onnx(tmp_path / "m.onnx")
    done = command("export-web", model, "--output", tmp_path / "out", "--ort", ort)
    assert done.code == 0, done.err
    assert f"python -m http.server --directory {tmp_path / 'out'}" in done.out
    names = [one["name"] for one in CATEGORIES]
    assert facts_of(tmp_path / "out")["title"].endswith(", ".join(names))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["m.xml"], [".onnx"]),
        (["no/such/run", "--example", "none.png"], ["--example", "none.png"]),
        (["m.onnx", "--ort", "nowhere"], ["--ort", "nowhere"]),
        (["m.onnx", "--ort", "m.onnx"], ["SHA-512", "onnxruntime-web-"]),
        (["m.onnx", "--ort", "."], ["package.json"]),
        (["nothing.onnx"], ["nothing.onnx"]),
        (["m.onnx", "--ort", "onnxruntime-web", "--example", "m.xml"], ["m.xml"]),
    ],
)
def test_wrong_arguments_are_told_in_one_line(
    arguments: list[str], words: list[str], ort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_onnx(tmp_path / "m.onnx")
    (tmp_path / "m.xml").write_text("<net/>")
    command("export-web", *arguments, "--output", "out").refused(*words)
    assert not (tmp_path / "out").exists()


def test_every_control_of_the_page_has_a_name(ort: Path, tmp_path: Path) -> None:
    page = write_web_page(write_onnx(tmp_path / "m.onnx"), tmp_path / "out", ort=ort)
    seen = _Names()
    seen.feed(page.read_text(encoding="utf-8"))
    assert seen.controls >= {"choose", "threshold", "save-counts", "save-detections", "clear"}
    assert seen.controls - seen.named - {"files"} == set()  # the input of files is hidden: the button opens it


class _Names(HTMLParser):
    """Ids of buttons and inputs, and of those that have a text, a label or an aria-label."""

    def __init__(self) -> None:
        super().__init__()
        self.controls: set[str] = set()
        self.named: set[str] = set()
        self._open = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if tag in ("button", "input", "progress"):
            self._open = known["id"] or ""
            self.controls.add(self._open)
            if "aria-label" in known:
                self.named.add(self._open)
        if tag == "label":
            self.named.add(known["for"] or "")

    def handle_data(self, data: str) -> None:
        if data.strip() and self._open:
            self.named.add(self._open)

    def handle_endtag(self, tag: str) -> None:
        self._open = ""
