"""The page of the demo: what it consists of, and what happens when a visitor uses it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vovnet.detection.demo.bounds import Bounds, RateLimit
from vovnet.detection.demo.content import Content
from vovnet.detection.demo.rendering import Look, messages_html, progress_html, results_html
from vovnet.detection.demo.session import Demo, Session
from vovnet.errors import InputError, absent_package, install_advice
from vovnet.results.writing import FileDetector

NOBODY = "nothing"
"""What is chosen to compare with, if a single detector is shown."""
_KEPT_SECONDS = 3600
_UPLOADS_CHECKED, _UPLOADS_KEPT = 60, 600
"""Seconds. An uploaded file is read at once, and not used again."""
_LAYERS = ("boxes", "masks", "keypoints", "labels")

CSS = """
#told, #results, :is(#told, #results) > * { padding: 0; }
.vovnet-title h1 { margin: 0.4rem 0 0; }
.vovnet-messages { border-left: 4px solid #d97706; background: #fef3c7; color: #451a03; padding: 0.2rem 0.9rem;
  border-radius: 4px; }
.vovnet-messages p { margin: 0.4rem 0; color: inherit; overflow-wrap: anywhere; }
.vovnet-total { font-size: 1.15rem; margin: 0.3rem 0; }
.vovnet-counts { border-collapse: collapse; margin: 0.4rem 0; }
.vovnet-counts, .vovnet-counts * { border: none !important; }
.vovnet-counts :is(th, td) { padding: 0.25rem 1.2rem 0.25rem 0; text-align: left; font-weight: normal;
  border-bottom: 1px solid rgb(128 128 128 / 35%) !important; overflow-wrap: anywhere; }
.vovnet-counts thead th { font-weight: 600; }
.vovnet-counts :is(td, thead th + th) { text-align: right; font-variant-numeric: tabular-nums; }
.vovnet-dot { display: inline-block; width: 0.8em; height: 0.8em; border-radius: 50%; margin-right: 0.5em; }
.vovnet-downloads { display: flex; flex-wrap: wrap; gap: 0.5rem; align-items: center; margin: 0.5rem 0; }
.vovnet-download { border: 1px solid currentcolor; border-radius: 6px; padding: 0.25rem 0.7rem; }
.vovnet-results h3 { margin: 1rem 0 0.3rem; overflow-wrap: anywhere; }
.vovnet-images { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
.vovnet-pair { display: flex; flex-wrap: wrap; gap: 0.8rem; }
.vovnet-pair figure { margin: 0; }
.vovnet-pairs figure { flex: 1 1 min(100%, 22rem); }
.vovnet-pair img { max-width: 100%; max-height: 85vh; border-radius: 4px; }
.vovnet-pair figcaption { padding: 0.2rem 0; overflow-wrap: anywhere; }
.vovnet-results a:focus-visible { outline: 3px solid #2563eb; outline-offset: 2px; }
"""


def gradio() -> Any:
    """Return the package.

    Raises:
        InputError: it is not installed.
    """
    if absent_package("gradio"):
        raise InputError(f"the demo needs Gradio, which is not installed: {install_advice('demo')}")
    return importlib.import_module("gradio")


def build_page(content: Content) -> Any:
    """Return the page as Gradio's ``Blocks``, which :func:`vovnet.detection.demo.server.running` launches.

    Raises:
        InputError: Gradio is not installed.
    """
    gr = gradio()
    with gr.Blocks(
        analytics_enabled=False, title=content.title, delete_cache=(_UPLOADS_CHECKED, _UPLOADS_KEPT)
    ) as page:
        _fill(gr, content)
    page.queue(max_size=32, api_open=False, default_concurrency_limit=2)
    return page


def theme(gr: Any) -> Any:
    """Return a theme whose letters every computer has: nothing is fetched from elsewhere."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def _fill(gr: Any, content: Content) -> None:
    names, bounds = list(content.detectors), content.bounds
    session = gr.State(None, time_to_live=_KEPT_SECONDS)
    gr.Markdown(f"# {content.title}", elem_classes="vovnet-title")
    with gr.Row():
        with gr.Column():
            files = _uploads(gr, bounds)
            buttons = _examples(gr, content)
        with gr.Column():
            several = len(names) > 1
            one = gr.Radio(names, value=names[0], label="Detector", visible=several, elem_id="detector")
            other = gr.Radio([NOBODY, *names], value=NOBODY, label="Compare with", visible=several, elem_id="other")
            threshold = gr.Slider(
                0, 1, value=content.threshold, step=0.01, label="Lowest score that is shown", elem_id="threshold"
            )
            layers = gr.CheckboxGroup(
                choices := _layers(content.detectors), value=choices, label="Show", elem_id="layers"
            )
    told = gr.HTML(elem_id="told", padding=False)
    results = gr.HTML(elem_id="results", padding=False)
    demo = Demo(content.detectors, bounds, RateLimit(bounds.rate))
    events = _Events(gr, demo, [one, other, threshold, layers])
    running: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "detectors", "show_progress": "hidden"}
    outputs = [session, told, results]
    files.upload(
        events.take(), [files, session, *events.controls], [files, *outputs], api_visibility="private", **running
    )
    for button, example in buttons:
        button.click(
            events.take(example), [session, *events.controls], [files, *outputs], api_visibility="private", **running
        )
    for choice in (one, other):
        choice.input(events.again(), [session, *events.controls], outputs, api_visibility="private", **running)
    for control in (threshold, layers):
        control.change(
            events.redraw(),
            [session, *events.controls],
            [results],
            api_visibility="private",
            show_progress="hidden",
            trigger_mode="always_last",
        )


def _examples(gr: Any, content: Content) -> list[tuple[Any, tuple[str, bytes]]]:
    if not content.examples:
        return []
    with gr.Row():
        return [
            (gr.Button(f"Try {Path(name).stem}", size="sm", min_width=90), (name, data))
            for name, data in content.examples
        ]


def _layers(detectors: Mapping[str, FileDetector]) -> list[str]:
    """Return what can be shown: a detector may tell that it has no keypoints, but not that it has no masks."""
    points = any("keypoints" in category for one in detectors.values() for category in one.categories or ())
    return [layer for layer in _LAYERS if points or layer != "keypoints"]


def _uploads(gr: Any, bounds: Bounds) -> Any:
    """Return a component that gives the name and the content of each file that was uploaded, and of nothing else."""
    label = f"Images: up to {bounds.max_images}, of {bounds.max_size_mb:g} MB each"
    files = gr.File(label=label, file_count="multiple", height=180, elem_id="images")
    to_cache = files.async_move_resource_to_block_cache

    async def uploaded(place: Any) -> Any:
        if not isinstance(place, str) or "://" in place:
            raise gr.Error("Images are uploaded, not fetched from an address", print_exception=False)
        return await to_cache(place)

    def contents(payload: Any) -> list[tuple[str, bytes]]:
        try:
            return [(Path(one.orig_name or one.path).name, Path(one.path).read_bytes()) for one in payload or ()]
        except OSError:
            raise gr.Error("The uploaded file is gone; upload it again", print_exception=False) from None

    # A subclass would do, but Gradio writes a file with its types beside the module that defines one.
    files.async_move_resource_to_block_cache = uploaded
    files.preprocess = contents
    return files


class _Events:
    """What happens when a visitor uses a control."""

    def __init__(self, gr: Any, demo: Demo, controls: list[Any]) -> None:
        self._gr, self._demo, self.controls = gr, demo, controls

    def take(self, example: tuple[str, bytes] | None = None) -> Callable[..., Iterator[tuple[Any, ...]]]:
        """Return what takes new images, or an example."""

        def take(*values: Any) -> Iterator[tuple[Any, ...]]:
            files, (session, *controls, request) = ([example], values) if example else (values[0], values[1:])
            session = session or Session()
            self._demo.take(session, files)
            for told in self._detect(session, controls, request):
                yield (None, *told)

        return self._with_request(take)

    def again(self) -> Callable[..., Iterator[tuple[Any, ...]]]:
        """Return what runs another detector on the images that are there."""

        def again(session: Session | None, *values: Any) -> Iterator[tuple[Any, ...]]:
            *controls, request = values
            session = session or Session()
            session.messages = []
            yield from self._detect(session, controls, request)

        return self._with_request(again)

    def redraw(self) -> Callable[..., str]:
        """Return what draws again."""

        def redraw(session: Session | None, *controls: Any) -> str:
            return self._results(session or Session(), controls)

        return redraw

    def _detect(self, session: Session, controls: Sequence[Any], request: Any) -> Iterator[tuple[Any, ...]]:
        client = request.client.host if request is not None and request.client else ""
        skip = self._gr.skip()
        for line in self._demo.detect(session, _chosen(controls), client):
            yield skip, progress_html(line), skip
        yield session, messages_html(session.messages), self._results(session, controls)

    def _results(self, session: Session, controls: Sequence[Any]) -> str:
        names = _chosen(controls)
        seen = Session([one for one in session.images if all(name in one.found for name in names)])
        shown = set(controls[3])
        look = Look(float(controls[2]), *(layer in shown for layer in _LAYERS))
        return results_html(seen, self._demo.detectors, names, look)

    def _with_request(self, event: Any) -> Any:
        # Gradio puts the request where the first parameter has this type, before the values of the controls.
        def handled(request: Any, *values: Any) -> Iterator[tuple[Any, ...]]:
            yield from event(*values, request)

        handled.__annotations__ = {"request": self._gr.Request}
        return handled


def _chosen(controls: Sequence[Any]) -> list[str]:
    """Return the names of the detectors that are shown."""
    one, other = controls[:2]
    return [one] if other in (NOBODY, one) else [one, other]
