"""Videos and cameras: every frame once, and one line for what cannot be read."""

import json
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from small_networks import MODEL, detector
from support import command

from vovnet.detection import load_recipe, predict
from vovnet.detection.checkpoints.folder import save_detector
from vovnet.detection.prediction.predictor import predict_videos
from vovnet.errors import InputError
from vovnet.images.arguments import image_arguments
from vovnet.images.video import is_video, opened_video, video_name, written_video

pytest.importorskip("av")
CATEGORIES = [{"id": one, "name": f"class {one}"} for one in (1, 2, 3, 4)]


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with written_video(path, Fraction(10)) as writer:
        for number in range(12):
            writer.add(Image.new("RGB", (120, 90), (20 * number, 60, 255 - 20 * number)))
    return path


@pytest.fixture(scope="module")
def made():
    built = detector("faster_rcnn_vovnet39_fpn")
    built.categories = CATEGORIES
    return built


def test_frames_come_in_order_with_their_times(film):
    with opened_video(film) as video:
        frames = list(video.frames(5))
    assert [(one.number, one.seconds) for one in frames] == [(0, 0.0), (5, 0.5), (10, 1.0)]
    assert video.problem is None
    reds = [np.asarray(one.image)[40, 40, 0] for one in frames]
    assert reds == pytest.approx([0, 100, 200], abs=12)


class CountingContainer:
    """A container that counts the packets that are written into it."""

    def __init__(self, container):
        self.container, self.packets = container, 0

    def add_stream(self, *arguments, **options):
        return self.container.add_stream(*arguments, **options)

    def mux(self, packets):
        self.packets += len(packets)
        self.container.mux(packets)


def test_an_encoder_holds_few_frames(tmp_path):
    """The memory of a video does not grow with its length, nor by more than some frames."""
    with written_video(tmp_path / "long.mp4", Fraction(10)) as writer:
        writer._container = counting = CountingContainer(writer._container)
        for number in range(50):
            writer.add(Image.new("RGB", (64, 48), (5 * number, 60, 90)))
        assert counting.packets >= 50 - 20
    assert counting.packets == 50


def test_an_annotated_video_and_a_line_for_each_frame(film, made, tmp_path):
    (lines,) = predict_videos(made, [film], tmp_path, every=3, max_frames=3, max_detections=4, batch_size=2)
    entries = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [one["frame"] for one in entries] == [0, 3, 6]
    assert all(one["limit_reached"] for one in entries)
    with opened_video(film) as video:
        images = [one.image for one in video.frames(3)][:3]
    expected = predict(made, images, max_detections=4, batch_size=2)
    assert [one["detections"] for one in entries] == expected[:3]
    with opened_video(tmp_path / "film.mp4") as drawn:
        assert drawn.rate == Fraction(10, 3)
        shown = [one.image for one in drawn.frames()]
    assert [one.size for one in shown] == [(120, 90)] * 3
    assert (np.asarray(shown[0]) != np.asarray(images[0])).any()


def test_a_video_that_ends_half_way(film, made, tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "whole.avi"), "w") as container:  # its index is at the end, and its frames are whole
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 120, 90, "yuvj420p"
        for number in range(12):
            image = Image.effect_noise((120, 90), 20 * number + 1).convert("RGB")
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    data = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "half.avi").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"half\.avi: the video ends after"):
        predict_videos(made, [tmp_path / "half.avi"], tmp_path / "out")
    assert 2 <= len((tmp_path / "out" / "half.jsonl").read_text().splitlines()) < 12
    assert (tmp_path / "out" / "half.mp4").is_file()
    whole = film.read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])  # without its index there is no frame
    with pytest.raises(InputError, match=r"half\.mp4"):
        predict_videos(made, [tmp_path / "half.mp4"], tmp_path / "none")
    assert list((tmp_path / "none").iterdir()) == []


def test_what_is_no_video(tmp_path, made):
    (tmp_path / "text.mp4").write_text("text")
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    for source in ("camera:77", tmp_path / "text.mp4", tmp_path / "gone.mp4", tmp_path):
        with pytest.raises(InputError, match=str(source).rpartition("/")[2]), opened_video(source):
            pass
    for name, value in (("every", 0), ("max_frames", True), ("threshold", 2)):
        with pytest.raises(InputError, match=f"^{name}:"):
            predict_videos(made, ["x.mp4"], tmp_path / "out", **{name: value})
    with pytest.raises(InputError, match="two videos"):
        predict_videos(made, ["a/x.mp4", "b/x.mov"], tmp_path / "out")


def test_a_video_is_never_overwritten(film, made):
    before = film.read_bytes()
    with pytest.raises(InputError, match="would be overwritten"):
        predict_videos(made, [film], film.parent)
    assert film.read_bytes() == before


@pytest.mark.parametrize(
    ("source", "name"),
    [("a/film.MP4", "film"), ("camera:0", "camera-0"), ("rtsp://user:secret@host:554/door", "host-554-door")],
)
def test_names_of_videos(source, name):
    assert is_video(source)
    assert video_name(source) == name


def test_arguments_are_files_folders_and_patterns(tmp_path):
    (tmp_path / "photos" / "more").mkdir(parents=True)
    files = [tmp_path / "photos" / name for name in ("b.png", "a.jpg", "more/c.png")]
    for path in files:
        Image.new("RGB", (8, 8)).save(path)
    (tmp_path / "photos" / "v.mp4").write_bytes(b"")
    told = []
    b, a, c = files
    assert image_arguments([str(tmp_path / "photos")], told.append) == ([a, b], [])
    assert "v.mp4" in told[0]
    assert image_arguments([str(tmp_path / "photos" / "**" / "*.png")]) == ([b, c], [])
    videos = [str(tmp_path / "photos" / "v.mp4")]
    assert image_arguments([str(tmp_path / "photos" / "[av].*"), str(b), "camera:1"]) == ([a, b], [*videos, "camera:1"])
    assert image_arguments(["gone.png"])[0][0].name == "gone.png"  # reading it says so
    with pytest.raises(InputError, match="no file matches"):
        image_arguments([str(tmp_path / "*.tif")])


def test_the_command_takes_images_and_videos(film, tmp_path):
    values = [f"model.{key}={value}" for key, value in MODEL.items()]
    model = load_recipe("faster_rcnn_vovnet39_fpn", values).model
    save_detector(tmp_path / "run", detector("faster_rcnn_vovnet39_fpn"), model, CATEGORIES)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (100, 80)).save(tmp_path / "photos" / "a.png")
    run = ["predict", tmp_path / "photos", film, "--weights", tmp_path / "run", "--output", tmp_path / "out"]
    done = command(*run, "--every", 6, "--labels", "none")
    assert done.code == 0, done.err
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"a.json", "a.png", "summary.json", "film.mp4", "film.jsonl"} <= written
    assert len((tmp_path / "out" / "film.jsonl").read_text().splitlines()) == 2
    command("predict", "camera:77", *run[3:], "--overwrite").refused("camera:77")
    command("predict", film, *run[3:], "--overwrite", "--folder").refused("--folder")
