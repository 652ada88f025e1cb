"""The peak memory of predicting and drawing masks one at a time, of pasting all as torchvision does, and of neither.

    python -m benchmarks.masks [--size 4000x3000] [--detections 100] [--legacy] [--fuse] [--whole-image]

Each way runs in a process of its own. The detector has random weights and returns 100 detections of an image or tile:
``detector`` computes them without masks of the image's size, ``predict`` draws them, too, ``tiles`` does so for tiles
of 1024 pixels, ``drawing`` draws ten times as many that nothing computed, and ``video`` predicts and draws frames.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.common import Ratio, environment, positive

if TYPE_CHECKING:
    from vovnet.detection.config.categories import Category

RECIPES = {False: "mask_rcnn_vovnet39_fpn", True: "mask_rcnn_V_39_FPN_1x"}
MODEL = ["model.pretrained=false", "model.norm=bn", "model.num_classes=2", "model.box_score_thresh=0"]
WAYS = ("detector", "predict", "tiles", "drawing", "video", "evaluate", "torchvision")
BOUNDED = ("predict", "tiles", "drawing", "video", "evaluate")
GOAL = 0.7  # GiB over the detector alone


def peak_of(way: str, size: tuple[int, int], given: argparse.Namespace) -> None:
    """Print the peak memory of this process in GiB after one image, or a video, of ``size`` (width, height)."""
    import torch
    from PIL import Image

    from vovnet.detection import evaluate, predict
    from vovnet.detection.inference_mode import image_detections
    from vovnet.detection.masks import detect
    from vovnet.results.drawing import draw_detections

    detector = _detector(given)
    image = torch.zeros((3, size[1], size[0]), dtype=torch.uint8)
    image[:, ::2] = 200
    with torch.no_grad():
        if way in ("predict", "tiles"):
            drawn = predict(detector, [image], tile=1024 if way == "tiles" else None)[0]
            count = len(drawn)
            draw_detections(Image.fromarray(image.permute(1, 2, 0).numpy()), drawn, threshold=0)
        elif way == "drawing":
            drawn = _many(size, 10 * given.detections)
            count = len(drawn)
            draw_detections(Image.fromarray(image.permute(1, 2, 0).numpy()), drawn, threshold=0)
        elif way == "video":
            count = _frames(detector, size, given.frames)
        elif way == "evaluate":
            count = given.detections
            evaluate(detector, _OneImage(image))
        else:
            call = detect if way == "detector" else lambda model, images: model(images)
            found = call(detector, [image.to(torch.float32) / 255])[0]
            count = len(found["boxes"])
            if way == "torchvision":
                image_detections(found, 1, (size[1], size[0]), [1, 2])
    print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def _detector(given: argparse.Namespace) -> Any:
    import torch

    import vovnet
    from vovnet.detection import build_detector, load_recipe

    torch.manual_seed(0)
    settings = [*MODEL, f"model.box_detections_per_img={given.detections}"]
    if given.short_side:
        settings += [f"model.min_size={given.short_side}", f"model.max_size={2 * given.short_side}"]
    detector: Any = build_detector(load_recipe(RECIPES[given.legacy], settings)).eval()
    if given.fuse:
        detector = vovnet.fuse(detector)
    if given.whole_image:  # the largest masks that are possible
        detector.roi_heads.register_forward_hook(_enlarge)
    return detector


def _many(size: tuple[int, int], count: int) -> list[dict[str, Any]]:
    """Return detections whose masks, ellipses, cover most of an image of ``size`` (width, height)."""
    import numpy as np
    from PIL import Image, ImageDraw

    from vovnet.results.rle import encode_part

    shape = Image.new("1", size)
    ImageDraw.Draw(shape).ellipse((0, 0, *size), fill=1)
    counts = encode_part(np.array(shape), (0, 0), (size[1], size[0]))
    one = {
        "bbox": [0.0, 0.0, float(size[0]), float(size[1])],
        "segmentation": {"size": [size[1], size[0]], "counts": counts},
    }
    return [{**one, "score": 0.9, "category_id": 1 + number % 20, "category": "a"} for number in range(count)]


def _frames(detector: Any, size: tuple[int, int], count: int) -> int:
    """Predict in a video of some frames, and return how many there were."""
    import tempfile
    from fractions import Fraction
    from pathlib import Path

    from PIL import Image

    from vovnet.detection.prediction.predictor import predict_videos
    from vovnet.images.video import written_video

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.mp4"
        with written_video(source, Fraction(25)) as writer:
            for number in range(count):
                writer.add(Image.new("RGB", size, (number % 256, 80, 120)))
        (lines,) = predict_videos(detector, [source], Path(folder) / "out", 0.0, report=lambda line: None)
        return len(lines.read_text().splitlines())


def _enlarge(module: Any, inputs: Any, outputs: Any) -> None:
    for found, (height, width) in zip(outputs[0], inputs[2], strict=True):
        found["boxes"][:] = found["boxes"].new_tensor([0, 0, width, height])


class _OneImage:
    """A dataset of one image with 100 objects that cover it."""

    def __init__(self, image: Any) -> None:
        self.image = image
        self.categories: list[Category] = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
        height, width = image.shape[1:]
        box, outline = [0, 0, width, height], [[0, 0, width, 0, width, height, 0, height]]
        entry = {"image_id": 1, "category_id": 1, "bbox": box, "area": height * width, "iscrowd": 0}
        self.ground_truth = {
            "images": [{"id": 1, "height": height, "width": width}],
            "annotations": [{"id": number, "segmentation": outline, **entry} for number in range(1, 101)],
            "categories": self.categories,
        }

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        import torch
        from torchvision import tv_tensors

        size = (int(self.image.shape[1]), int(self.image.shape[2]))
        boxes = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=size)
        return tv_tensors.Image(self.image), {
            "boxes": boxes,
            "labels": torch.zeros(0, dtype=torch.int64),
            "image_id": 1,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the peaks and how much they are above the detector's; return 1 if that is more than the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="4000x3000", help="width and height of the image in pixels")
    parser.add_argument("--detections", type=positive, default=100, help="of an image, or of a tile")
    parser.add_argument("--frames", type=positive, default=12, help="of the video")
    parser.add_argument("--short-side", type=positive, help="to which the detector resizes; a small one is fast")
    parser.add_argument("--legacy", action="store_true", help="the published conventions")
    parser.add_argument("--fuse", action="store_true", help="a fused copy")
    parser.add_argument("--whole-image", action="store_true", help="every box covers the whole image")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    given = parser.parse_args(arguments)
    width, height = map(int, given.size.split("x"))
    if given.in_this_process:
        peak_of(given.ways[0], (width, height), given)
        return 0
    peaks: dict[str, float] = {}
    for way in dict.fromkeys(["detector", *given.ways]):
        command = [sys.executable, "-m", "benchmarks.masks", *arguments, "--in-this-process", "--ways", way]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(f"{way:12} ended with {done.returncode}")
            continue
        count, peak = done.stdout.split()
        peaks[way] = float(peak)
        what = "frames" if way == "video" else "detections"
        print(f"{way:12} {peaks[way]:6.2f} GiB, {peaks[way] - peaks['detector']:+6.2f} ({count} {what})")
    print(environment("torch", "torchvision"))
    ratios = [
        Ratio(f"{way} over the detector, GiB", peaks[way] - peaks["detector"], GOAL, at_least=False)
        for way in BOUNDED
        if way in peaks
    ]
    print(*ratios, sep="\n")
    return int(not all(ratio.met for ratio in ratios))


if __name__ == "__main__":
    sys.exit(main())
