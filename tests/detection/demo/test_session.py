"""A visitor's images: each detector looks at each once, and what cannot be used is told."""

import io

import numpy as np
import pytest
from demo_cases import Fixed, empty_png, image_file
from PIL import Image

from vovnet.detection.demo.bounds import Bounds, RateLimit
from vovnet.detection.demo.session import Demo, Session
from vovnet.results.rle import decode


def demo(*detectors, **settings):
    bounds = Bounds(**settings)
    named = {name: one.ready() for name, one in zip("ab", detectors, strict=False)}
    return Demo(named, bounds, RateLimit(bounds.rate, lambda: 0.0))


def looked_at(offered, files, names=("a",), session=None, client="me"):
    session = session or Session()
    offered.take(session, files)
    list(offered.detect(session, names, client))
    return session


def test_a_detector_looks_at_an_image_once():
    one, other = Fixed(), Fixed()
    offered = demo(one, other)
    session = looked_at(offered, [("x.png", image_file()), ("y.jpg", image_file(kind="JPEG"))])
    assert one.seen == ["x.png", "y.jpg"]
    assert list(offered.detect(session, ["a"], "me")) == []
    lines = list(offered.detect(session, ["a", "b"], "me"))
    assert (one.seen, other.seen) == (["x.png", "y.jpg"],) * 2
    assert [line.split(" (")[0] for line in lines] == ["b: x.png", "b: y.jpg"]
    assert session.messages == []
    assert not any(image.content for image in session.images)  # the memory is for others


def test_new_images_replace_those_before():
    offered = demo(Fixed())
    session = looked_at(offered, [("x.png", image_file())])
    looked_at(offered, [("y.png", image_file())], session=session)
    assert [image.name for image in session.images] == ["y.png"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("broken.jpg", image_file(kind="JPEG")[:200], "damaged"),
        ("report.pdf", b"%PDF-1.7\n1 0 obj", "not an image"),
        ("empty.png", b"", "not an image"),
        ("huge.png", empty_png(20_000, 10_000), "20000 × 10000 pixels"),
        ("narrow.png", image_file(4, 40), "too narrow"),
        ("array.npy", b"\x93NUMPY", "not an image"),
    ],
)
def test_what_cannot_be_used_is_told_by_its_name_and_the_others_are_shown(name, content, said):
    session = looked_at(demo(Fixed()), [(name, content), ("good.png", image_file())])
    assert [image.name for image in session.images] == ["good.png"]
    (message,) = session.messages
    assert message.startswith(f"{name}: ")
    assert said in message
    assert "--" not in message  # a visitor has no command line


def test_the_memory_of_the_computer_may_be_too_small():
    detector = Fixed().ready()

    def fails(images, names):
        raise MemoryError

    offered = Demo({"a": type(detector)(fails, 3, detector.limits)}, Bounds(), RateLimit(9))
    session = looked_at(offered, [("x.png", image_file())])
    assert session.images == []
    assert "x.png" in session.messages[0]


def test_files_above_the_bounds_are_left_out():
    large = image_file(300, 300)
    offered = demo(one := Fixed(), max_images=2, max_size_mb=(len(large) - 1) / 2**20)
    session = looked_at(offered, [("l.png", large), ("s.png", image_file()), ("t.png", image_file())])
    assert one.seen == ["s.png"]
    assert [message.split(":")[0] for message in session.messages] == ["3 images are more than 2 at a time", "l.png"]


def test_equal_names_are_told_apart_and_long_ones_cut():
    session = looked_at(demo(Fixed()), [("x.png", image_file()), ("x.png", image_file()), ("n" * 300, image_file())])
    names = [image.name for image in session.images]
    assert len(set(names)) == 3
    assert max(map(len, names)) <= 84


def test_the_rate_ends_what_a_client_may_ask_and_not_what_another_may():
    offered = demo(one := Fixed(), rate=2)
    files = [(f"{number}.png", image_file()) for number in range(3)]
    session = looked_at(offered, files)
    assert one.seen == ["0.png", "1.png"]
    assert [image.name for image in session.images] == ["0.png", "1.png"]
    assert "2 images a minute" in session.messages[0]
    assert "60 seconds" in session.messages[0]
    assert looked_at(offered, files[:1], client="other").messages == []


@pytest.mark.parametrize(("width", "shown"), [(60, 640), (800, 800), (3000, 1280)])
def test_images_are_shown_in_a_size_for_a_page_with_their_detections(width, shown):
    session = looked_at(demo(Fixed()), [("x.png", image_file(width, width // 2))])
    (image,) = session.images
    assert Image.open(io.BytesIO(image.shown)).size == (shown, shown // 2)
    found = image.found["a"]
    scale = shown / width
    first = found.entries[0]
    np.testing.assert_allclose(first["bbox"], [0, 0, shown / 2, shown // 2 / 2], atol=scale)
    np.testing.assert_allclose(first["keypoints"], [scale, scale, 0.9, shown / 2, scale, 0.9], rtol=1e-3)
    mask = decode(first["segmentation"])
    assert mask.shape == (shown // 2, shown)
    assert mask.mean() == pytest.approx(0.25, abs=0.02)
    # The tables have the pixels of the file.
    np.testing.assert_allclose(found.detections.boxes[0], [0, 0, width / 2, width // 2 / 2])
    assert found.detections.masks is None


def test_an_image_turned_by_its_exif_data_is_shown_upright():
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (700, 350)).save(file, "JPEG", exif=exif)
    session = looked_at(demo(Fixed()), [("x.jpg", file.getvalue())])
    shown = Image.open(io.BytesIO(session.images[0].shown))
    assert shown.size == (350, 700)
    assert shown.getexif().get(0x0112, 1) == 1


def test_it_is_told_that_a_limit_cut_the_detections():
    session = looked_at(demo(Fixed(limit=3), Fixed(limit=4)), [("x.png", image_file())], ["a", "b"])
    found = session.images[0].found
    assert (found["a"].limit_reached, found["b"].limit_reached) == (True, False)
