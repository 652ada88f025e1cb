"""The page of an evaluation: complete, harmless whatever names say, and shown by a browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vovnet.detection.evaluation.evaluator import evaluate

EVIL = "<script>document.title='taken'</script><img src=x onerror=alert(1)>\"'&\u202e"
CATEGORIES = [{"id": 1, "name": EVIL}, {"id": 2, "name": "plain"}]


class Data:
    """Six images with two objects each, whose file names are hostile, too."""

    categories = CATEGORIES
    name = "data"

    def __len__(self):
        return 6

    def __getitem__(self, index):
        pixels = torch.from_numpy(np.random.default_rng(index).integers(0, 256, (3, 60, 80), dtype=np.uint8))
        boxes = torch.tensor([[5.0, 5, 25, 25], [40, 20, 70, 50]])
        return pixels, {"image_id": index, "boxes": boxes, "labels": torch.tensor([1, 2])}

    @property
    def ground_truth(self):
        images = [{"id": one, "height": 60, "width": 80, "file_name": f"{one}{EVIL}.png"} for one in range(6)]
        objects = [(1, [5, 5, 20, 20]), (2, [40, 20, 30, 30])]
        annotations = [
            {"id": 2 * one + k, "image_id": one, "category_id": k, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for one in range(6)
            for k, box in objects
        ]
        return {"images": images, "annotations": annotations, "categories": CATEGORIES}


class Detector(nn.Module):
    """Finds the first object, and something that is not there."""

    categories = CATEGORIES

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.transform = nn.Identity()
        self.transform.image_mean = [0.5] * 3

    def forward(self, images):
        boxes = torch.tensor([[5.0, 5, 25, 25], [0, 40, 20, 60]])
        return [{"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": torch.tensor([0.9, 0.8])} for _ in images]


class Page(HTMLParser):
    """Tags with their attributes, and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluation")
    evaluate(Detector(), Data(), output)
    return output


def test_the_page_is_whole_and_harmless(folder):
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    kinds = {tag for tag, _ in page.tags}
    assert not kinds & {"script", "iframe", "object", "link", "base", "form"}
    sources = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert len(sources) == 3
    assert all(one.startswith("data:image/png;base64,") for one in sources)
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert page.text.count("document.title='taken'") == 1 + 6  # the class, and each image
    assert "\u202e" not in page.text


def test_the_page_says_what_the_metrics_say(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    text = Page((folder / "report.html").read_text(encoding="utf-8")).text
    best = metrics["best"]["bbox"]
    # Above the score of the inventions, half of the objects are found.
    assert (best["precision"], best["recall"], best["F1"]) == (1, 0.5, pytest.approx(2 / 3))
    assert f"{best['threshold']:.2f}100.050.066.7" in text
    assert f"{100 * metrics['bbox']['AP50']:.1f}" in text
    assert f"object without a detection{metrics['errors']['bbox']['missed']['count']}" in text


def test_the_worst_images_are_on_the_sheet(folder):
    with Image.open(folder / "worst.png") as sheet:
        assert sheet.width > sheet.height > 300  # six images, four in a row


def test_without_errors_there_is_no_sheet(folder, tmp_path):
    class Perfect(Detector):
        def forward(self, images):
            boxes = torch.tensor([[5.0, 5, 25, 25], [40, 20, 70, 50]])
            scores = torch.tensor([0.9, 0.8])
            return [{"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": scores} for _ in images]

    (tmp_path / "worst.png").write_bytes(b"of an earlier evaluation")
    evaluate(Perfect(), Data(), tmp_path)
    assert not (tmp_path / "worst.png").exists()
    assert len(re.findall("<img", (tmp_path / "report.html").read_text())) == 2


@pytest.mark.slow
def test_chromium_shows_the_page(folder, tmp_path):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"]
    address = (folder / "report.html").as_uri()
    done = subprocess.run([chromium, *flags, "--dump-dom", address], capture_output=True, text=True, timeout=300)
    page = Page(done.stdout)
    assert "<title>Evaluation</title>" in done.stdout, "a name ran as a script"
    assert sum(tag == "img" for tag, _ in page.tags) == 3
    shot = tmp_path / "shot.png"
    command = [chromium, *flags, "--window-size=1100,3000", f"--screenshot={shot}", address]
    subprocess.run(command, capture_output=True, timeout=300, check=True)
    with Image.open(shot) as image:
        assert len(image.convert("RGB").getcolors(2**24)) > 500, "the drawings are not shown"
