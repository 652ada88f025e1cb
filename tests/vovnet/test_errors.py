"""What errors offer to users: the nearest names."""

from http.client import HTTPMessage
from socket import gaierror
from urllib.error import HTTPError, URLError

import pytest
import typer

from vovnet.errors import did_you_mean, one_line_errors, reason, run_command


def test_the_closest_names_are_suggested():
    known = ["base_lr", "batch_size", "steps"]
    assert did_you_mean("bach_size", known) == "did you mean 'batch_size'?"
    assert did_you_mean("step", ["steps", "stops"], most=3) == "did you mean 'steps' or 'stops'?"
    assert did_you_mean("x", known) == ""
    assert did_you_mean("x", known, "see the docs") == "see the docs"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (URLError(gaierror(-2, "Name or service not known")), "Name or service not known"),
        (URLError(TimeoutError()), "TimeoutError"),
        (URLError("unknown url type: gone"), "unknown url type: gone"),
        (URLError("[Errno 111] Connection refused"), "Connection refused"),
        (URLError(URLError(ConnectionRefusedError(111, "Connection refused"))), "Connection refused"),
        (URLError(""), "URLError"),
        (HTTPError("http://host/a.pth", 403, "Forbidden", HTTPMessage(), None), "HTTP Error 403: Forbidden"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "'utf-8' codec can't decode byte 0xff in position 0: bad"),
        (FileNotFoundError(2, "No such file or directory", "a.pth"), "No such file or directory: 'a.pth'"),
        (ValueError("first\nsecond"), "first"),
        (KeyError(), "KeyError"),
    ],
)
def test_a_reason_is_a_line_without_numbers_and_wrappers(error: Exception, text: str) -> None:
    assert reason(error) == text


def test_ctrl_c_ends_a_command_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer()

    @app.command()
    def wait() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as typed:
        run_command(app, [])
    with pytest.raises(SystemExit) as module, one_line_errors():
        raise KeyboardInterrupt
    assert typed.value.code == module.value.code == 130
    assert capsys.readouterr().err.split("\n")[-3:] == ["error: stopped by Ctrl-C"] * 2 + [""]
