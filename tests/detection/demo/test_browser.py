"""The demo in a real browser: what a visitor sees and does, with a mouse, with keys alone, on a narrow screen.

``DEMO_SCREENSHOTS=FOLDER`` leaves an image of each state there, to look at.
"""

import csv
import io
import os
import shutil
import socket
from contextlib import contextmanager
from pathlib import Path

import pytest
from demo_cases import Fixed, empty_png, image_file

from vovnet.detection.demo.bounds import Bounds
from vovnet.detection.demo.content import Content
from vovnet.detection.demo.server import running
from vovnet.errors import absent_package

if absent_package("gradio", "playwright"):
    pytest.skip("needs Gradio and Playwright: make test-demo", allow_module_level=True)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("needs Chromium: apt-get install chromium", allow_module_level=True)

pytestmark = pytest.mark.slow

_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def served():
    first, second = Fixed(), Fixed(shift=0.35)
    detectors = {"first": first.ready(), "second": second.ready()}
    bounds = Bounds(max_size_mb=1, rate=1000)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    with running(
        Content("Discs and bars", detectors, [("street.png", image_file(240, 160))], bounds), port=port
    ) as found:
        yield found[0], first, second


class Visit:
    """A visitor's page, with what it asked of which address."""

    def __init__(self, page, address):
        self.page, self.address = page, address
        self.requests, self.errors = [], []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(address)
        page.get_by_text("Lowest score").wait_for(timeout=60_000)

    def drop(self, *files):
        shaped = [{"name": name, "mimeType": "", "buffer": content} for name, content in files]
        self.page.set_input_files("input[type=file]", shaped)

    def total(self, text):
        self.page.locator(".vovnet-total", has_text=text).wait_for(timeout=60_000)

    def message(self, text):
        self.page.locator(".vovnet-messages", has_text=text).wait_for(timeout=60_000)

    @contextmanager
    def drawn_anew(self):
        """Wait at the end of the block until the first drawing is another one."""
        before = self.page.locator(".vovnet-results img").first.get_attribute("src")
        yield
        other = "before => document.querySelector('.vovnet-results img').src != before"
        self.page.wait_for_function(other, arg=before, timeout=60_000)

    def download(self, name):
        with self.page.expect_download() as waiting:
            self.page.locator(f"a[download='{name}']").first.click()
        assert waiting.value.suggested_filename == name
        return list(csv.DictReader(io.StringIO(Path(waiting.value.path()).read_text())))

    def shoot(self, name):
        if folder := os.environ.get("DEMO_SCREENSHOTS"):
            self.page.wait_for_timeout(400)
            self.page.screenshot(path=f"{folder}/{name}.png", full_page=True)


@pytest.fixture
def visit(browser, served):
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    served[1].seen.clear()
    served[2].seen.clear()
    visit = Visit(context.new_page(), served[0])
    yield visit
    context.close()
    assert not visit.errors
    # Nothing came from another address.
    own = (served[0], "data:", "blob:")
    assert not [url for url in visit.requests if not url.startswith(own)]


def test_upload_slider_and_download(visit, served):
    visit.shoot("start")
    visit.drop(("street.png", image_file(300, 200)), ("shop.jpg", image_file(200, 300, "JPEG")))
    visit.total("4 objects in 2 images")
    visit.shoot("found")
    slider = visit.page.get_by_role("slider")
    slider.fill("0.2")
    visit.total("6 objects in 2 images")
    visit.shoot("slider")
    assert served[1].seen == ["street.png", "shop.jpg"]
    counts = visit.download("counts.csv")
    assert [(row["image"], row["category"], row["count"]) for row in counts] == [
        ("street.png", "disc", "1"),
        ("street.png", "bar", "2"),
        ("shop.jpg", "disc", "1"),
        ("shop.jpg", "bar", "2"),
    ]
    assert len(visit.download("detections.csv")) == 6
    drawings = visit.page.locator(".vovnet-results img").evaluate_all("all => all.map(one => one.naturalWidth)")
    assert drawings == [640, 427]
    with visit.drawn_anew():
        visit.page.get_by_label("masks").uncheck()
    visit.shoot("without-masks")
    assert served[1].seen == ["street.png", "shop.jpg"]


def test_two_detectors_side_by_side(visit, served):
    visit.page.get_by_role("button", name="Try street").click()
    visit.total("2 objects in 1 image")
    visit.page.locator("#other").get_by_label("second").check()
    visit.total("second: 1 object")
    visit.shoot("side-by-side")
    assert (served[1].seen, served[2].seen) == (["street.png"], ["street.png"])
    boxes = visit.page.locator("figure").evaluate_all("all => all.map(one => one.getBoundingClientRect().toJSON())")
    assert boxes[0]["top"] == boxes[1]["top"]
    assert boxes[0]["right"] <= boxes[1]["left"]


def test_what_cannot_be_used_is_told_on_the_page(visit):
    visit.drop(("broken.jpg", image_file(kind="JPEG")[:300]))
    visit.message("broken.jpg: the image is truncated or damaged")
    visit.shoot("broken")
    visit.drop(("report.pdf", b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n"))
    visit.message("report.pdf: is not an image")
    visit.shoot("pdf")
    visit.drop(("huge.png", empty_png(20_000, 10_000)))
    visit.message("huge.png: 20000 × 10000 pixels are more than")
    visit.shoot("huge")
    visit.drop(("good.png", image_file()), ("broken.jpg", image_file(kind="JPEG")[:300]))
    visit.total("2 objects in 1 image")
    visit.message("broken.jpg")
    visit.shoot("one-of-two")
    visit.drop(("good.png", image_file()))
    visit.page.locator(".vovnet-messages").wait_for(state="detached", timeout=60_000)


def test_too_large_a_file_is_told_on_the_page(visit):
    visit.drop(("large.png", bytes(2 * 2**20)))
    visit.message("large.png: the file is larger than 1 MB")
    visit.shoot("large")
    visit.drop(("larger.png", bytes(9 * 2**20)))
    visit.page.get_by_text("larger.png").wait_for(timeout=60_000)
    visit.shoot("larger")


def test_with_the_keyboard_alone(visit, served):
    """Every step is a key: the file dialogue, which the system draws, is answered for the visitor."""
    page = visit.page

    def tab_to(what):
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate(f"() => {{ const one = document.activeElement; return Boolean({what}); }}"):
                return
        raise AssertionError(f"Tab does not reach {what}")

    tab_to("one.closest('#images')")
    visit.shoot("focus-upload")
    choosers = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    for _ in range(20):  # a page that has just come may not listen yet
        page.keyboard.press("Enter")
        page.wait_for_timeout(1000)
        if choosers:
            break
    choosers[0].set_files({"name": "x.png", "mimeType": "image/png", "buffer": image_file(200, 150)})
    visit.total("2 objects in 1 image")
    page.evaluate("document.activeElement.blur()")
    tab_to("one.type === 'range'")
    for _ in range(25):
        page.keyboard.press("ArrowLeft")
    visit.total("3 objects in 1 image")
    tab_to("one.type === 'checkbox'")
    with visit.drawn_anew():
        page.keyboard.press("Space")
    tab_to("one.download === 'counts.csv'")
    visit.shoot("focus-download")
    with page.expect_download() as downloading:
        page.keyboard.press("Enter")
    assert "x.png,bar,2" in Path(downloading.value.path()).read_text()
    assert served[1].seen == ["x.png"]


def test_on_a_narrow_screen(browser, served):
    context = browser.new_context(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    visit = Visit(context.new_page(), served[0])
    visit.shoot("narrow-start")
    visit.drop(("a-very-long-name-of-an-image-file-that-somebody-took-somewhere.png", image_file(1500, 900)))
    visit.total("2 objects in 1 image")
    visit.shoot("narrow")
    width = visit.page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390
    context.close()


def test_in_the_dark(browser, served):
    context = browser.new_context(viewport={"width": 1000, "height": 700}, color_scheme="dark")
    visit = Visit(context.new_page(), served[0])
    visit.drop(("x.png", image_file(300, 200)), ("broken.jpg", image_file(kind="JPEG")[:300]))
    visit.total("2 objects in 1 image")
    visit.shoot("dark")
    colours = visit.page.locator(".vovnet-total").evaluate("one => getComputedStyle(one).color")
    assert min(map(int, colours.removeprefix("rgb(").removesuffix(")").split(","))) > 150
    context.close()
