"""Compare an exported detector, in its own runtime, with the detector that it was made of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from vovnet.detection.evaluation.coco_eval import IOU_TYPES, CocoEvaluator
from vovnet.detection.evaluation.sources import evaluation_dataset, evaluation_sources
from vovnet.detection.inference_mode import (
    box_converter,
    image_detections,
    inference,
    input_channels,
    limits_of,
    to_input,
)
from vovnet.detection.masks import detect
from vovnet.detection.progress import progress_bar
from vovnet.errors import InputError
from vovnet.export.checking import NOT_KEPT, CheckOptions, told_unmeasured
from vovnet.export.metadata import Precision
from vovnet.export.prediction import exported_detections
from vovnet.export.runtime import ExportedModel, open_exported
from vovnet.images.folder import list_images
from vovnet.images.reading import read_image
from vovnet.images.tensors import to_tensor
from vovnet.results.comparison import SAME_POINT, Agreement, agreement, joined
from vovnet.results.detections import ImageDetections

SCORE = 0.05
"""Detections with a higher score are compared."""
LARGEST_BOX_DIFFERENCE = 0.05
"""Largest difference in pixels of a coordinate that a file of precision fp32 may have."""
LARGEST_SCORE_DIFFERENCE = 1e-4
"""Largest difference of a score that such a file may have."""
LEAST_MASK_IOU = 0.99
"""Smallest IoU of a mask with the detector's that such a file may have."""

MOST_FAR_KEYPOINTS = 0.01
"""Largest part of the keypoints that may be further than a pixel from the detector's: in boxes larger than the window
in which a file looks for them (:data:`vovnet.detection.export.keypoints.WINDOW`), or where two places are as good."""

_KINDS = {"bbox": "box", "segm": "mask", "keypoints": "keypoint"}


@dataclass(frozen=True)
class DetectorParity:
    """The comparison of a detector and its exported file on the same images.

    Attributes:
        file: the exported file.
        precision: the file's.
        images: number of images.
        agreement: of the file with the detector, for detections with scores above :data:`SCORE`.
        accuracy: ``bbox``, ``segm`` and ``keypoints`` → COCO's AP of the detector and of the file, in 0..1; empty if it
            was not measured.
    """

    file: Path
    precision: Precision
    images: int
    agreement: Agreement
    accuracy: Mapping[str, tuple[float, float]]

    def table(self) -> str:
        """Return the comparison as text."""
        found, exact = self.agreement, self.precision == "fp32"
        rows = [
            ("", "detector", self.file.name, "largest" if exact else ""),
            ("images", str(self.images), str(self.images), ""),
            (f"detections above {SCORE}", str(found.eager_count), str(found.count), ""),
            ("detections without a counterpart", "", str(found.unmatched), "0"),
            ("largest box difference in px", "", f"{found.box_distance:.2g}", f"{LARGEST_BOX_DIFFERENCE:g}"),
            ("largest score difference", "", f"{found.score_distance:.2g}", f"{LARGEST_SCORE_DIFFERENCE:g}"),
        ]
        if found.mask_iou is not None:
            rows.append(("least mask IoU", "", f"{found.mask_iou:.4f}", f"{LEAST_MASK_IOU:g} (least)"))
        if found.keypoints:
            limit = f"{MOST_FAR_KEYPOINTS:.0%}"
            rows.append(
                (f"keypoints of {found.keypoints} that are off by a pixel", "", str(found.far_keypoints), limit)
            )
        for kind, (before, after) in self.accuracy.items():
            exactly, of_file = f"{100 * before:.2f}", f"{100 * after:.2f}"
            rows.append((f"{_KINDS[kind]} AP in %", exactly, of_file, f"{exactly} (both)"))
        columns = 4 if exact else 3
        widths = [max(len(row[column]) for row in rows) for column in range(columns)]
        lines = []
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(row[n].rjust(widths[n]) for n in range(1, min(columns, 3)))]
            lines.append("  ".join([*cells, *row[3:columns]]).rstrip())
        return "\n".join(lines)

    def require(self, max_drop: float) -> None:
        """Check that the file may be used: fp32 must agree with the detector, others may lose some accuracy.

        Args:
            max_drop: largest difference by which the AP of a file of another precision may be lower, in 0..1.

        Raises:
            InputError: it differs by more.
        """
        reasons = self._differences() if self.precision == "fp32" else self._drops(max_drop)
        if reasons:
            raise InputError(f"{self.file.name}: {'; '.join(reasons)}; {NOT_KEPT}")

    def _differences(self) -> list[str]:
        found = self.agreement
        reasons = []
        if found.unmatched:
            reasons.append(f"{found.unmatched} detections above {SCORE} without a counterpart")
        if found.box_distance > LARGEST_BOX_DIFFERENCE:
            reasons.append(f"boxes differ by {found.box_distance:.2g} px, expected {LARGEST_BOX_DIFFERENCE} at most")
        if found.score_distance > LARGEST_SCORE_DIFFERENCE:
            reasons.append(f"scores differ by {found.score_distance:.2g}, expected {LARGEST_SCORE_DIFFERENCE} at most")
        if found.mask_iou is not None and found.mask_iou < LEAST_MASK_IOU:
            reasons.append(f"masks have an IoU of {found.mask_iou:.4f}, expected {LEAST_MASK_IOU} at least")
        if found.far_keypoints > MOST_FAR_KEYPOINTS * found.keypoints:
            reasons.append(
                f"{found.far_keypoints} of {found.keypoints} keypoints are off by more than {SAME_POINT:g} px, "
                f"expected {MOST_FAR_KEYPOINTS:.0%} at most"
            )
        for kind, (before, after) in self.accuracy.items():
            if f"{before:.4f}" != f"{after:.4f}":
                reasons.append(
                    f"{_KINDS[kind]} AP {100 * after:.2f} % differs from the detector's {100 * before:.2f} %"
                )
        return reasons

    def _drops(self, max_drop: float) -> list[str]:
        return [
            f"{_KINDS[kind]} AP falls from {100 * before:.2f} to {100 * after:.2f} %, by more than {100 * max_drop:g} "
            f"(--max-drop {max_drop:g})"
            for kind, (before, after) in self.accuracy.items()
            if before - after > max_drop
        ]


def detector_parity(
    detector: nn.Module,
    file: str | os.PathLike[str],
    images: str | os.PathLike[str],
    annotations: str | os.PathLike[str] | None = None,
    *,
    progress: bool = False,
) -> DetectorParity:
    """Run an exported detector and the detector itself on images, and compare what they find.

    Args:
        detector: the detector that was exported.
        file: the exported file; it runs in its own runtime.
        images: a folder of images.
        annotations: a COCO JSON file of images in that folder, which are then the ones to run on; COCO's AP of both is
            computed. None compares the detections in all images of the folder.
        progress: show a progress bar on stderr.

    Raises:
        InputError: there are no images, one of them cannot be read or has another size than the file takes, or the
            file cannot be opened.
    """
    model = open_exported(file)
    evaluators: tuple[CocoEvaluator, CocoEvaluator] | None = None
    if annotations is not None:
        dataset = evaluation_dataset(detector, evaluation_sources(None, Path(images), Path(annotations)))
        truth: Any = dataset.ground_truth
        recipe: Any = getattr(detector, "recipe", None)
        sigmas = getattr(recipe, "keypoint_sigmas", None)
        evaluators = CocoEvaluator(truth, sigmas=sigmas), CocoEvaluator(truth, sigmas=sigmas)
        samples: Iterator[tuple[int, Tensor]] = _annotated(dataset)
        count = len(dataset)
    else:
        paths = list_images(Path(images))
        samples, count = _of_folder(detector, paths), len(paths)
    parts = []
    with inference(detector, "cpu"):
        for image_id, image in progress_bar(_Sized(samples, count), "check", "image", shown=progress):
            pair = _eager_detections(detector, image, image_id), _file_detections(model, image, image_id)
            parts.append(agreement(_compared(pair[1]), _compared(pair[0]), above=_floor(detector, pair)))
            for evaluator, found in zip(evaluators or (), pair, strict=False):
                evaluator.update([found])
    return DetectorParity(Path(file), model.metadata.precision, count, joined(parts), _accuracy(evaluators))


def check_exported(
    detector: nn.Module, file: str | os.PathLike[str], options: CheckOptions, report: Callable[[str], object]
) -> None:
    """Compare an exported detector with the detector as the options say, and report the table.

    Raises:
        InputError: as :func:`detector_parity`; or the file differs by more than it may.
    """
    if options.images is None:
        told_unmeasured(open_exported(file).metadata.precision, report)
        return
    parity = detector_parity(detector, file, options.images, options.annotations, progress=True)
    report(parity.table())
    if not options.force:
        parity.require(options.max_drop)


@dataclass(frozen=True)
class _Sized:
    """Samples whose number is known, for the progress bar."""

    samples: Iterator[tuple[int, Tensor]]
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        return self.samples


def _annotated(dataset: Any) -> Iterator[tuple[int, Tensor]]:
    for index in range(len(dataset)):
        image, target = dataset[index]
        yield target["image_id"], image.as_subclass(Tensor)


def _of_folder(detector: nn.Module, paths: list[Path]) -> Iterator[tuple[int, Tensor]]:
    channels = input_channels(detector)
    for number, path in enumerate(paths):
        yield number, to_tensor(read_image(path, channels))


def _eager_detections(detector: nn.Module, image: Tensor, image_id: int) -> ImageDetections:
    found = detect(detector, [to_input(image, next(detector.parameters()).device)])[0]
    categories: Any = detector.categories
    ids = [int(one["id"]) for one in categories]
    return image_detections(found, image_id, _size(image), ids, box_converter(detector))


def _file_detections(model: ExportedModel, image: Tensor, image_id: int) -> ImageDetections:
    (outputs,) = model.run_each([np.ascontiguousarray(image.numpy())])
    found = exported_detections(model.metadata, outputs, _size(image), str(model.path))
    found.image_id = image_id
    return found


def _size(image: Tensor) -> tuple[int, int]:
    return int(image.shape[-2]), int(image.shape[-1])


def _compared(found: ImageDetections) -> dict[str, Any]:
    corners: NDArray[np.float32] = np.concatenate((found.boxes[:, :2], found.boxes[:, :2] + found.boxes[:, 2:]), axis=1)
    values: dict[str, Any] = {"boxes": corners, "labels": found.category_ids, "scores": found.scores}
    if found.masks is not None:
        values["segmentations"] = [{"size": found.size, "counts": counts} for counts in found.masks]
    if found.keypoints is not None:
        values["keypoints"] = found.keypoints
    return values


def _floor(detector: nn.Module, pair: tuple[ImageDetections, ImageDetections]) -> float:
    """Return the score above which every detection must have a counterpart.

    A detection that the detector's own threshold or limit nearly cut off may be missing from the other list.
    """
    heads: Any = getattr(detector, "roi_heads", detector)
    limit = limits_of(detector).detections
    lowest = max([float(one.scores.min()) for one in pair if limit is not None and len(one.scores) >= limit], default=0)
    cut = max(float(heads.score_thresh), lowest)
    return max(SCORE, cut + LARGEST_SCORE_DIFFERENCE)


def _accuracy(evaluators: tuple[CocoEvaluator, CocoEvaluator] | None) -> dict[str, tuple[float, float]]:
    if evaluators is None:
        return {}
    before, after = (evaluator.summarize() for evaluator in evaluators)
    return {kind: (before[kind]["AP"], after[kind]["AP"]) for kind in IOU_TYPES if kind in before and kind in after}
