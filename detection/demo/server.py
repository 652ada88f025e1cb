"""Serve the demo: one process, files in a folder of its own, no address but its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vovnet.detection.demo.content import Content
from vovnet.detection.demo.gate import Gate
from vovnet.detection.demo.page import CSS, build_page, gradio, theme
from vovnet.errors import InputError, reason
from vovnet.folders.temporary import scratch_folder
from vovnet.terminal.streams import echo

_LOCAL, _EVERYWHERE = "127.0.0.1", "0.0.0.0"
_THREADS = 8


def serve(
    content: Content,
    *,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
    report: Callable[[str], object] = echo,
) -> None:
    """Serve a page until Ctrl-C.

    Args:
        content: of the page.
        host: as for :func:`running`.
        port: as for :func:`running`.
        share: as for :func:`running`.
        report: is called with one line for each address.

    Raises:
        InputError: as for :func:`running`.
    """
    with running(content, host=host, port=port, share=share) as addresses:
        for address in addresses:
            report(f"The demo is at {address}; Ctrl-C ends it")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            report("The demo has ended")


@contextmanager
def running(
    content: Content, *, host: str | None = None, port: int | None = None, share: bool = False
) -> Iterator[list[str]]:
    """Serve a page for the length of a ``with`` block, and yield its addresses.

    Uploaded files are in a temporary folder, which is removed at the end.

    Args:
        content: of the page.
        host: the address of the network that it listens on. None is that of the variable GRADIO_SERVER_NAME, or this
            computer alone; in a Space of Hugging Face, every network.
        port: None is that of the variable GRADIO_SERVER_PORT, or the first free one from 7860 on.
        share: make an address of Gradio's service, which everybody can reach, for some days.

    Raises:
        InputError: Gradio is not installed, or the port is taken.
    """
    gr = gradio()
    place = host or os.environ.get("GRADIO_SERVER_NAME") or (_EVERYWHERE if "SPACE_ID" in os.environ else _LOCAL)
    with scratch_folder() as folder, _variables(GRADIO_TEMP_DIR=str(folder), GRADIO_ANALYTICS_ENABLED="False"):
        page = build_page(content)
        try:
            _, local, public = page.launch(
                server_name=place,
                server_port=port,
                share=share,
                prevent_thread_lock=True,
                quiet=True,
                inline=False,
                show_error=False,
                max_threads=_THREADS,
                max_file_size=content.bounds.max_bytes * content.bounds.max_images,  # the page tells of those between
                state_session_capacity=content.bounds.sessions,
                allowed_paths=[],
                enable_monitoring=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                footer_links=[],
                theme=theme(gr),
                css=CSS,
                app_kwargs={"middleware": [_middleware(content, str(folder))], "docs_url": None, "redoc_url": None},
            )
        except OSError as error:
            raise InputError(f"--host {place}, --port {port}: cannot be served there ({reason(error)})") from error
        try:
            yield [address for address in (local, public) if address]
        finally:
            page.close(verbose=False)


def _middleware(content: Content, folder: str) -> Any:
    from starlette.middleware import Middleware

    return Middleware(Gate, bounds=content.bounds, folder=folder)


@contextmanager
def _variables(**values: str) -> Iterator[None]:
    """Set variables of the environment for the length of a ``with`` block."""
    former = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
