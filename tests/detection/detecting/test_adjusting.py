"""Other sizes and thresholds for one run, and tiles, for every kind of detector."""

import json

import pytest
import torch
from PIL import Image
from small_networks import detector
from support import command
from torch import nn

import vovnet
from vovnet.detection import evaluate, predict
from vovnet.detection.checkpoints.folder import save_detector
from vovnet.detection.config.detectors import DETECTORS
from vovnet.detection.detecting.adjusting import adjusted
from vovnet.detection.prediction.predictor import predict_files
from vovnet.errors import InputError
from vovnet.results.limits import LimitWarning
from vovnet.results.run_options import RunSettings

pytestmark = pytest.mark.filterwarnings("ignore::vovnet.results.limits.LimitWarning")
KINDS = {
    "faster_rcnn": "faster_rcnn_vovnet39_fpn",
    "mask_rcnn": "mask_rcnn_vovnet39_fpn",
    "keypoint_rcnn": "keypoint_rcnn_vovnet39_fpn",
    "retinanet": "retinanet_vovnet39_fpn",
    "fcos": "fcos_vovnet39_fpn",
    "legacy": "faster_rcnn_V_39_FPN_1x",
}


def image(height=150, width=200, seed=0):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def built(kind, **model):
    extra = {"num_keypoints": "3"} if kind == "keypoint_rcnn" else {}
    if kind == "fcos":  # its group norm needs two pixels in the coarsest map
        extra = {"min_size": "150", "max_size": "300"}
    return detector(KINDS[kind], **extra | model)


def test_every_kind_is_tried():
    assert set(DETECTORS) <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_options_do_what_the_recipe_would_do(kind):
    made, pixels = built(kind), image()
    before = predict(made, [pixels])
    other = {"detections_per_img": "7", "score_thresh": "0.4", "nms_thresh": "0.3"}
    recipes = built(kind, min_size="130", max_size="240", **{f"box_{key}": value for key, value in other.items()})
    recipes.load_state_dict(made.state_dict())
    options = {"size": 130, "max_size": 240, "max_detections": 7, "score": 0.4, "nms": 0.3}
    assert predict(made, [pixels], **options) == predict(recipes, [pixels])
    assert predict(made, [pixels]) == before, "the options stayed"


@pytest.mark.parametrize("kind", KINDS)
def test_a_larger_limit_finds_at_least_as_much(kind):
    made, pixels = built(kind, box_detections_per_img="3", box_score_thresh="0.0"), image()
    few, many = predict(made, [pixels])[0], predict(made, [pixels], max_detections=40)[0]
    assert 3 <= len(few) < len(many)
    if kind != "legacy":  # keeps all of equal scores
        assert (len(few), len(many) <= 40) == (3, True)
    assert many[0]["score"] >= few[0]["score"]


def test_options_end_with_an_error():
    made = detector()
    state = dict(made.roi_heads.__dict__), made.transform.max_size, made.rpn._post_nms_top_n

    def fail():
        with adjusted(made, RunSettings(max_size=50, max_detections=99, nms=0.1)):
            assert (made.transform.max_size, made.roi_heads.detections_per_img) == (50, 99)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (dict(made.roi_heads.__dict__), made.transform.max_size, made.rpn._post_nms_top_n) == state


def test_size_alone_keeps_the_proportion_of_the_sizes():
    made = detector()  # 96 and 160
    with adjusted(made, RunSettings(size=192)):
        assert (made.transform.min_size, made.transform.max_size) == ((192,), 320)


@pytest.mark.parametrize(
    ("name", "value"),
    [("size", 0), ("size", 1.5), ("max_size", -1), ("max_detections", True), ("score", 1.1), ("nms", -0.1), ("tile", 3),
     ("overlap", 0.3), ("tile_full_image", True), ("merge", "nms")],
)  # fmt: skip
def test_values_that_cannot_be(name, value):
    with pytest.raises(InputError, match=r"^(tile|" + name + "):"):
        predict(nn.Linear(1, 1), [], **{name: value})
    with pytest.raises(InputError, match=r"^max_size:"):
        RunSettings(size=100, max_size=50)


def test_a_detector_without_thresholds():
    with pytest.raises(InputError, match=r"^score:"):
        predict(nn.Linear(1, 1), [], score=0.5)


@pytest.mark.parametrize("kind", ["mask_rcnn", "keypoint_rcnn", "fcos"])
def test_tiles_of_one_image_equal_the_image(kind):
    made, pixels = built(kind), image(100, 120)
    assert predict(made, [pixels], tile=128) == predict(made, [pixels])


def test_each_tile_is_an_image():
    """Without an overlap no two detections are compared in a common zone."""
    made, pixels = detector(), image(128, 256)
    halves = predict(made, [pixels[:, :, :128], pixels[:, :, 128:]])
    together = predict(made, [pixels], tile=128, overlap=0.0, merge="nms")[0]
    for number, half in enumerate(halves):
        for one in half:
            one["bbox"][0] += 128 * number
    expected = sorted((one["score"] for half in halves for one in half), reverse=True)
    scores = [one["score"] for one in together]
    assert set(scores) <= set(expected)
    inner = [one["bbox"] for half in halves for one in half if one["score"] == expected[0]]
    assert together[0]["bbox"] == pytest.approx(inner[0])
    assert all(one["segmentation"]["size"] == [128, 256] for one in together)


def test_fused_copies_take_options():
    made, pixels = detector(), image()
    fused = vovnet.fuse(made)
    assert len(predict(fused, [pixels], max_detections=2)[0]) == 2
    assert len(predict(fused, [pixels], tile=128)[0]) > 2


class Shapes:
    categories = tuple({"id": one, "name": f"class {one}"} for one in (1, 2, 3, 4))

    def __len__(self):
        return 2

    def __getitem__(self, index):
        target = {"boxes": torch.tensor([[5.0, 5.0, 90.0, 80.0]]), "labels": torch.tensor([1]), "image_id": index}
        return image(seed=index), target


def test_evaluate_finds_what_predict_finds(tmp_path):
    made = detector("faster_rcnn_vovnet39_fpn")
    made.categories = list(Shapes.categories)
    for options in ({"max_detections": 4}, {"tile": 96, "size": 200}):
        evaluate(made, Shapes(), tmp_path, **options)
        listed = json.loads((tmp_path / "results_bbox.json").read_text())
        expected = predict(made, [image(seed=index) for index in range(2)], **options)
        assert sorted(one["score"] for one in listed) == sorted(one["score"] for some in expected for one in some)
    with pytest.warns(LimitWarning, match="2 of 2 images reached the limit of 4"):
        evaluate(made, Shapes(), max_detections=4)


def test_a_crowd_counts_whole(tmp_path):
    """130 objects, each found: COCO's own limit of 100 detections would miss a quarter."""

    class Finder(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))
            self.detections_per_img, self.score_thresh = 200, 0.0

        def forward(self, images):
            return [{"boxes": boxes(), "labels": ones(), "scores": torch.linspace(0.9, 0.2, 130)} for _ in images]

    def ones():
        return torch.ones(130, dtype=torch.int64)

    def boxes():
        left, top = torch.meshgrid(torch.arange(13.0) * 10, torch.arange(10.0) * 10, indexing="ij")
        corner = torch.stack((left, top), -1).reshape(-1, 2)
        return torch.cat((corner, corner + 8), 1)

    class Crowd:
        categories = ({"id": 1, "name": "cell"},)

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return torch.zeros(3, 100, 130), {"boxes": boxes(), "labels": ones(), "image_id": 1}

    assert evaluate(Finder(), Crowd())["bbox"]["AP"] < 0.8
    whole = evaluate(Finder(), Crowd(), max_detections=200)
    assert whole["bbox"]["AP"] == whole["per_class"]["bbox"][0]["AP"] == whole["bbox"]["AR100"] == 1.0


def test_files_say_that_the_limit_cut(tmp_path):
    made = detector("faster_rcnn_vovnet39_fpn", box_score_thresh="0.0")
    made.categories = [{"id": one, "name": f"class {one}"} for one in (1, 2, 3, 4)]
    Image.new("RGB", (200, 150)).save(tmp_path / "summary.png")
    Image.new("RGB", (200, 150), "red").save(tmp_path / "b.png")
    lines = []
    paths = [tmp_path / "summary.png", tmp_path / "b.png"]
    written = predict_files(made, paths, tmp_path / "out", max_detections=3, batch_size=2, report=lines.append)
    assert all("the limit" in line for line in lines)
    listed = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert listed == [{"image": str(path), "detections": 3, "limit_reached": True} for path in paths]
    assert [len(json.loads(path.read_text())) for path in written] == [3, 3]


@pytest.mark.parametrize("name", ["predict", "evaluate"])
def test_the_commands_take_the_options(tmp_path, name):
    from small_networks import MODEL

    from vovnet.detection import load_recipe

    model = load_recipe("faster_rcnn_vovnet39_fpn", [f"model.{key}={value}" for key, value in MODEL.items()]).model
    categories = [{"id": one, "name": f"class {one}"} for one in (1, 2, 3, 4)]
    save_detector(tmp_path / "run", detector("faster_rcnn_vovnet39_fpn"), model, categories, 50.0, [150.0, 200.0])
    Image.new("RGB", (400, 300), "grey").save(tmp_path / "a.png")
    truth = {"images": [{"id": 1, "file_name": "a.png", "width": 400, "height": 300}], "categories": categories}
    truth["annotations"] = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 50, 60], "area": 3000, "iscrowd": 0}
    ]
    (tmp_path / "a.json").write_text(json.dumps(truth))
    data = (
        [tmp_path / "a.png"]
        if name == "predict"
        else ["--images", tmp_path, "--annotations", tmp_path / "a.json", "--workers", 0]
    )
    run = [name, *data, "--weights", tmp_path / "run", "--output", tmp_path / "out"]
    told = command(*run)
    assert told.code == 0, told.err
    few = command(*run, "--overwrite", "--max-detections", 2, "--score", 0.1, "--nms", 0.4, "--size", 150)
    tiles = command(
        *run, "--overwrite", "--tile", 150, "--overlap", 0.3, "--tile-full-image", "--merge", "nms", "--batch-size", 3
    )
    assert (few.code, tiles.code) == (0, 0), few.err + tiles.err
    if name == "predict":
        assert "of 2 detections, the limit" in few.err + few.out
    command(*run, "--overwrite", "--score", 2).refused("score")
    command(*run, "--overwrite", "--tile", 128, "--merge", "best").refused("merge")
