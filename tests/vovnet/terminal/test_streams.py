"""Streams that never stop a command: closed, full, a pipe without a reader, ASCII alone, none at all."""

import io
import os
import sys
import warnings

import pytest

from vovnet.errors import InputError, one_line_errors
from vovnet.terminal.streams import LastingStream, echo, lasting_output, say, standard_error


class Broken(io.StringIO):
    """A stream whose writes and flushes fail."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error

    def flush(self):
        raise self.error


def ascii_stream():
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii", newline="\n")


ERRORS = [BrokenPipeError(32, "broken pipe"), OSError(9, "bad descriptor"), OSError(28, "full"), ValueError("closed")]


def test_what_the_encoding_lacks_is_escaped():
    stream = ascii_stream()
    print("汽 é \ud800 ok", file=LastingStream(stream), flush=True)
    assert stream.buffer.getvalue() == rb"\u6c7d \xe9 \ud800 ok" + b"\n"


@pytest.mark.parametrize("error", ERRORS)
def test_a_broken_stream_drops_the_rest(error):
    stream = LastingStream(Broken(error))
    print("a", file=stream, flush=True)
    print("b", file=stream, flush=True)
    assert stream.failure is error


def test_no_stream_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    say("a")
    echo("b")
    assert not standard_error().isatty()
    with pytest.raises(io.UnsupportedOperation):
        standard_error().fileno()
    with lasting_output():
        print("c")


@pytest.mark.parametrize("error", ERRORS)
def test_progress_and_messages_outlive_their_stream(monkeypatch, error):
    from vovnet.detection.progress import progress_bar

    monkeypatch.setattr(sys, "stderr", Broken(error))
    monkeypatch.setattr(sys, "stdout", Broken(error))
    assert list(progress_bar(range(3), "test", "it")) == [0, 1, 2]
    say("a")
    echo("b")
    with lasting_output():
        print("c", flush=True)


def test_a_full_disk_below_the_output_is_an_error_at_the_end(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Broken(OSError(28, "No space left on device")))
    done = []

    def command():
        with one_line_errors():
            print("a", flush=True)
            done.append("everything")

    with pytest.raises(SystemExit) as caught:
        command()
    assert (caught.value.code, done) == (1, ["everything"])
    assert capsys.readouterr().err.startswith("error: standard output: No space left")


@pytest.mark.parametrize("error", ERRORS[:2])
def test_a_reader_that_left_is_no_error(monkeypatch, error):
    monkeypatch.setattr(sys, "stdout", Broken(error))
    with one_line_errors():
        print("a", flush=True)


def test_errors_and_warnings_are_one_printable_line(capsys):
    def command():
        with one_line_errors():
            print(warnings.formatwarning("red\x1b[31m\nname", RuntimeWarning, "f", 1), file=sys.stderr, end="")
            raise InputError("a\n\x1b[2J\ud800")

    with pytest.raises(SystemExit):
        command()
    assert capsys.readouterr().err == "warning: red\\x1b[31m name\nerror: a \\x1b[2J\\ud800\n"
    assert "RuntimeWarning" in warnings.formatwarning("x", RuntimeWarning, "f", 1)


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_descriptors_never_become_files_of_results(closed, tmp_path):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for descriptor in closed:
                os.close(descriptor)
            sys.stdout = sys.stderr = None
            with lasting_output(), open(tmp_path / "result", "w") as file:
                code = 0 if file.fileno() > 2 else 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
