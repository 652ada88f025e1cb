"""Evaluation against pycocotools itself, the published numbers, and cases worked out by hand."""

import contextlib
import copy
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torchvision import tv_tensors

from vovnet.detection.analysis.tide import KINDS
from vovnet.detection.evaluation.backends import run_coco_eval
from vovnet.detection.evaluation.coco_eval import METRICS, CocoEvaluator, _numbers, _per_class, coco_ground_truth
from vovnet.detection.evaluation.evaluator import evaluate
from vovnet.detection.evaluation.tables import format_metrics
from vovnet.detection.inference_mode import image_detections
from vovnet.errors import InputError

CATEGORIES = [{"id": 7, "name": "disc"}, {"id": 30, "name": "bar"}]


def truth_of(*boxes, size=(100, 100), **extra):
    """Ground truth of one image with [x, y, width, height] boxes of category 7."""
    annotations = [
        {"id": i, "image_id": 1, "category_id": 7, "bbox": list(box), **extra} for i, box in enumerate(boxes)
    ]
    images = [{"id": 1, "height": size[0], "width": size[1]}]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def found(score, box):
    return {"image_id": 1, "category_id": 7, "score": score, "bbox": list(box)}


def reference(truth, results, iou_type):
    """pycocotools as its own demo uses it."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), iou_type)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats


def random_case(seed, images=6):
    """Ground truth with crowds and results near it, boxes and masks."""
    rng = np.random.default_rng(seed)
    truth = {"images": [], "annotations": [], "categories": CATEGORIES}
    boxes, masks = [], []

    def rle(box):
        pixels = np.zeros((240, 320), dtype=np.uint8, order="F")
        x, y, width, height = (round(value) for value in box)
        pixels[y : y + height, x : x + width] = 1
        code = coco_mask.encode(pixels)
        return {"size": code["size"], "counts": code["counts"].decode()}

    for image in range(1, images + 1):
        truth["images"].append({"id": image * 11, "height": 240, "width": 320})
        for _ in range(rng.integers(0, 7)):
            box = [*rng.uniform(0, 150, 2), *rng.uniform(4, 80, 2)]
            category = int(rng.choice([7, 30]))
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image * 11,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3] * 0.9,
                    "iscrowd": int(rng.random() < 0.15),
                    "segmentation": rle(box),
                }
            )
            for _ in range(rng.integers(0, 3)):
                near = [
                    *(np.array(box[:2]) + rng.normal(0, 3, 2)).clip(0),
                    *(np.array(box[2:]) + rng.normal(0, 3, 2)).clip(2),
                ]
                common = {"image_id": image * 11, "category_id": category, "score": float(rng.random())}
                boxes.append({**common, "bbox": [float(value) for value in near]})
                masks.append({**common, "segmentation": rle(near)})
    return truth, boxes, masks


def evaluate_results(results, truth, iou_type="bbox"):
    """Evaluate COCO results on all images of a COCO dictionary."""
    complete = coco_ground_truth(truth, iou_type)
    evaluated = run_coco_eval(complete, [dict(entry) for entry in results], iou_type, sorted(complete.imgs))
    return {iou_type: _numbers(evaluated), "per_class": {iou_type: _per_class(evaluated)}}


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_pycocotools(iou_type, seed):
    truth, boxes, masks = random_case(seed)
    results = boxes if iou_type == "bbox" else masks
    before = copy.deepcopy(truth)
    metrics = evaluate_results(results, truth, iou_type)
    assert list(metrics[iou_type].values()) == reference(truth, results, iou_type).tolist()
    assert tuple(metrics[iou_type]) == METRICS
    assert truth == before, "the ground truth was changed"


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_published_numbers(shared, iou_type):
    folder = shared / "data" / "coco_eval_ref"
    kind, published = None, []
    for line in (folder / "val2014_fake_eval_res.txt").read_text().splitlines():
        kind = line.partition("type=")[2] or kind
        if kind == iou_type and "] = " in line:
            published.append(line.partition("] = ")[2])
    results = json.loads((folder / f"instances_val2014_fake{iou_type}100_results.json").read_text())
    metrics = evaluate_results(results, json.loads((folder / "instances_val2014_100.json").read_text()), iou_type)
    assert [f"{value:.3f}" for value in metrics[iou_type].values()] == published


def test_perfect_results_on_real_data(shared):
    path = next((shared / "data" / "coco_tiny_cc" / "annotations").glob("*val2017*.json"))
    truth = json.loads(path.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    results = []
    for one in truth["annotations"]:
        if not one["iscrowd"]:
            rle = coco_mask.merge(coco_mask.frPyObjects(one["segmentation"], *sizes[one["image_id"]]))
            rle["counts"] = rle["counts"].decode()
            results.append({**one, "score": 1.0, "segmentation": rle})
    for iou_type in ("bbox", "segm"):
        assert evaluate_results(results, truth, iou_type)[iou_type]["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("results", "ap", "ap50"),
    [
        ([found(0.9, (10, 10, 20, 20))], 1.0, 1.0),
        ([], 0.0, 0.0),
        # A false detection with the higher score: precision 1/2 at every recall.
        ([found(0.9, (60, 60, 20, 20)), found(0.8, (10, 10, 20, 20))], 0.5, 0.5),
        # IoU 12.6/20 = 0.63: found at thresholds 0.50, 0.55 and 0.60 of the ten.
        ([found(0.9, (10, 10, 20, 12.6))], 0.3, 1.0),
        # The same object twice: the second is false, but comes after full recall.
        ([found(0.9, (10, 10, 20, 20)), found(0.8, (10, 10, 20, 20))], 1.0, 1.0),
    ],
)
def test_by_hand(results, ap, ap50):
    metrics = evaluate_results(results, truth_of((10, 10, 20, 20)))["bbox"]
    assert (metrics["AP"], metrics["AP50"]) == pytest.approx((ap, ap50))


def test_half_found_by_hand():
    # Precision 1 up to recall 1/2: 51 of the 101 recall points.
    truth = truth_of((10, 10, 20, 20), (60, 60, 20, 20))
    metrics = evaluate_results([found(0.9, (10, 10, 20, 20))], truth)
    assert metrics["bbox"]["AP"] == pytest.approx(51 / 101)
    assert metrics["bbox"]["AR100"] == pytest.approx(0.5)
    assert metrics["bbox"]["APl"] == -1, "no large object: nothing to count"
    disc, bar = metrics["per_class"]["bbox"]
    assert disc == {
        "id": 7,
        "name": "disc",
        "AP": pytest.approx(51 / 101),
        "AP50": pytest.approx(51 / 101),
        "objects": 2,
    }
    assert (bar["AP"], bar["objects"]) == (-1, 0)


def test_annotation_with_id_0_counts():
    # pycocotools alone takes a match with id 0 for no match and says AP 0.
    truth = truth_of((10, 10, 20, 20))
    assert truth["annotations"][0]["id"] == 0
    assert evaluate_results([found(0.9, (10, 10, 20, 20))], truth)["bbox"]["AP"] == pytest.approx(1.0)


def test_detections_in_a_crowd_are_not_counted():
    truth = truth_of((10, 10, 20, 20))
    crowd = {"id": 5, "image_id": 1, "category_id": 7, "bbox": [40, 40, 60, 60], "iscrowd": 1}
    truth["annotations"].append(crowd)
    results = [found(0.95, (50, 50, 10, 10)), found(0.9, (10, 10, 20, 20))]
    assert evaluate_results(results, truth)["bbox"]["AP"] == pytest.approx(1.0)


def test_object_without_a_mask_counts_neither_for_nor_against():
    square = [[10, 10, 30, 10, 30, 30, 10, 30]]
    truth = truth_of((10, 10, 20, 20), segmentation=square)
    broken = {"size": [9, 9], "counts": "0"}
    truth["annotations"].append(
        {"id": 9, "image_id": 1, "category_id": 7, "bbox": [50, 50, 20, 20], "segmentation": broken}
    )
    good, beside = np.zeros((2, 100, 100), dtype=np.uint8)
    good[10:30, 10:30] = 1
    beside[52:60, 52:60] = 1
    results = [
        {"image_id": 1, "category_id": 7, "score": score, "segmentation": coco_mask.encode(np.asfortranarray(mask))}
        for score, mask in ((0.9, beside), (0.8, good))
    ]
    assert evaluate_results(results, truth, "segm")["segm"]["AP"] == pytest.approx(1.0)


class Shapes:
    """A dataset of rectangles after the protocol; ``answers`` are what :class:`Oracle` returns for each image."""

    categories = CATEGORIES

    def __init__(self, count=5, masks=True, ground_truth=False):
        rng = np.random.default_rng(3)
        self.items, self.answers = [], {}
        for index in range(count):
            height, width = int(rng.integers(40, 80)), int(rng.integers(40, 80))
            objects = int(rng.integers(0, 4)) if index else 2
            corner = rng.uniform(0, 20, (objects, 2))
            boxes = np.concatenate((corner, corner + rng.uniform(8, 18, (objects, 2))), axis=1)
            labels = rng.integers(1, 3, objects)
            image = torch.full((3, height, width), index, dtype=torch.uint8)
            target = {
                "boxes": tv_tensors.BoundingBoxes(
                    torch.tensor(boxes, dtype=torch.float32), format="XYXY", canvas_size=(height, width)
                ),
                "labels": torch.tensor(labels),
                "image_id": 100 + index,
            }
            moved = torch.tensor(boxes + rng.normal(0, 1, boxes.shape), dtype=torch.float32)
            answer = {
                "boxes": moved,
                "labels": torch.tensor(labels),
                "scores": torch.tensor(rng.random(objects), dtype=torch.float32),
            }
            if masks:
                target["masks"] = tv_tensors.Mask(self.paint(boxes, height, width).to(torch.uint8))
                answer["masks"] = self.paint(moved.numpy(), height, width)[:, None] * 0.8 + 0.1
            self.items.append((tv_tensors.Image(image), target))
            self.answers[index] = answer
        if ground_truth:
            self.ground_truth = self.coco()

    @staticmethod
    def paint(boxes, height, width):
        masks = torch.zeros(len(boxes), height, width)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
            mask[round(y0) : round(y1), round(x0) : round(x1)] = 1
        return masks

    def coco(self):
        """Ground truth in COCO's form, made apart from the code under test."""
        images, annotations = [], []
        for image, target in self.items:
            images.append({"id": target["image_id"], "height": image.shape[1], "width": image.shape[2]})
            for row, (box, label) in enumerate(zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True)):
                x, y, width, height = box[0], box[1], box[2] - box[0], box[3] - box[1]
                one = {"image_id": target["image_id"], "category_id": CATEGORIES[label - 1]["id"], "iscrowd": 0}
                one |= {"id": len(annotations) + 1, "bbox": [x, y, width, height], "area": width * height}
                if "masks" in target:
                    rle = coco_mask.encode(np.asfortranarray(target["masks"][row].numpy()))
                    one |= {"segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}}
                annotations.append(one)
        return {"images": images, "annotations": annotations, "categories": CATEGORIES}

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Oracle(nn.Module):
    """A detector that knows the answers: the pixel value of an image is its number."""

    def __init__(self, answers, categories=None):
        super().__init__()
        self.answers = answers
        self.frozen = nn.BatchNorm2d(3)
        self.frozen.eval()
        if categories is not None:
            self.categories = categories

    def forward(self, images):
        assert not self.training
        assert all(image.dtype == torch.float32 and image.max() <= 1 for image in images)
        return [self.answers[round(float(image[0, 0, 0]) * 255)] for image in images]


@pytest.mark.parametrize("ground_truth", [True, False])
def test_evaluate_equals_pycocotools(tmp_path, ground_truth):
    dataset = Shapes(ground_truth=ground_truth)
    metrics = evaluate(Oracle(dataset.answers, CATEGORIES), dataset, tmp_path, batch_size=2)
    for iou_type in ("bbox", "segm"):
        results = json.loads((tmp_path / f"results_{iou_type}.json").read_text())
        truth = dataset.coco()
        if iou_type == "segm" and not ground_truth:
            # Without a stated area the mask's pixels are the area of an object in mask evaluation.
            for one in truth["annotations"]:
                one["area"] = float(coco_mask.area(one["segmentation"]))
        assert list(metrics[iou_type].values()) == pytest.approx(reference(truth, results, iou_type), abs=1e-12)
        assert metrics[iou_type]["AP"] > 0.3
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert (tmp_path / "precision_recall.png").stat().st_size > 10_000
    # No "worst.png": at the best thresholds there is no error.
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "confusion.csv",
        "confusion.png",
        "metrics.json",
        "precision_recall.png",
        "report.html",
        "results_bbox.json",
        "results_segm.json",
        "thresholds.csv",
    ]


def test_results_are_in_coco_form(tmp_path):
    dataset = Shapes(count=2)
    evaluate(Oracle(dataset.answers), dataset, tmp_path)
    boxes = json.loads((tmp_path / "results_bbox.json").read_text())
    masks = json.loads((tmp_path / "results_segm.json").read_text())
    answer = dataset.answers[0]
    x0, y0, x1, y1 = answer["boxes"][0].tolist()
    assert boxes[0] == {
        "image_id": 100,
        "category_id": CATEGORIES[int(answer["labels"][0]) - 1]["id"],
        "bbox": pytest.approx([x0, y0, x1 - x0, y1 - y0]),
        "score": pytest.approx(float(answer["scores"][0])),
    }
    assert isinstance(masks[0]["segmentation"]["counts"], str)
    assert (coco_mask.decode(masks[0]["segmentation"]) == (answer["masks"][0, 0] > 0.5).numpy()).all()


def test_modes_come_back_even_after_an_error():
    dataset = Shapes()
    detector = Oracle(dataset.answers).train()
    detector.frozen.eval()
    evaluate(detector, dataset)
    assert (detector.training, detector.frozen.training) == (True, False)
    detector.answers = {}
    with pytest.raises(KeyError):
        evaluate(detector, dataset)
    assert (detector.training, detector.frozen.training) == (True, False)


def test_labels_are_the_detectors():
    """A detector that lists the same categories in another order is judged by its own order."""
    dataset = Shapes(masks=False)
    expected = evaluate(Oracle(dataset.answers, CATEGORIES), dataset)
    swapped = {key: {**answer, "labels": 3 - answer["labels"]} for key, answer in dataset.answers.items()}
    assert evaluate(Oracle(swapped, CATEGORIES[::-1]), dataset) == expected


@pytest.mark.parametrize(
    ("categories", "says"),
    [
        ([*CATEGORIES, {"id": 31, "name": "ring"}], "31 'ring' only in the detector"),
        (CATEGORIES[:1], "30 'bar' only in the data"),
        ([CATEGORIES[0], {"id": 30, "name": "rod"}], "30 is 'rod' in the detector and 'bar' in the data"),
    ],
)
def test_category_mismatch_is_listed(categories, says):
    dataset = Shapes()
    with pytest.raises(InputError, match=says) as caught:
        evaluate(Oracle(dataset.answers, categories), dataset)
    assert "\n" not in str(caught.value)


def test_empty_dataset_is_refused():
    with pytest.raises(InputError, match="no images"):
        evaluate(Oracle({}), Shapes(count=0))


def test_label_beyond_the_categories_is_refused():
    dataset = Shapes(count=1)
    dataset.answers[0]["labels"][:] = 9
    with pytest.raises(InputError, match="label 9, but there are 2 categories"):
        evaluate(Oracle(dataset.answers), dataset)


def test_masks_asked_for_but_not_there():
    dataset = Shapes(masks=False)
    with pytest.raises(InputError, match="no masks"):
        evaluate(Oracle(dataset.answers), dataset, iou_types=["segm"])
    with pytest.raises(InputError, match="iou_types"):
        evaluate(Oracle(dataset.answers), dataset, iou_types=["boxes"])
    assert "segm" not in evaluate(Oracle(dataset.answers), dataset)


def test_images_without_detections_count():
    dataset = Shapes(masks=False)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    metrics = evaluate(Oracle(dict.fromkeys(range(5), nothing)), dataset)
    assert metrics["bbox"]["AP"] == 0
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


class Broken(Shapes):
    def __getitem__(self, index):
        if index == 1:
            raise InputError("val/b.jpg: the image is truncated; replace it")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_keeps_its_one_line(workers):
    dataset = Broken(masks=False)
    with pytest.raises(InputError) as caught:
        evaluate(Oracle(dataset.answers), dataset, workers=workers)
    assert str(caught.value) == "val/b.jpg: the image is truncated; replace it"


def test_a_image_too_narrow_for_the_detector_is_named():
    dataset = Shapes(count=1, masks=False)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "image_id": 100}
    dataset.items[0] = (tv_tensors.Image(torch.zeros(3, 1, 5000, dtype=torch.uint8)), empty)
    detector = Oracle(dataset.answers)
    detector.transform = nn.Identity()
    detector.transform.max_size = 1333
    with pytest.raises(InputError, match="image 100: 5000x1 pixels"):
        evaluate(detector, dataset)


def test_an_image_counts_once():
    dataset = Shapes(count=1, masks=False)
    evaluator = CocoEvaluator(dataset.coco())
    one = image_detections(dataset.answers[0], 100, (64, 64), [7, 30])
    evaluator.update([one, one])
    evaluator.update([one])
    assert len(list(evaluator.results("bbox"))) == len(dataset.answers[0]["boxes"])


def test_table():
    truth, boxes, _ = random_case(0)
    metrics = evaluate_results(boxes, truth)
    text = format_metrics(metrics)
    assert f"{100 * metrics['bbox']['AP']:.1f}" in text
    assert [line.split()[0] for line in text.splitlines()[-2:]] == ["disc", "bar"]


def test_metrics_say_what_the_numbers_mean(tmp_path):
    dataset = Shapes(count=3)
    metrics = evaluate(Oracle(dataset.answers, CATEGORIES), dataset, tmp_path)
    plain = evaluate(Oracle(dataset.answers, CATEGORIES), dataset)
    for iou_type in ("bbox", "segm"):
        assert metrics[iou_type] == plain[iou_type]
        best = metrics["best"][iou_type]
        assert 0 < best["F1"] <= 1
        assert f"all {best['threshold']:.2f} {100 * best['precision']:.1f}" in " ".join(format_metrics(metrics).split())
        for entry, bare in zip(metrics["per_class"][iou_type], plain["per_class"][iou_type], strict=True):
            assert bare.items() <= entry.items()
            assert {"threshold", "precision", "recall", "F1", "count_error", "count_bias"} <= entry.keys()
    costs = " ".join(f"{100 * metrics['errors']['bbox'][kind]['dAP50']:.1f}" for kind in KINDS)
    assert f"cost {costs} % AP50" in " ".join(format_metrics(metrics).split())
    assert "best" not in plain


PROCESS = """
import importlib.util, json, sys
import torch, torch.distributed as dist
rank, store, folder, tests = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
spec = importlib.util.spec_from_file_location("cases", tests)
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
for ground_truth in (True, False):
    dataset = cases.Shapes(ground_truth=ground_truth)
    metrics = cases.evaluate(cases.Oracle(dataset.answers), dataset, f"{folder}/{ground_truth}")
    print(json.dumps(metrics))
try:
    cases.evaluate(cases.Oracle(dataset.answers), dataset, "/dev/null/nowhere")
except OSError as error:
    print(type(error).__name__)
dist.destroy_process_group()
"""


def test_two_processes_equal_one(tmp_path, repository):
    arguments = [str(tmp_path / "store"), str(tmp_path / "two"), str(Path(__file__))]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), *arguments], cwd=repository, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=500)[0].splitlines() for process in processes]
    finally:
        for process in processes:
            process.kill()
    outputs = [[line for line in output if not line.startswith("[Gloo]")] for output in outputs]  # PyTorch 2.8 prints
    assert [process.returncode for process in processes] == [0, 0]
    assert [output[2] for output in outputs] == ["NotADirectoryError"] * 2, (
        "an error of rank 0 must reach every process"
    )
    for line, ground_truth in enumerate((True, False)):
        dataset = Shapes(ground_truth=ground_truth)
        folder = tmp_path / "one" / str(ground_truth)
        expected = evaluate(Oracle(dataset.answers), dataset, folder)
        assert [json.loads(output[line]) for output in outputs] == [expected] * 2
        for name in ("results_bbox.json", "results_segm.json", "metrics.json"):
            assert (tmp_path / "two" / str(ground_truth) / name).read_text() == (folder / name).read_text()


def test_numbers_are_written_before_the_plot_and_outlive_it(tmp_path, monkeypatch):
    import vovnet.detection.evaluation.evaluator as module

    def fail(*args, **options):
        assert (tmp_path / "metrics.json").exists()
        raise RuntimeError("no plot today")

    (tmp_path / "precision_recall.png").write_bytes(b"of an earlier evaluation")
    monkeypatch.setattr(module, "plot_precision_recall", fail)
    dataset = Shapes()
    with pytest.warns(RuntimeWarning, match="no plot today"):
        metrics = evaluate(Oracle(dataset.answers), dataset, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert (tmp_path / "results_bbox.json").exists()
    assert not (tmp_path / "precision_recall.png").exists()
