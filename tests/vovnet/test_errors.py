"""What errors offer to users: the nearest names."""

import pytest
import typer

from vovnet.errors import did_you_mean, one_line_errors, run_command


def test_the_closest_names_are_suggested():
    known = ["base_lr", "batch_size", "steps"]
    assert did_you_mean("bach_size", known) == "did you mean 'batch_size'?"
    assert did_you_mean("step", ["steps", "stops"], most=3) == "did you mean 'steps' or 'stops'?"
    assert did_you_mean("x", known) == ""
    assert did_you_mean("x", known, "see the docs") == "see the docs"


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
