"""The command line in tests: run as a user would, without a process of its own."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from vovnet.cli import main


@dataclass
class Outcome:
    """What a command left behind: exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    def error(self) -> str:
        """The one line that says what went wrong."""
        assert "Traceback" not in self.err + self.out, self.err
        errors = [line for line in self.err.splitlines() if line.startswith("error:")]
        assert len(errors) == 1, self.err
        return errors[0]

    def refused(self, *words: object) -> str:
        """Check that the command failed with one line of error that contains ``words``; give the line."""
        assert self.code != 0, self.out + self.err
        line = self.error()
        for word in words:
            assert str(word) in line, line
        return line


def command(*arguments: object) -> Outcome:
    """Run ``vovnet ARGUMENTS`` in this process: importing torch anew for each would take most of the time."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with mock.patch.object(sys, "argv", ["vovnet", *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return Outcome(code, out.getvalue(), err.getvalue())


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too: what was there, and what was left behind."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
