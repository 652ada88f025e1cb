"""The page in a real Chromium: with the mouse, with the keyboard alone, on a narrow screen, and with bad files.

The detector is made by hand: the left half of an image is a ``cell`` whose score is the mean of all pixels, and the
whole image is a ``disc`` with a score of 0.25.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium, onnxruntime_web, served
from evaluation_images import random_image
from exported_files import changed, write_onnx
from PIL import Image
from small_networks import MODEL, detector
from support import command

from vovnet.detection import load_recipe
from vovnet.detection.checkpoints.folder import save_detector
from vovnet.export.web import write_web_page
from vovnet.images.reading import read_image

pytestmark = pytest.mark.slow
SLOWEST = 120_000  # milliseconds


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("page")
    random_image(60, 90).save(place / "example.png")
    points = {"keypoints": ["left", "right"], "skeleton": [[1, 2]]}
    categories = [{"id": 3, "name": "disc"}, {"id": 7, "name": "cell, living", **points}]
    model = write_onnx(place / "m.onnx", changed(categories=categories, keypoints=2))
    ort = onnxruntime_web()
    write_web_page(model, place / "out", ort=ort, examples=[place / "example.png"], title="<i>Cells</i>")
    return place / "out"


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with served(folder) as url:
        yield url


class Shown:
    """The page in a tab: what it says, and what it complains of to developers."""

    def __init__(self, browser: Any, address: str, **settings: Any) -> None:
        self.context = browser.new_context(**settings)
        self.tab = self.context.new_page()
        self.faults: list[str] = []
        self.asked: set[str] = set()
        self.tab.on("filechooser", lambda _: None)  # from now on, no dialog of the system opens
        self.tab.on("console", lambda one: self.faults.append(one.text) if one.type in ("error", "warning") else None)
        self.tab.on("pageerror", lambda error: self.faults.append(str(error)))
        self.context.on("request", lambda request: self.asked.add(request.url))
        self.tab.goto(address)
        self.wait("^Ready")

    def wait(self, status: str) -> None:
        from playwright.sync_api import expect

        expect(self.tab.locator("#status")).to_have_text(re.compile(status), timeout=SLOWEST)

    def upload(self, *files: Path, images: int) -> None:
        self.tab.set_input_files("#files", [str(file) for file in files])
        self.wait(rf"^\d+ objects? .* in {images} image" if images else "^Ready")

    def counts(self) -> dict[str, int]:
        rows = self.tab.locator("#counts tbody tr").all()
        return {row.locator("th").inner_text(): int(row.locator("td").inner_text()) for row in rows}

    def saved(self, button: str) -> list[dict[str, str]]:
        with self.tab.expect_download() as download:
            self.tab.get_by_role("button", name=button).click()
        assert download.value.suggested_filename == button.split()[-1]
        return list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text(encoding="utf-8"))))

    def errors(self) -> list[str]:
        return self.tab.locator("#errors li").all_inner_texts()


@pytest.fixture
def shown(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Shown]:
    page = Shown(browser, address, **getattr(request, "param", {}))
    yield page
    page.context.close()


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """A dark and a bright image, whose cells have scores of 0.2 and 0.8."""
    paths = [tmp_path / "dark.png", tmp_path / "bright.png"]
    for path, grey in zip(paths, (51, 204), strict=True):
        Image.new("RGB", (90, 60), (grey, grey, grey)).save(path)
    return paths


def test_counts_follow_the_slider_without_another_run_and_come_as_csv(shown: Shown, images: list[Path]) -> None:
    assert shown.tab.title() == "<i>Cells</i>"
    shown.upload(*images, images=2)
    assert shown.counts() == {"cell, living": 1, "disc": 0}
    times = shown.tab.locator("figcaption small").all_inner_texts()
    shown.tab.locator("#threshold").fill("0.1")
    shown.wait("^4 objects with a score of at least 0.10 in 2 images")
    assert shown.counts() == {"cell, living": 2, "disc": 2}
    assert shown.tab.locator("#total").inner_text() == "4"
    assert shown.tab.locator("figcaption small").all_inner_texts() == times
    rows = [(one["image"], one["category"], one["count"]) for one in shown.saved("Download counts.csv")]
    assert rows == [(name, kind, "1") for name in ("dark.png", "bright.png") for kind in ("disc", "cell, living")]
    shown.tab.locator("#threshold").fill("0.9")
    shown.wait("^0 objects")
    found = shown.saved("Download detections.csv")  # all, whatever the slider says
    assert [(one["image"], one["category_id"], round(float(one["score"]), 3)) for one in found] == [
        ("dark.png", "3", 0.25),
        ("dark.png", "7", 0.2),
        ("bright.png", "7", 0.8),
        ("bright.png", "3", 0.25),
    ]
    assert [float(found[2][side]) for side in ("x", "y", "width", "height")] == [0, 0, 45, 60]
    assert shown.faults == []


def test_nothing_comes_from_another_server(shown: Shown, images: list[Path], address: str) -> None:
    shown.upload(*images, images=2)
    addresses = {one for one in shown.asked if not one.startswith(("blob:", "data:"))}
    assert {one.removeprefix(address) for one in addresses} >= {"", "app.js", "model.json"}
    assert [one for one in addresses if not one.startswith(address)] == []


def test_masks_boxes_and_points_are_drawn_at_their_places_in_the_colours_of_predict(
    shown: Shown, images: list[Path]
) -> None:
    shown.upload(images[1], images=1)
    canvas = shown.tab.locator("figure canvas")
    assert canvas.get_attribute("aria-label") == "bright.png: 1 cell, living"
    drawn = np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")).astype(int)
    height, width = drawn.shape[:2]
    assert width / height == pytest.approx(90 / 60, rel=0.02)
    # The mask's probabilities fall from 0.9 to 0.1 over the left half: its first half is tinted, and the rest is grey.
    assert np.abs(drawn[height // 2, width * 3 // 4] - 204).max() <= 1
    assert np.abs(drawn[height // 2, width * 3 // 8] - 204).max() <= 1
    tinted = drawn[height // 2, width // 8]
    colour = np.array([204, 121, 167])  # category 7
    assert np.abs(tinted - (204 * 0.58 + colour * 0.42)).max() <= 2
    edge = drawn[height // 2, width // 2 - 3 : width // 2 + 4]
    assert (np.abs(edge - colour).max(1) <= 2).any()


def test_the_keyboard_suffices(shown: Shown, images: list[Path]) -> None:
    keyboard = shown.tab.keyboard

    def focused() -> str:
        return shown.tab.locator(":focus").evaluate("one => one.id || one.ariaLabel || one.textContent")

    keyboard.press("Tab")
    assert focused() == "choose"
    outline = shown.tab.locator(":focus").evaluate("one => getComputedStyle(one).outlineStyle")
    assert outline == "solid"  # the focus can be seen
    with shown.tab.expect_file_chooser() as chooser:
        keyboard.press("Enter")
    chooser.value.set_files([str(path) for path in images])
    shown.wait("in 2 images")
    keyboard.press("Tab")
    assert focused() == "Example example.png"
    keyboard.press("Space")
    shown.wait("in 3 images")
    keyboard.press("Tab")
    assert focused() == "threshold"
    for _ in range(15):
        keyboard.press("ArrowRight")
    shown.wait("at least 0.65")
    order = []
    for _ in range(6):
        keyboard.press("Tab")
        order.append(focused())
    removes = [f"Remove {name}" for name in ("dark.png", "bright.png", "example.png")]
    assert order == ["save-counts", "save-detections", "clear", *removes]
    keyboard.press("Enter")
    shown.wait("in 2 images")
    assert focused() == "Remove bright.png"
    assert shown.faults == []


@pytest.mark.parametrize("shown", [{"viewport": {"width": 320, "height": 640}}], indirect=True)
def test_a_narrow_screen_shows_everything_without_scrolling_sideways(shown: Shown, images: list[Path]) -> None:
    shown.upload(*images, images=2)
    assert shown.tab.evaluate("document.documentElement.scrollWidth") <= 320
    for one in shown.tab.locator("button:visible, canvas, table, #threshold").all():
        box = one.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 320
        assert box["height"] >= 24


@pytest.mark.parametrize("shown", [{"color_scheme": "dark"}, {"color_scheme": "light"}], indirect=True)
def test_texts_have_contrast_in_light_and_dark(shown: Shown, images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no image")
    shown.upload(images[1], tmp_path / "bad.png", images=1)
    for selector in (
        "h1",
        "header p",
        "#choose",
        "#status",
        "#errors li",
        "caption",
        "tfoot td",
        "footer p",
        "footer a",
    ):
        colours = shown.tab.locator(selector).first.evaluate(_COLOURS)
        assert contrast(*colours) >= 4.5, (selector, colours)


_COLOURS = """one => {
  const ground = (node) => {
    const colour = getComputedStyle(node).backgroundColor;
    return /, 0\\)$/.test(colour) && node.parentElement ? ground(node.parentElement) : colour;
  };
  return [getComputedStyle(one).color, ground(one)];
}"""


def contrast(text: str, ground: str) -> float:
    """WCAG 2.2, contrast ratio."""
    levels = []
    for colour in (text, ground):
        values = np.array([int(value) for value in re.findall(r"\d+", colour)[:3]]) / 255
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        levels.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(levels) + 0.05) / (min(levels) + 0.05)


def test_bad_files_give_a_message_and_the_good_one_beside_them_is_shown(
    shown: Shown, images: list[Path], tmp_path: Path
) -> None:
    bad = {name: tmp_path / name for name in ("text.png", "empty.png", "page.pdf", "cut.png", "huge.png", "table.csv")}
    bad["text.png"].write_text("no image")
    bad["empty.png"].write_bytes(b"")
    bad["page.pdf"].write_bytes(b"%PDF-1.4\n%%EOF\n")
    random_image(200, 300).save(bad["cut.png"])
    bad["cut.png"].write_bytes(bad["cut.png"].read_bytes()[:20_000])
    Image.new("1", (20_000, 10_000)).save(bad["huge.png"])
    bad["table.csv"].write_text("a,b\n")
    shown.upload(*bad.values(), images[0], images=1)
    errors = {line.partition(": ")[0]: line for line in shown.errors()}
    assert errors.keys() == bad.keys()
    assert "200 megapixels" in errors["huge.png"]
    assert "20000×10000" in errors["huge.png"]
    assert "application/pdf" in errors["page.pdf"]
    assert "damaged" in errors["cut.png"]
    shown.upload(images[1], images=2)
    assert shown.errors() == []  # they were of the files before


def strange_images(folder: Path) -> list[Path]:
    """PNG files of every kind of which a browser could show other colours than their own."""
    image = random_image(60, 90)
    pixels = np.array(image)
    fall = np.broadcast_to(np.linspace(0, 255, 90).astype(np.uint8), (60, 90))
    turned = Image.Exif()
    turned[0x0112] = 6
    files: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "plain": (image, {}),
        "grey": (image.convert("L"), {}),
        "palette": (image.quantize(16), {}),
        "alpha": (Image.fromarray(np.dstack([pixels, fall])), {}),
        "clear palette": (image.quantize(16), {"transparency": 3}),
        "16 bits": (Image.fromarray(pixels[..., 0].astype(np.uint16) * 256 + 255), {}),
        "turned": (image, {"exif": turned}),
        "profile": (image, {"icc_profile": swapped_primaries()}),
    }
    for name, (one, options) in files.items():
        one.save(folder / f"{name}.png", **options)
    return [folder / f"{name}.png" for name in files]


def swapped_primaries() -> bytes:
    """A colour profile in which red and green change places."""
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    places = {bytes(profile[start : start + 4]): start + 4 for start in range(132, 132 + 12 * profile[131], 12)}
    red, green = places[b"rXYZ"], places[b"gXYZ"]
    profile[red : red + 8], profile[green : green + 8] = profile[green : green + 8], profile[red : red + 8]
    return bytes(profile)


def test_every_kind_of_png_is_read_as_predict_reads_it(shown: Shown, tmp_path: Path) -> None:
    """The score of the cell is the mean of all values, and the boxes tell the size."""
    paths = strange_images(tmp_path)
    shown.upload(*paths, images=len(paths))
    found = [one for one in shown.saved("Download detections.csv") if one["category_id"] == "7"]
    assert [one["image"] for one in found] == [path.name for path in paths]
    for path, one in zip(paths, found, strict=True):
        image = read_image(path)
        assert float(one["score"]) == pytest.approx(np.asarray(image).mean() / 255, abs=1e-5), path.name
        assert (float(one["width"]), float(one["height"])) == (image.width / 2, image.height), path.name
    assert shown.faults == []


def test_a_mask_rcnn_detects_what_predict_detects_with_one_thread_and_with_more(browser: Any, tmp_path: Path) -> None:
    recipe = load_recipe("mask_rcnn_vovnet39_fpn", [f"model.{key}={value}" for key, value in MODEL.items()])
    categories = [{"id": number, "name": f"thing {number}"} for number in range(1, 5)]
    save_detector(tmp_path / "run", detector("mask_rcnn_vovnet39_fpn"), recipe.model, categories)
    done = command("export-web", tmp_path / "run", "--output", tmp_path / "out", "--ort", onnxruntime_web())
    assert done.code == 0, done.err
    paths = []
    for number, size in enumerate([(96, 128), (150, 90)]):
        paths.append(tmp_path / f"{number}.png")
        random_image(*size).save(paths[-1])
    done = command("predict", *paths, "--weights", tmp_path / "out" / "model.onnx", "-o", tmp_path / "predicted")
    assert done.code == 0, done.err
    expected = list(csv.DictReader((tmp_path / "predicted" / "detections.csv").open(encoding="utf-8")))
    # With these headers the browser lets the runtime have threads.
    headers = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
    for given in ({}, headers):
        with served(tmp_path / "out", given) as address:
            page = Shown(browser, address)
            assert page.tab.evaluate("crossOriginIsolated") == bool(given)
            page.upload(*paths, images=2)
            found = page.saved("Download detections.csv")
            assert page.faults == []
            page.context.close()
        assert len(found) == len(expected) > 10
        for one, other in zip(found, expected, strict=True):
            assert (one["image"], one["category_id"]) == (Path(other["image"]).name, other["category_id"])
            assert float(one["score"]) == pytest.approx(float(other["score"]), abs=1e-4)
            for side in ("x", "y", "width", "height"):
                assert float(one[side]) == pytest.approx(float(other[side]), abs=1e-2)


def test_an_image_that_fails_in_the_runtime_gives_a_message_and_the_next_one_is_detected(
    browser: Any, images: list[Path], tmp_path: Path
) -> None:
    model = write_onnx(tmp_path / "m.onnx", changed(size=(60, 90)))
    write_web_page(model, tmp_path / "out", ort=onnxruntime_web())
    Image.new("RGB", (91, 60)).save(tmp_path / "wide.png")
    facts = json.loads((tmp_path / "out" / "model.json").read_text())
    for known, word in ((facts, "only 90×60"), ({**facts, "input": {**facts["input"], "size": None}}, "dimensions")):
        (tmp_path / "out" / "model.json").write_text(json.dumps(known))
        with served(tmp_path / "out") as address:
            page = Shown(browser, address)
            page.upload(tmp_path / "wide.png", images[1], images=1)
            (line,) = page.errors()
            assert line.startswith("wide.png: ")
            assert word in line
            page.context.close()


def test_a_page_that_lacks_the_model_says_so(browser: Any, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "model.onnx").unlink()
    with served(tmp_path / "copy") as address:
        tab = browser.new_page()
        tab.goto(address)
        line = tab.locator("#errors li")
        line.wait_for(timeout=SLOWEST)
        assert "model.onnx" in line.inner_text()
        assert "404" in line.inner_text()
        assert tab.locator("#choose").is_disabled()
        tab.close()
