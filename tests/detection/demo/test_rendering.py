"""What a visitor sees: drawings, counts, and the tables of ``vovnet predict`` in links."""

import base64
import csv
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from demo_cases import CATEGORIES, SCORES, Fixed, image_file
from PIL import Image

from vovnet.detection.demo.bounds import Bounds, RateLimit
from vovnet.detection.demo.rendering import Look, messages_html, progress_html, results_html
from vovnet.detection.demo.session import Demo, Session
from vovnet.results.drawing import draw_detections
from vovnet.results.skeletons import skeletons_of
from vovnet.results.tables import DetectedImage, write_tables
from vovnet.results.thresholds import Thresholds


class Page(HTMLParser):
    """The elements of a page: links and images by their attributes, and the texts of cells and captions."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.open = [], {}, []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def attributes(self, tag, name):
        return [attributes[name] for found, attributes in self.tags if found == tag]


def shown(session, detectors, names=("a",), **look):
    return Page(results_html(session, detectors, list(names), Look(**look)))


def made(files=(("x.png", 60),), **detectors):
    detectors = {name: one.ready() for name, one in (detectors or {"a": Fixed()}).items()}
    offered = Demo(detectors, Bounds(), RateLimit(99))
    session = Session()
    offered.take(session, [(name, image_file(width)) for name, width in files])
    list(offered.detect(session, list(detectors), "me"))
    return session, detectors


def downloads(page):
    texts = [base64.b64decode(link.partition("base64,")[2]).decode() for link in page.attributes("a", "href")]
    return list(zip(page.attributes("a", "download"), texts, strict=True))


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.6, 0.9, 1.0])
def test_the_counts_are_those_from_the_threshold_on(threshold):
    page = shown(*made([("x.png", 60), ("y.png", 90)]), threshold=threshold)
    count = 2 * sum(float(np.float32(score)) >= threshold for score in SCORES)
    assert page.texts["strong"] == [f"{count} objects"]
    assert sum(map(int, page.texts.get("td", []))) == count


def test_the_links_hold_the_files_that_predict_writes(tmp_path):
    session, detectors = made([("x.png", 60), ("y.png", 90)])
    page = shown(session, detectors, threshold=0.5)
    images = [DetectedImage(Path(one.name), "", one.found["a"].detections) for one in session.images]
    write_tables(tmp_path, images, CATEGORIES, Thresholds(0.5))
    assert downloads(page) == [(name, (tmp_path / name).read_text()) for name in ("counts.csv", "detections.csv")]
    counts = list(csv.DictReader(io.StringIO(downloads(page)[0][1])))
    assert counts[0] == {"image": "x.png", "category": "disc", "count": "0"}
    assert len(list(csv.DictReader(io.StringIO(downloads(page)[1][1])))) == 6


@pytest.mark.parametrize("look", [{}, {"threshold": 0.7}, {"labels": False}, {"boxes": False}])
def test_the_drawing_is_that_of_predict(look):
    session, detectors = made([("x.png", 800)])
    page = shown(session, detectors, **look)
    data = base64.b64decode(page.attributes("img", "src")[0].partition("base64,")[2])
    image = session.images[0]
    expected = draw_detections(
        Image.open(io.BytesIO(image.shown)),
        image.found["a"].entries,
        look.get("threshold", 0.5),
        labels=look.get("labels", True),
        boxes=look.get("boxes", True),
        skeletons=skeletons_of(CATEGORIES),
    )
    difference = np.asarray(Image.open(io.BytesIO(data)), np.int16) - np.asarray(expected)
    assert np.abs(difference).mean() < 5  # JPEG


def test_each_layer_can_be_left_out():
    session, detectors = made([("x.png", 800)])
    looks = [{}, *({name: False} for name in ("boxes", "masks", "keypoints", "labels"))]
    drawn = [shown(session, detectors, **look).attributes("img", "src")[0] for look in looks]
    assert len(set(drawn)) == len(looks)
    none = dict.fromkeys(("boxes", "masks", "keypoints", "labels"), False)
    data = base64.b64decode(shown(session, detectors, **none).attributes("img", "src")[0].partition("base64,")[2])
    plain = np.asarray(Image.open(io.BytesIO(session.images[0].shown)), np.int16)
    assert np.abs(np.asarray(Image.open(io.BytesIO(data))) - plain).mean() < 3


def test_two_detectors_stand_side_by_side():
    session, detectors = made(**{"first": Fixed(), "org/second@v1": Fixed(shift=0.35)})
    page = shown(session, detectors, ["first", "org/second@v1"])
    assert page.texts["strong"] == ["2 objects", "1 object"]
    assert page.texts["th"][:3] == ["Category", "first", "org/second@v1"]
    assert page.texts["td"] == ["2", "1"]
    assert len(page.attributes("img", "src")) == 2
    assert [caption.partition(":")[0] for caption in page.texts["figcaption"]] == ["first", "org/second@v1"]
    files = [name for name, _ in downloads(page)]
    assert files[:2] == ["counts-first.csv", "detections-first.csv"]
    assert files[2:] == ["counts-org-second-v1.csv", "detections-org-second-v1.csv"]


def test_nothing_found_is_said_and_the_image_is_shown():
    page = shown(*made(), threshold=1.0)
    assert page.texts["strong"] == ["0 objects"]
    assert "table" not in page.texts
    assert page.attributes("img", "alt") == ["x.png with nothing"]


def test_no_text_of_a_visitor_or_detector_becomes_a_part_of_the_page():
    name = "<script>alert('\"&')</script>.png"
    session, detectors = made([(name, 60)], **{"<b>a</b>": Fixed(limit=3)})
    page = shown(session, detectors, ["<b>a</b>"])
    assert "script" not in [tag for tag, _ in page.tags]
    assert page.texts["h3"] == [name]
    for html in (messages_html([name]), progress_html(name)):
        assert [tag for tag, _ in Page(html).tags if tag == "script"] == []


def test_a_limit_that_is_reached_is_said():
    page = shown(*made(a=Fixed(limit=3)))
    assert "limit of 3 detections" in page.texts["figcaption"][0]


def test_no_images_and_no_messages_are_an_empty_page():
    assert results_html(Session(), {}, ["a"], Look()) == ""
    assert messages_html([]) == ""
