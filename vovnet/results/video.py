"""Detect in the frames of a video: an annotated video, and a line of JSON for each frame."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from vovnet.errors import InputError
from vovnet.files import atomic_path
from vovnet.folders.home import expand_home
from vovnet.images.video import Frame, Video, opened_video, video_name, written_video
from vovnet.results.detections import ImageDetections
from vovnet.results.drawing import draw_detections
from vovnet.results.labels import LabelMode
from vovnet.results.skeletons import skeletons_of
from vovnet.results.thresholds import USUAL, Threshold, Thresholds
from vovnet.results.writing import FileDetector
from vovnet.terminal.streams import echo
from vovnet.terminal.text import printable


def write_video(
    detector: FileDetector,
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    threshold: Threshold = USUAL,
    *,
    every: int = 1,
    max_frames: int | None = None,
    labels: LabelMode = "auto",
    report: Callable[[str], object] = echo,
) -> Path:
    """Write ``STEM.mp4``, in which the detections are drawn, and ``STEM.jsonl``, a JSON object for each frame.

    A line is ``{"frame", "seconds", "limit_reached", "detections"}``, the last as ``vovnet predict`` writes them for an
    image. One batch of frames is in memory at a time. Ctrl-C ends a camera's video, and the files are complete.

    Args:
        detector: what is called for the frames.
        source: as for :func:`vovnet.images.video.opened_video`.
        output: folder for both files; created if it does not exist.
        threshold: detections with a lower score are not drawn; the JSON file has all of them.
        every: 2 takes every second frame, and so on; the video that is written has these alone, at its own pace.
        max_frames: ends after so many frames; None does not.
        labels: as for :func:`vovnet.results.drawing.draw_detections`.
        report: called with one line at the end.

    Returns:
        The JSON file.

    Raises:
        InputError: the source cannot be opened, or has no frame; or it ends before its end, which is raised after the
            files of the frames before that are written.
        OSError: the output cannot be written.
    """
    for name, value in (("every", every), ("max_frames", 1 if max_frames is None else max_frames)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}: expected a whole number of at least 1, got {value}")
    Thresholds.of(threshold, detector.categories)
    folder = expand_home(output)
    folder.mkdir(parents=True, exist_ok=True)
    name = video_name(source)
    drawn, lines = folder / f"{name}.mp4", folder / f"{name}.jsonl"
    if not str(source).startswith("camera:") and os.path.realpath(expand_home(source)) == os.path.realpath(drawn):
        raise InputError(f"output: '{drawn}' is the video and would be overwritten; choose another folder")
    count = full = 0
    skeletons = skeletons_of(detector.categories or [])
    with opened_video(source) as video, atomic_path(drawn) as film, atomic_path(lines) as text:
        with written_video(film, video.rate / every) as writer, text.open("w", encoding="utf-8") as file:
            for frame, found in _detected(detector, video, every, max_frames):
                entry = found.named(detector.categories)
                reached = detector.limits.reached(found)
                file.write(json.dumps(_line(frame, reached, entry), allow_nan=False) + "\n")
                writer.add(draw_detections(frame.image, entry, threshold, labels=labels, skeletons=skeletons))
                count, full = count + 1, full + reached
        if not count:
            raise InputError(video.problem or f"{source}: the video has no frames")
    limit = f", {full} of them with the limit of detections: see --max-detections" if full else ""
    report(printable(f"{source}: {count} frames{limit} -> {drawn}"))
    if video.problem is not None:
        raise InputError(f"{video.problem}; what was found in the frames before is in {folder}")
    return lines


def _line(frame: Frame, reached: bool, detections: Sequence[object]) -> dict[str, object]:
    return {"frame": frame.number, "seconds": frame.seconds, "limit_reached": reached, "detections": detections}


def _detected(
    detector: FileDetector, video: Video, every: int, most: int | None
) -> Iterator[tuple[Frame, ImageDetections]]:
    """Yield frames and their detections, a batch at a time; Ctrl-C ends them."""
    frames = islice(video.frames(every), most)
    try:
        while batch := list(islice(frames, detector.batch_size)):
            images = [one.image if detector.channels == 3 else one.image.convert("L") for one in batch]
            names = [f"{video.source}, frame {one.number}" for one in batch]
            yield from zip(batch, detector.detect(images, names), strict=True)
    except KeyboardInterrupt:
        return
