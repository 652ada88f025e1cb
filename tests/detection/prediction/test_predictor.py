"""Prediction of every kind of image, drawing, and files that never get lost."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import nn
from torchvision import tv_tensors

from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.models.build import build_detector
from vovnet.detection.prediction.predictor import plot_predictions, predict, predict_files
from vovnet.errors import InputError
from vovnet.images.reading import read_image
from vovnet.results.drawing import draw_detections, draw_truth, prediction_sheet
from vovnet.results.lettering import category_colour

CATEGORIES = [{"id": 11, "name": "disc"}, {"id": 5, "name": "bar"}]


class Finder(nn.Module):
    """Finds the whole image, as a 'bar', and its left half, as a 'disc', and remembers what it was given."""

    categories = CATEGORIES

    def __init__(self, masks=True, channels=3):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.masks = masks
        self.transform = nn.Identity()
        self.transform.image_mean = [0.5] * channels
        self.transform.max_size = 1333
        self.seen = []

    def forward(self, images):
        assert not self.training
        assert not torch.is_grad_enabled()
        (image,) = images
        self.seen.append(image)
        height, width = image.shape[-2:]
        output = {
            "boxes": torch.tensor([[0.0, 0.0, width / 2, height], [0.0, 0.0, width, height]]),
            "labels": torch.tensor([1, 2]),
            "scores": torch.tensor([0.3, 0.9]),
        }
        if self.masks:
            output["masks"] = torch.full((2, 1, height, width), 0.51)
            output["masks"][0, :, :, width // 2 :] = 0.49
        return [output]


def make_image(height=30, width=50, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_form_of_the_answer():
    (found,) = predict(Finder(), [make_image()])
    assert [set(one) for one in found] == [{"bbox", "score", "category_id", "category", "segmentation"}] * 2
    best, other = found
    assert (best["bbox"], best["category_id"], best["category"]) == ([0, 0, 50, 30], 5, "bar")
    assert best["score"] == pytest.approx(0.9)
    assert (other["bbox"], other["category_id"], other["category"]) == ([0, 0, 25, 30], 11, "disc")
    assert coco_mask.decode(other["segmentation"]).sum() == 25 * 30
    assert isinstance(other["segmentation"]["counts"], str)
    json.dumps(found, allow_nan=False)
    assert "segmentation" not in predict(Finder(masks=False), [make_image()])[0][0]


def test_every_kind_of_image_gives_the_same_input(tmp_path):
    image = make_image()
    image.save(tmp_path / "a.png")
    pixels = np.asarray(image)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    finder = Finder()
    kinds = [tmp_path / "a.png", str(tmp_path / "a.png"), image, pixels, tensor, pixels / 255, tensor / 255.0]
    predict(finder, kinds)
    assert len(finder.seen) == len(kinds)
    for seen in finder.seen:
        assert seen.dtype == torch.float32
        assert torch.allclose(seen, finder.seen[0], atol=1e-6)
    assert torch.equal(finder.seen[0], tensor / 255)


class BatchFinder(Finder):
    """Takes several images at a time."""

    def forward(self, images):
        self.seen.append(len(images))
        return [found for image in images for found in Finder.forward(Finder(self.masks).eval(), [image])]


@pytest.mark.parametrize(("size", "batches"), [(1, [1] * 5), (2, [2, 2, 1]), (9, [5])])
def test_batches_change_no_answer_and_no_order(size, batches):
    images = [make_image(30 + number, 50) for number in range(5)]
    finder = BatchFinder()
    found = predict(finder, iter(images), batch_size=size)
    assert finder.seen == batches
    assert found == predict(Finder(), images)


@pytest.mark.parametrize("size", [0, -1, True])
def test_a_batch_has_an_image(size):
    with pytest.raises(InputError, match="batch_size"):
        predict(Finder(), [make_image()], batch_size=size)


def saved(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def unusual(tmp_path):
    image = make_image()
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray((np.arange(30 * 50).reshape(30, 50) * 40).astype(np.uint16))
    return {
        "one": saved(tmp_path, image.resize((1, 1)), "one.png"),
        "grey": saved(tmp_path, image.convert("L"), "grey.png"),
        "palette": saved(tmp_path, image.convert("P"), "palette.png"),
        "rgba": saved(tmp_path, image.convert("RGBA"), "rgba.png"),
        "grey and alpha": saved(tmp_path, image.convert("LA"), "la.png"),
        "16 bit": saved(tmp_path, deep, "deep.png"),
        "cmyk": saved(tmp_path, image.convert("CMYK"), "cmyk.jpg"),
        "turned": saved(tmp_path, image, "turned.jpg", exif=turned),
        "1 bit": saved(tmp_path, image.convert("1"), "bit.png"),
    }


def test_unusual_files_and_opened_files_agree(tmp_path):
    for name, path in unusual(tmp_path).items():
        finder = Finder()
        with Image.open(path) as opened:
            found = predict(finder, [path, opened])
        assert found[0] == found[1], name
        assert torch.equal(finder.seen[0], finder.seen[1]), name
        expected = (50, 30) if name == "turned" else (1, 1) if name == "one" else (30, 50)
        assert finder.seen[0].shape == (3, *expected), name


def test_grey_detectors_get_grey_images():
    finder = Finder(channels=1)
    predict(finder, [make_image(), np.asarray(make_image().convert("L"))])
    assert finder.seen[0].shape == (1, 30, 50)
    assert torch.equal(finder.seen[0], finder.seen[1])


def test_real_detector_on_unusual_images(tmp_path):
    torch.manual_seed(0)
    model = ModelRecipe(
        detector="mask_rcnn",
        backbone="vovnet27_slim",
        fpn_channels=8,
        box_representation_size=16,
        mask_head_channels=4,
        mask_head_convs=1,
        num_classes=2,
        min_size=32,
        max_size=64,
        box_score_thresh=0.0,
        box_detections_per_img=5,
    )
    detector = build_detector(model)
    paths = unusual(tmp_path)
    written = predict_files(detector, list(paths.values()), tmp_path / "out", report=lambda line: None)
    assert [path.stem for path in written] == [path.stem for path in paths.values()]
    assert detector.training, "the mode comes back"
    for path in paths.values():
        drawn, original = Image.open(tmp_path / "out" / f"{path.stem}.png"), read_image(path)
        assert drawn.size == original.size
        for one in json.loads((tmp_path / "out" / f"{path.stem}.json").read_text()):
            assert one["segmentation"]["size"] == [original.height, original.width]
            assert one["category"] == str(one["category_id"])


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ("no-such-file.jpg", "no-such-file.jpg"),
        (torch.rand(3, 8, 8) * 255, r"image 0: float images must be in 0\.\.1"),
        (torch.full((3, 8, 8), float("nan")), r"must be in 0\.\.1"),
        (torch.zeros(5, 8, 8, dtype=torch.uint8), "expected 3 channels"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "expected uint8, uint16"),
        (np.zeros((3, 8, 8), dtype=np.uint8), "expected 3 channels"),
        (np.zeros(8, dtype=np.uint8), "expected an array"),
        (torch.zeros(3, 0, 8), "no pixels"),
        (torch.zeros(3, 1, 5000), "too narrow"),
        (object(), "expected a path"),
    ],
)
def test_bad_images_are_refused(image, says):
    with pytest.raises(InputError, match=says):
        predict(Finder(), [image])


@pytest.mark.parametrize("image", ["a.jpg", make_image(), np.zeros((8, 8, 3), dtype=np.uint8), torch.zeros(3, 8, 8)])
def test_one_image_instead_of_a_list(image):
    with pytest.raises(InputError, match=r"write \[image\]"):
        predict(Finder(), image)


def test_one_bad_file_does_not_stop_the_others(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    whole = io.BytesIO()
    make_image(200, 200).save(whole, "JPEG")
    (tmp_path / "half.jpg").write_bytes(whole.getvalue()[:3000])
    half, gone = tmp_path / "half.jpg", tmp_path / "gone.png"
    paths = [tmp_path / "text.jpg", saved(tmp_path, make_image(), "a.png"), half, gone]
    paths.append(saved(tmp_path, make_image(), "b.png"))
    lines = []
    with pytest.raises(InputError) as caught:
        predict_files(Finder(), paths, tmp_path / "out", report=lines.append)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a.json",
        "a.png",
        "b.json",
        "b.png",
        "counts.csv",
        "detections.csv",
        "summary.json",
    ]
    assert len(lines) == 2
    assert "1 bar with score >= 0.5 (of 2 detections)" in lines[0]
    message = str(caught.value)
    assert message.startswith("3 of 5 images failed (the others are in")
    assert all(f"{name}: " in message for name in ("text.jpg", "half.jpg", "gone.png"))
    assert "\n" not in message


def test_the_threshold_affects_only_the_drawing(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (60, 40)), "a.png")
    for threshold in (0.0, 0.5, 1.0):
        predict_files(Finder(), [path], tmp_path / str(threshold), threshold, report=lambda line: None)
    written = [(tmp_path / str(threshold) / "a.json").read_text() for threshold in (0.0, 0.5, 1.0)]
    assert written[0] == written[1] == written[2]
    assert len(json.loads(written[0])) == 2
    drawn = [np.asarray(Image.open(tmp_path / str(threshold) / "a.png")) for threshold in (0.0, 0.5, 1.0)]
    assert not drawn[2].any()
    assert (drawn[0] != drawn[1]).any()
    assert drawn[1].any()


def test_equal_stems_get_distinct_names(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        saved(tmp_path / folder, make_image(10, 10 if folder == "x" else 20), "a.png")
    predict_files(Finder(), [tmp_path / "x/a.png", tmp_path / "y/a.png"], tmp_path / "out", report=lambda line: None)
    assert Image.open(tmp_path / "out" / "a.png").width == 10
    assert Image.open(tmp_path / "out" / "a-2.png").width == 20


def test_a_image_is_never_overwritten(tmp_path):
    path = saved(tmp_path, make_image(), "a.png")
    before = path.read_bytes()
    with pytest.raises(InputError, match="would be overwritten"):
        predict_files(Finder(), [path], tmp_path)
    assert path.read_bytes() == before


def test_nothing_is_written_through_a_link(tmp_path):
    for folder in ("store", "images", "out"):
        (tmp_path / folder).mkdir()
    stored = [saved(tmp_path / "store", make_image(), name) for name in ("a.png", "b.png")]
    before = [path.read_bytes() for path in stored]
    (tmp_path / "images" / "a.png").symlink_to(stored[0])
    (tmp_path / "out" / "a.png").symlink_to(stored[1])
    (tmp_path / "out" / "a.json").symlink_to(stored[1])
    for output in ("store", "images"):  # the image itself, and the link to it
        with pytest.raises(InputError, match="would be overwritten"):
            predict_files(Finder(), [tmp_path / "images" / "a.png"], tmp_path / output, report=lambda line: None)
    predict_files(Finder(), [tmp_path / "images" / "a.png"], tmp_path / "out", report=lambda line: None)
    assert [path.read_bytes() for path in stored] == before
    assert not (tmp_path / "out" / "a.png").is_symlink()


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_threshold_out_of_range(tmp_path, threshold):
    with pytest.raises(InputError, match="threshold"):
        predict_files(Finder(), [tmp_path / "a.png"], tmp_path / "out", threshold)
    with pytest.raises(InputError, match="threshold"):
        draw_detections(make_image(), [], threshold)
    assert not (tmp_path / "out").exists()


def test_no_images(tmp_path):
    with pytest.raises(InputError, match="no images"):
        predict_files(Finder(), [], tmp_path)


def detection(box, score=0.9, category_id=1, **more):
    return {"bbox": box, "score": score, "category_id": category_id, "category": "thing", **more}


def test_boxes_and_masks_are_where_they_belong():
    image = Image.new("RGB", (100, 80), "black")
    mask = np.zeros((80, 100), dtype=np.uint8, order="F")
    mask[30:60, 40:70] = 1
    rle = coco_mask.encode(mask)
    drawn = np.asarray(draw_detections(image, [detection([40, 30, 30, 30], segmentation=rle)], labels=False))
    colour = np.array(category_colour(1))
    assert not np.asarray(image).any(), "the image given was changed"
    painted = drawn.any(axis=2)
    assert (painted == mask.astype(bool)).all()
    for row, column in ((30, 40), (30, 69), (59, 69), (59, 40)):
        assert (drawn[row, column] == colour).all()
    inside = drawn[45, 55].astype(int)
    assert 0 < inside.max() < colour.max(), "translucent"


def test_labels_differ_from_their_ground_and_stay_inside():
    for ground in ("black", "white"):
        image = Image.new("RGB", (120, 60), ground)
        for box in ([0, 0, 5, 5], [100, 50, 30, 30], [-20, -20, 500, 500]):
            plain = np.asarray(draw_detections(image, [detection(box)], labels=False))
            labelled = np.asarray(draw_detections(image, [detection(box)]))
            assert (plain != labelled).any(axis=2).sum() > 300


def test_category_colours_are_distinct():
    colours = [np.array(category_colour(index)) for index in range(1, 13)]
    for index, one in enumerate(colours):
        for other in colours[:index]:
            assert np.abs(one - other).sum() > 40


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "RGB"])
def test_draws_into_any_mode_and_size(mode):
    for size in ((1, 1), (3, 2000), (640, 480)):
        image = Image.new(mode, size)
        drawn = draw_detections(image, [detection([0, 0, *size]), detection([0, 0, 0, 0], category_id=0)])
        assert (drawn.mode, drawn.size) == ("RGB", size)
        assert draw_truth(image, [detection([0, 0, *size])]).size == size


def test_a_mask_of_another_size_is_refused():
    rle = coco_mask.encode(np.ones((5, 5), dtype=np.uint8, order="F"))
    with pytest.raises(InputError, match="segmentation"):
        draw_detections(make_image(), [detection([0, 0, 5, 5], segmentation=rle)])


def test_a_sheet_of_images(tmp_path):
    found = predict(Finder(), [make_image(30, 50), make_image(64, 20)])
    samples = [(make_image(30, 50), found[0], [{"bbox": [3, 3, 10, 10]}]), (make_image(64, 20), found[1], [])]
    prediction_sheet(samples, tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.width > 2 * 384
    assert 384 < sheet.height < 500
    with pytest.raises(InputError, match="no images"):
        prediction_sheet([], tmp_path / "sheet.png")


class Nothing(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}]


def test_predictions_of_a_dataset(tmp_path):
    boxes = tv_tensors.BoundingBoxes([[2.0, 2, 20, 20]], format="XYXY", canvas_size=(40, 60))
    dataset = [
        (tv_tensors.Image(torch.full((3, 40, 60), 20 * index, dtype=torch.uint8)), {"boxes": boxes})
        for index in range(5)
    ]
    plot_predictions(Nothing(), dataset, tmp_path / "p.png", count=3)
    sheet = np.asarray(Image.open(tmp_path / "p.png"))
    assert sheet.shape[1] == 3 * 384 + 4 * 10
    # The first, second and fourth image, spread over the five.
    middle = sheet[44 + 128 + 80, [10 + 300, 10 + 394 + 300, 10 + 2 * 394 + 300], 0]
    assert middle.tolist() == [0, 20, 60]
