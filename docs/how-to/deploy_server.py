"""A server that detects objects in the images that are posted to it. Copy this file; docs/how-to/deploy.md explains it.

    WEIGHTS=runs/mine uvicorn --factory deploy_server:create_app
    curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/detect

``WEIGHTS`` is a detector's folder or name, or a file of ``vovnet export``, which needs no PyTorch.
"""

from __future__ import annotations

import asyncio
import io
import logging
import math
import os
import queue
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect

# OpenMP reads it when PyTorch is loaded, which the next imports do. By default its threads wait for one another in
# loops, which take the time of those that they wait for where cores are fewer than threads, or shared with others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from vovnet.errors import InputError
from vovnet.export.runtime import is_exported, open_exported
from vovnet.images.reading import TooManyPixels, UnreadableImage, read_image
from vovnet.results.limits import LimitWarning

Pixels = NDArray[np.uint8]
Detections = list[dict[str, Any]]
Detect = Callable[[list[Pixels]], list[Detections]]
"""Takes images (H, W, 3), and returns the detections of each."""

_WARM_UP = (480, 640)
_KINDS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # and WebP, whose second word says what it is
_log = logging.getLogger("uvicorn.error")


@dataclass(frozen=True)
class Settings:
    """Each is an environment variable of the same name in capitals."""

    weights: str
    fuse: str = "fp32"
    """``fp32``, ``bf16``, or ``no`` for the plain model. An exported file ignores it."""
    threads: int = 1
    """How many threads compute."""
    batch: int = 1
    """The largest number of images that are computed together."""
    wait_ms: float = 5
    """How long an image waits for others to fill the batch."""
    places: int = 32
    """How many requests may be inside, from the first byte of the upload to the answer."""
    max_bytes: int = 10 * 2**20
    max_pixels: int = 25_000_000
    upload_seconds: float = 10
    answer_seconds: float = 30

    @classmethod
    def from_environment(cls) -> Settings:
        """Read the variables; a number that is none ends the program with a line that names it."""
        given: dict[str, Any] = {}
        for field in fields(cls):
            text = os.environ.get(field.name.upper())
            if not text:
                continue
            try:
                given[field.name] = {"int": int, "float": float, "str": str}[str(field.type)](text)
                if field.type != "str" and not 0 < given[field.name] < math.inf:
                    raise ValueError
            except ValueError:
                raise SystemExit(f"{field.name.upper()}={text}: expected a number above 0") from None
        if "weights" not in given:
            raise SystemExit("WEIGHTS: expected a detector's folder or name, or an exported file")
        return cls(**given)


def load(settings: Settings) -> Detect:
    """Return the model as a function. It has run once, so that the first request finds everything in place."""
    warnings.filterwarnings("ignore", category=LimitWarning)  # an image with more objects than the limit is an answer
    try:
        detect, size = _exported(settings) if is_exported(settings.weights) else _pytorch(settings)
        detect([np.zeros((*size, 3), np.uint8)])
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    return detect


def _pytorch(settings: Settings) -> tuple[Detect, tuple[int, int]]:
    import torch

    import vovnet
    from vovnet.detection import predict
    from vovnet.hub import load_detector

    torch.set_num_threads(settings.threads)
    detector = load_detector(settings.weights)
    if settings.fuse != "no":
        detector = vovnet.fuse(detector, precision=settings.fuse)  # type: ignore[arg-type]
    return lambda images: predict(detector, images, batch_size=settings.batch), _WARM_UP


def _exported(settings: Settings) -> tuple[Detect, tuple[int, int]]:
    from vovnet.export.prediction import exported_detections

    model = open_exported(settings.weights, threads=settings.threads)
    metadata = model.metadata

    def detect(images: list[Pixels]) -> list[Detections]:
        outputs = model.run_each([image.transpose(2, 0, 1) for image in images])
        return [
            exported_detections(metadata, found, image.shape[:2], "the model").named(metadata.categories)
            for image, found in zip(images, outputs, strict=True)
        ]

    return detect, metadata.input.size or _WARM_UP


class Refused(Exception):
    """An upload that cannot be answered: the status of HTTP, and one line for the client."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass
class _Job:
    upload: bytes
    answer: Future[Detections]


class Worker:
    """The one thread that runs the model, on the images that wait."""

    def __init__(self, detect: Detect, settings: Settings) -> None:
        self._detect = detect
        self._settings = settings
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="detector", daemon=True)
        self._busy_since: float | None = None
        self.pace = 0.1
        """Seconds of the last image."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish what is in the queue, then end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def submit(self, upload: bytes) -> Future[Detections]:
        job = _Job(upload, Future())
        self._jobs.put(job)
        return job.answer

    def waiting(self) -> int:
        """How many images are in the queue, also those for which nobody waits any more."""
        return self._jobs.qsize()

    def is_well(self) -> bool:
        """False if the thread has ended, or one batch takes longer than any answer may."""
        since = self._busy_since
        return self._thread.is_alive() and (since is None or time.monotonic() - since < self._settings.answer_seconds)

    def _work(self) -> None:
        while jobs := self._next_jobs():
            begin = self._busy_since = time.monotonic()
            ready = [(job, pixels) for job in jobs if (pixels := self._decoded(job)) is not None]
            if ready:
                self._answer(ready)
                self.pace = (time.monotonic() - begin) / len(ready)
            self._busy_since = None

    def _next_jobs(self) -> list[_Job]:
        """Wait for a job, and shortly for others; return none if the server stops."""
        job = self._jobs.get()
        jobs = []
        until = time.monotonic() + self._settings.wait_ms / 1000
        while job is not None:
            jobs.append(job)
            if len(jobs) == self._settings.batch:
                break
            try:
                job = self._jobs.get(timeout=max(until - time.monotonic(), 0))
            except queue.Empty:
                break
        if job is None and jobs:
            self._jobs.put(None)
        return jobs

    def _decoded(self, job: _Job) -> Pixels | None:
        if not job.answer.set_running_or_notify_cancel():  # nobody waits for it any more
            return None
        limit = self._settings.max_pixels
        try:
            return np.asarray(read_image(io.BytesIO(job.upload), max_pixels=limit))
        except TooManyPixels:
            job.answer.set_exception(Refused(413, f"the image has more than {limit} pixels"))
        except UnreadableImage:
            job.answer.set_exception(Refused(422, "the image is truncated or damaged"))
        except Exception as error:
            job.answer.set_exception(error)
        return None

    def _answer(self, ready: list[tuple[_Job, Pixels]]) -> None:
        try:
            found = self._detect([pixels for _, pixels in ready])
        except InputError:
            if len(ready) > 1:
                for one in ready:
                    self._answer([one])
            else:
                job, pixels = ready[0]
                size = f"{pixels.shape[1]}x{pixels.shape[0]}"
                job.answer.set_exception(Refused(422, f"the detector does not take images of {size} pixels"))
        except Exception as error:
            for job, _ in ready:
                job.answer.set_exception(error)
        else:
            for (job, _), detections in zip(ready, found, strict=True):
                job.answer.set_result(detections)


async def read_upload(request: Request, settings: Settings) -> bytes:
    """Return the body of a request, which is the image file itself."""
    if request.headers.get("content-type", "").split(";")[0].strip() not in ("image/jpeg", "image/png", "image/webp"):
        raise HTTPException(415, "expected the image file itself as the body, as image/jpeg, image/png or image/webp")
    too_large = HTTPException(413, f"the file has more than {settings.max_bytes} bytes")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > settings.max_bytes:
        raise too_large
    upload = bytearray()
    try:
        async with asyncio.timeout(settings.upload_seconds):
            async for chunk in request.stream():
                upload += chunk
                if len(upload) > settings.max_bytes:
                    raise too_large
    except TimeoutError:
        raise HTTPException(408, f"the upload took more than {settings.upload_seconds:g} seconds") from None
    except ClientDisconnect:
        raise HTTPException(400, "the upload ended early") from None
    if not upload:
        raise HTTPException(422, "the body is empty")
    if not upload.startswith(_KINDS) and not (upload[:4] == b"RIFF" and upload[8:12] == b"WEBP"):
        raise HTTPException(415, "the body is not a JPEG, PNG or WebP file")
    return bytes(upload)


async def answered(request: Request, answer: asyncio.Future[Detections], seconds: float) -> Detections:
    """Wait for an answer. If the client goes away or it takes too long, the image is not computed any more."""
    gone = asyncio.ensure_future(request.receive())  # after the body comes nothing but the end of the connection
    both: set[asyncio.Future[Any]] = {answer, gone}
    done, _ = await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    if answer in done:
        return answer.result()
    answer.cancel()
    if gone in done:
        raise HTTPException(400, "the client has gone")
    raise TimeoutError


def create_app(settings: Settings | None = None) -> FastAPI:
    """Load the model and return the application. Under ``gunicorn --preload`` this happens before the forks."""
    settings = settings or Settings.from_environment()
    worker = Worker(load(settings), settings)
    inside = 0

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start()  # here, because a thread does not survive a fork
        yield
        worker.stop()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    def busy() -> HTTPException:
        seconds = max(1, math.ceil(settings.places * worker.pace))
        return HTTPException(503, "too many requests; try again later", {"Retry-After": str(seconds)})

    @app.post("/detect")
    async def detect(request: Request) -> dict[str, Detections]:
        nonlocal inside
        if max(inside, worker.waiting()) >= settings.places:
            raise busy()
        inside += 1
        try:
            upload = await read_upload(request, settings)
            answer = asyncio.wrap_future(worker.submit(upload))
            return {"detections": await answered(request, answer, settings.answer_seconds)}
        except Refused as error:
            raise HTTPException(error.status, error.text) from None
        except TimeoutError:
            raise busy() from None
        except HTTPException:
            raise
        except Exception:
            _log.exception("an image was not answered")
            raise HTTPException(500, "the detector failed") from None
        finally:
            inside -= 1

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        if not worker.is_well():
            raise HTTPException(503, "the detector does not answer")
        return {"status": "ok"}

    return app
