"""The detectors of a demo, opened from what ``--weights`` names."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Unpack

import torch
from PIL import Image
from torch import nn

import vovnet
from vovnet.detection.checkpoints.folder import load_detector
from vovnet.detection.demo.bounds import Bounds
from vovnet.detection.demo.content import Content
from vovnet.detection.demo.examples import example_files
from vovnet.detection.prediction.predictor import file_detector
from vovnet.errors import InputError
from vovnet.export.prediction import exported_file_detector
from vovnet.export.runtime import is_exported, open_exported
from vovnet.folders.home import expand_home
from vovnet.images.arrays import Pixels
from vovnet.processes.devices import choose_device, default_device
from vovnet.results.detections import ImageDetections
from vovnet.results.names import distinct
from vovnet.results.run_options import RunOptions, RunSettings
from vovnet.results.writing import FileDetector


def open_content(
    weights: Sequence[str],
    *,
    title: str = "Detect objects",
    examples: str | os.PathLike[str] | None = None,
    bounds: Bounds | None = None,
    threshold: float = 0.5,
    device: str | torch.device | None = None,
    fuse: bool = False,
    **options: Unpack[RunOptions],
) -> Content:
    """Return what a page with detectors offers.

    Args:
        weights: as for :func:`open_detectors`.
        title: the heading of the page.
        examples: a folder of images to try; see :func:`vovnet.detection.demo.examples.example_files`.
        bounds: of what visitors may ask; None is the default of each.
        threshold: where the slider of scores stands at first, from 0 to 1.
        device: as for :func:`open_detectors`.
        fuse: the same.
        **options: the same.

    Raises:
        InputError: a detector cannot be opened, or an argument is out of its bounds.
    """
    detectors = open_detectors(weights, device=device, fuse=fuse, **options)
    files = example_files(None if examples is None else expand_home(examples), detectors)
    return Content(title, detectors, files, bounds or Bounds(), threshold)


def open_detectors(
    weights: Sequence[str],
    *,
    device: str | torch.device | None = None,
    fuse: bool = False,
    **options: Unpack[RunOptions],
) -> dict[str, FileDetector]:
    """Open the detectors of a demo.

    Args:
        weights: what :func:`vovnet.hub.load_detector` takes, and files of ``vovnet export``.
        device: where detectors of PyTorch run; None is a GPU if there is one.
        fuse: run the copies that :func:`vovnet.fuse` makes, on the CPU.
        **options: change the detectors, or cut images into tiles.

    Returns:
        Each by the name that visitors see, which holds no path: the last part of a folder, or what names it on the Hub.

    Raises:
        InputError: one of them cannot be opened, or is no detector.
    """
    if not weights:
        raise InputError("--weights: expected at least one detector")
    settings = RunSettings(**options)
    place = choose_device("cpu" if fuse else device, default_device())
    names = distinct([visible_name(one) for one in weights], str)
    return {name: _opened(one, place, fuse, settings) for name, one in zip(names, weights, strict=True)}


def visible_name(weights: str) -> str:
    """Return what visitors call weights."""
    path = expand_home(weights)
    if not path.exists():
        return weights
    return path.stem if path.is_file() else os.path.basename(os.path.abspath(path))


def _opened(weights: str, device: torch.device, fuse: bool, settings: RunSettings) -> FileDetector:
    if is_exported(weights):
        settings.check_exported()
        return exported_file_detector(open_exported(weights), settings.tiling)
    detector = load_detector(weights)
    return threaded_detector(vovnet.fuse(detector) if fuse else detector, device, settings)


def threaded_detector(detector: nn.Module, device: torch.device, settings: RunSettings) -> FileDetector:
    """Return a detector of PyTorch that any thread may run.

    Args:
        detector: a torchvision detector. It is moved to the device.
        device: where it runs.
        settings: change the detector, or cut images into tiles.

    Raises:
        InputError: the detector or its settings cannot be used.
    """
    lock = threading.Lock()
    detector.to(device).eval()

    def detect(images: Sequence[Image.Image | Pixels], names: Sequence[str]) -> Sequence[ImageDetections]:
        # "No gradients" holds for a thread, so that each call enters anew what file_detector enters.
        with lock, file_detector(detector, device, 1, settings) as ready:
            return ready.detect(images, names)

    with file_detector(detector, device, 1, settings) as facts:
        return FileDetector(detect, facts.channels, facts.limits, facts.categories, facts.memory_errors)
