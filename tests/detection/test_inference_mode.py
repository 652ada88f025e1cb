"""One warning for all images that a limit of a detector affects."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from vovnet.detection import evaluate, load_recipe, predict, train
from vovnet.detection.inference_mode import detection_limit, limits_of
from vovnet.errors import InputError
from vovnet.results.limits import LimitWarning


def detector(limit=3, median=None, min_size=100, max_size=200):
    made = nn.Module()
    made.roi_heads = nn.Module()
    made.roi_heads.detections_per_img = limit
    made.transform = nn.Module()
    made.transform.min_size, made.transform.max_size = (min_size,), max_size
    if median is not None:
        made.preprocessing = {"median_object": median}
    return made


def told(made, shapes, counts, own=None):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        limits_of(made, own).warn(shapes, counts)
    assert all(one.category is LimitWarning for one in caught)
    return [str(one.message) for one in caught]


def test_the_limit_of_detections_is_told_once_with_its_key():
    (line,) = told(detector(), [(50, 50)] * 4, [3, 0, 3, 2])
    assert line.startswith("2 of 4 images")
    assert "model.box_detections_per_img" in line
    assert told(detector(), [(50, 50)] * 2, [2, 0]) == []
    assert told(nn.Module(), [(50, 50)], [100]) == []


def test_every_kind_of_detector_says_its_limit():
    one_stage = nn.Module()
    one_stage.detections_per_img = 300
    assert [detection_limit(one) for one in (one_stage, detector(), nn.Module())] == [300, 3, None]


@pytest.mark.parametrize(
    ("known", "own", "shapes", "affected"),
    [
        (40, None, [(1000, 1000), (100, 100)], 1),  # a tenth: 4 pixels
        (None, 40, [(1000, 1000)], 1),
        (90, 40, [(1000, 1000)], 0),  # the training data's comes first: 9 pixels
        (5, None, [(100, 100), (50, 50)], 0),  # small, but nothing shrinks
        (None, None, [(1000, 1000)], 0),
        (40, None, [], 0),
    ],
)
def test_shrinking_below_eight_pixels_is_told_once_with_its_keys(known, own, shapes, affected):
    lines = told(detector(median=known), shapes, [0] * len(shapes), own)
    assert len(lines) == (affected > 0)
    for line in lines:
        assert line.startswith(f"{affected} of {len(shapes)} images")
        assert all(word in line for word in ("model.min_size 100", "model.max_size 200", "40 pixels", "4 pixels"))


def test_objects_much_smaller_than_in_training_are_told_with_a_tile():
    made = detector(median=100, min_size=256, max_size=342)
    made.preprocessing |= {"median_image": [480, 640], "min_size": 256, "max_size": 342}
    (line,) = told(made, [(1920, 2560), (480, 640), (900, 1200)], [0, 0, 0])
    assert line.startswith("1 of 3 images")
    assert "with --tile 960 --size 512 --max-detections 12," in line  # as large as four of 480, and cuts fewer objects
    made.transform.min_size, made.transform.max_size = (1024,), 1368  # --size 1024: as large as in training
    assert told(made, [(1920, 2560)], [0]) == []
    made.preprocessing["trained_crop"] = 640  # crops of images that are mostly lower
    assert "--tile 640 --overlap 0.2:" not in told(made, [(6000, 8000)], [0])[0]
    assert "--tile 640," in told(made, [(6000, 8000)], [0])[0]
    del made.preprocessing["median_image"], made.preprocessing["trained_crop"]
    made.transform.min_size, made.transform.max_size = (100,), 200
    (line,) = told(made, [(1920, 2560)], [0])
    assert "--tile 625," in line  # 16 pixels for the median object
    made.transform.min_size, made.transform.max_size = (800,), 1333
    made.preprocessing |= {"median_image": [8000, 10000], "min_size": 800, "max_size": 1333, "median_object": 3000}
    assert (
        "--tile 8000 --overlap 0.5," in told(made, [(20000, 20000)], [0])[0]
    )  # larger ones would take too much memory


def test_the_limit_is_told_with_what_raises_it():
    assert "--max-detections 9 " in told(detector(), [(50, 50)], [3])[0]
    made = detector()
    made.exported = object()
    assert "export" in told(made, [(50, 50)], [3])[0]


def test_predict_and_evaluate_tell(tmp_path):
    from vovnet.detection.config.model import ModelRecipe
    from vovnet.detection.models.build import build_detector
    from vovnet.detection.prediction.predictor import predict, predict_files

    torch.manual_seed(0)
    model = ModelRecipe(
        backbone="vovnet27_slim",
        fpn_channels=8,
        box_representation_size=16,
        num_classes=2,
        min_size=32,
        max_size=64,
        box_score_thresh=0.0,
        box_detections_per_img=5,
    )
    made = build_detector(model)
    made.preprocessing = {"median_object": 20}
    with pytest.warns(LimitWarning) as caught:
        predict(made, [torch.rand(3, 200, 200), torch.rand(3, 64, 64)])
    told = [str(one.message) for one in caught if one.category is LimitWarning]
    assert [line.split(" images")[0] for line in told] == ["2 of 2", "1 of 2"]
    assert {one.filename for one in caught if one.category is LimitWarning} == {__file__}
    from PIL import Image

    Image.new("RGB", (200, 200)).save(tmp_path / "a.png")
    lines = []
    with pytest.warns(LimitWarning, match="1 of 1 images"):
        predict_files(made, [tmp_path / "a.png"], tmp_path / "out", report=lines.append)
    assert "(of 5 detections, the limit: see --max-detections)" in lines[0]


class Weights(nn.Module):
    def __init__(self, dtype: torch.dtype, device: str = "cpu") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=dtype, device=device))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_number_types_that_detectors_cannot_compute_with(dtype: torch.dtype) -> None:
    for use in (lambda detector: predict(detector, []), lambda detector: evaluate(detector, OneImage())):
        with pytest.raises(InputError, match=rf"weights are {dtype}.*detector\.float\(\)"):
            use(Weights(dtype))
    torch.set_default_dtype(dtype)
    try:
        with pytest.raises(InputError, match=f"default dtype is {dtype}"):
            train(load_recipe("bccd"), "nowhere", train_dataset=OneImage())
        assert predict(Weights(torch.float32), []) == []
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_meta_device() -> None:
    with pytest.raises(InputError, match=r"^device: .*meta"):
        predict(Weights(torch.float32, "meta"), [])
    # Not torch.set_default_device, whose None breaks torch.get_default_device() in PyTorch 2.8, also for transformers.
    with torch.device("meta"), pytest.raises(InputError, match=r"^device: .*meta"):
        predict(Weights(torch.float32, "cpu"), [])


class OneImage:
    categories = ({"id": 1, "name": "cat"},)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, list[int]]]:
        return torch.zeros(3, 8, 8), {"boxes": [], "labels": []}
