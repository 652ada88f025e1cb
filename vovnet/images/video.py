"""Frames of video files, cameras and streams, one at a time, and videos that are written, with PyAV."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from vovnet.errors import InputError, absent_package, install_advice, reason
from vovnet.folders.home import expand_home

SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"})
"""Of video files."""
_CAMERA = re.compile(r"camera:(\d+)")
_STREAM = re.compile(r"(rtsp|rtmp|udp|tcp)://")

_FEW_FRAMES = {"preset": "veryfast", "tune": "zerolatency"}
"""x264 writes each frame as it comes. Otherwise it keeps up to 40: gigabytes for frames of 12 megapixels."""
_THREADS = 4
"""Each holds a frame; by itself x264 starts more than there are cores."""


class Frame(NamedTuple):
    """A frame of a video."""

    number: int
    """Its position, from 0."""
    seconds: float | None
    """When it is shown; None if the video does not say."""
    image: Image.Image


def is_video(source: str | os.PathLike[str]) -> bool:
    """Return True for a video file by its suffix, ``camera:N``, and the address of a stream (``rtsp://…``)."""
    text = os.fspath(source)
    return bool(_CAMERA.fullmatch(text) or _STREAM.match(text)) or Path(text).suffix.lower() in SUFFIXES


def video_name(source: str | os.PathLike[str]) -> str:
    """Return a name for the results of a video: the stem of a file, ``camera-N``, or the words of an address."""
    text = os.fspath(source)
    if _STREAM.match(text):
        return "-".join(re.findall(r"[A-Za-z0-9]+", text.partition("@")[2] or text.partition("://")[2])) or "stream"
    return text.replace(":", "-") if _CAMERA.fullmatch(text) else Path(text).stem


class Video:
    """A video that is open.

    Attributes:
        rate: frames a second.
        problem: what ended it before its end; None if nothing did.
    """

    def __init__(self, container: Any, source: str) -> None:
        self.source = source
        self._container = container
        self._stream = container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.rate = Fraction(self._stream.average_rate or 25)
        self.problem: str | None = None

    def frames(self, every: int = 1) -> Iterator[Frame]:
        """Yield every n-th frame in RGB. A damaged video ends early, and :attr:`problem` says so."""
        number = -1
        try:
            for frame in self._container.decode(self._stream):
                number += 1
                if number % every == 0:
                    seconds = None if frame.time is None else float(frame.time)
                    yield Frame(number, seconds, frame.to_image())
        except _av().error.FFmpegError as error:
            self.problem = f"{self.source}: the video ends after {number + 1} frames ({reason(error)})"
        expected = int(self._stream.frames or 0)
        if self.problem is None and number + 1 < 0.95 * expected:  # the number in the header may be a little off
            self.problem = f"{self.source}: the video ends after {number + 1} of {expected} frames"


@contextmanager
def opened_video(source: str | os.PathLike[str]) -> Iterator[Video]:
    """Open a video file, ``camera:N`` or the address of a stream for the length of a ``with`` block.

    Raises:
        InputError: it is not there, or is no video; or PyAV is not installed.
    """
    av = _av()
    text = os.fspath(source)
    camera, stream = _CAMERA.fullmatch(text), _STREAM.match(text)
    path, options = text, dict[str, Any]()
    if camera:
        path, options = _device(int(camera[1]))
    elif not stream:
        file = expand_home(source)
        path = str(file)
        if not file.is_file():
            raise InputError(f"{file}: {'is not a file' if file.exists() else 'no such file'}; expected a video")
    try:
        container = av.open(path, **options)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        kind = "there is no such camera" if camera else "cannot be opened as a video"
        raise InputError(f"{text}: {kind} ({reason(error)})") from error
    with container:
        if not container.streams.video:
            raise InputError(f"{text}: has no video in it")
        yield Video(container, text)


def _device(number: int) -> tuple[str, dict[str, Any]]:
    """Return what PyAV opens for a camera."""
    if sys.platform == "darwin":
        return str(number), {"format": "avfoundation", "options": {"framerate": "30"}}
    if sys.platform == "win32":
        raise InputError(f"camera:{number}: cameras are read on Linux and macOS; record a video file")
    return f"/dev/video{number}", {"format": "v4l2"}


@contextmanager
def written_video(path: Path, rate: Fraction) -> Iterator[VideoWriter]:
    """Write an MP4 file for the length of a ``with`` block."""
    with _av().open(str(path), "w", format="mp4") as container:
        writer = VideoWriter(container, rate)
        yield writer
        writer.finish()


class VideoWriter:
    """Encodes frames of one size, that of the first: H.264, or MPEG-4 if this PyAV has no encoder for it."""

    def __init__(self, container: Any, rate: Fraction) -> None:
        self._container, self._rate = container, rate
        self._stream: Any = None

    def add(self, image: Image.Image) -> None:
        """Append a frame."""
        av = _av()
        if self._stream is None:
            codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
            options = _FEW_FRAMES if codec == "libx264" else {}
            # Encoders take small denominators and even sides alone.
            stream: Any = self._container.add_stream(codec, rate=self._rate.limit_denominator(1001), options=options)
            stream.codec_context.thread_count = _THREADS
            stream.width, stream.height = (max(2, side // 2 * 2) for side in image.size)
            stream.pix_fmt = "yuv420p"
            self._stream = stream
        size = (self._stream.width, self._stream.height)
        cropped = image.convert("RGB").crop((0, 0, *size))
        self._container.mux(self._stream.encode(av.VideoFrame.from_image(cropped)))

    def finish(self) -> None:
        """Write what the encoder still holds."""
        if self._stream is not None:
            self._container.mux(self._stream.encode())


def _av() -> Any:
    if absent_package("av"):
        raise InputError(f"videos and cameras need PyAV, which is not installed: {install_advice('video')}")
    return importlib.import_module("av")
