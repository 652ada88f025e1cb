"""The peak memory of predicting and drawing masks one at a time, of pasting all as torchvision does, and of neither.

    python -m benchmarks.masks [--size 4000x3000] [--legacy] [--fuse] [--whole-image]

Each way runs in a process of its own. The detector has random weights and returns 100 detections.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.common import Ratio, environment

if TYPE_CHECKING:
    from vovnet.detection.config.categories import Category

RECIPES = {False: "mask_rcnn_vovnet39_fpn", True: "mask_rcnn_V_39_FPN_1x"}
MODEL = ["model.pretrained=false", "model.norm=bn", "model.num_classes=2", "model.box_score_thresh=0"]
WAYS = ("detector", "predict", "tiles", "evaluate", "torchvision")
GOAL = 0.7  # GiB over the detector alone


def peak_of(way: str, size: tuple[int, int], legacy: bool, fuse: bool, whole_image: bool) -> None:
    """Print the peak memory of this process in GiB after one image of ``size`` (width, height)."""
    import torch
    from PIL import Image

    import vovnet
    from vovnet.detection import build_detector, evaluate, load_recipe, predict
    from vovnet.detection.inference_mode import image_detections
    from vovnet.detection.masks import detect
    from vovnet.results.drawing import draw_detections

    torch.manual_seed(0)
    detector: Any = build_detector(load_recipe(RECIPES[legacy], MODEL)).eval()
    if fuse:
        detector = vovnet.fuse(detector)
    if whole_image:  # the largest masks that are possible
        detector.roi_heads.register_forward_hook(_enlarge)
    image = torch.zeros((3, size[1], size[0]), dtype=torch.uint8)
    image[:, ::2] = 200
    with torch.no_grad():
        if way in ("predict", "tiles"):
            drawn = predict(detector, [image], tile=1024 if way == "tiles" else None)[0]
            count = len(drawn)
            draw_detections(Image.fromarray(image.permute(1, 2, 0).numpy()), drawn, threshold=0)
        elif way == "evaluate":
            count = 100
            evaluate(detector, _OneImage(image))
        else:
            call = detect if way == "detector" else lambda model, images: model(images)
            found = call(detector, [image.to(torch.float32) / 255])[0]
            count = len(found["boxes"])
            if way == "torchvision":
                image_detections(found, 1, (size[1], size[0]), [1, 2])
    print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


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
    parser.add_argument("--legacy", action="store_true", help="the published conventions")
    parser.add_argument("--fuse", action="store_true", help="a fused copy")
    parser.add_argument("--whole-image", action="store_true", help="every box covers the whole image")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    given = parser.parse_args(arguments)
    width, height = map(int, given.size.split("x"))
    if given.in_this_process:
        peak_of(given.ways[0], (width, height), given.legacy, given.fuse, given.whole_image)
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
        print(f"{way:12} {peaks[way]:6.2f} GiB, {peaks[way] - peaks['detector']:+6.2f} ({count} detections)")
    print(environment("torch", "torchvision"))
    ratios = [
        Ratio(f"{way} over the detector, GiB", peaks[way] - peaks["detector"], GOAL, at_least=False)
        for way in ("predict", "tiles", "evaluate")
        if way in peaks
    ]
    print(*ratios, sep="\n")
    return int(not all(ratio.met for ratio in ratios))


if __name__ == "__main__":
    sys.exit(main())
