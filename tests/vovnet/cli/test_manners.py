"""What a command line is expected to do: version, help, quiet, JSON, the nearest name, completion."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import label_files
import pytest
import torch
from support import command
from tiny_runs import short_recipe

from vovnet.cli import app
from vovnet.detection.checkpoints.folder import save_detector
from vovnet.detection.data.report import KINDS
from vovnet.detection.models.build import build_detector
from vovnet.environment import environment_report
from vovnet.terminal.streams import be_quiet, is_quiet

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def loud() -> Iterator[None]:
    yield
    be_quiet(False)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = replace(short_recipe().model, num_classes=3)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    categories = [{"id": number, "name": name} for number, name in enumerate(label_files.NAMES, start=1)]
    save_detector(folder, build_detector(recipe), recipe, categories)
    return folder


def test_version_and_short_help() -> None:
    asked = command("--version")
    assert (asked.code, asked.err) == (0, "")
    assert re.fullmatch(r"vovnet \d+\S*( \(commit [0-9a-f]{12}\))?\n", asked.out)
    for arguments in ([], ["weights"], ["evaluate"], ["benchmark", "cpu"]):
        short, long = (command(*arguments, name) for name in ("-h", "--help"))
        assert (short.code, short.out) == (0, long.out)
        assert "Usage" in short.out


def test_the_help_has_the_exit_codes() -> None:
    words = " ".join(command("--help").out.split())
    assert "Exit codes: 0" in words
    for code in ("1 ", "2 ", "124 ", "130 "):
        assert code in words[words.index("Exit codes") :]


@pytest.mark.parametrize(
    ("arguments", "code", "hint"),
    [
        (["trian", "x"], 2, "train"),
        (["evalute"], 2, "evaluate"),
        (["evaluate", "--ouput", "x"], 2, "--output"),
        (["check-data", "--anotations", "x"], 2, "--annotations"),
        (["benchmark", "cpuu"], 2, "cpu"),
    ],
)
def test_the_nearest_name_is_named(arguments: list[str], code: int, hint: str) -> None:
    refused = command(*arguments)
    assert refused.code == code
    assert re.search(rf"(?<!\w){re.escape(hint)}(?!\w)", refused.error())


def only_json(out: str) -> Any:
    return json.loads(out)


@pytest.mark.parametrize(
    "arguments",
    [
        ["check-data", "none"],
        ["evaluate", "none", "--weights", "none", "--output", "out"],
        ["evaluate", "--weights", "none"],
        ["weights", "list", "no such weights"],
        ["weights", "check", "no such weights"],
        ["env", "--of"],
        ["compare", "none"],
    ],
)
def test_an_error_is_json_too(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain, asked = command(*arguments), command(*arguments, "--json")
    assert (asked.code, plain.out) == (plain.code, "")
    assert asked.code != 0
    found = only_json(asked.out)
    assert found == {"error": asked.error().removeprefix("error: "), "exit_code": asked.code}


def test_check_data_as_json(tmp_path: Path) -> None:
    config = label_files.write_yolo(tmp_path, splits=("train", "val"))
    (tmp_path / "labels" / "val" / "a.txt").write_text("0 0.9 0.5 0.4 0.2\nx\n")
    asked = command("check-data", config, "--json")
    found = only_json(asked.out)
    assert (asked.code, found["ok"], found["format"]) == (1, False, "YOLO")
    train, val = found["splits"]
    assert (train["name"], val["name"]) == ("train", "val")
    problems = {one["kind"]: one for one in val["problems"]}
    assert {"bad_line", "box_partly_outside", "leaked_image"} <= problems.keys() <= KINDS.keys()
    assert len(problems["bad_line"]["ids"]) == 1
    assert list(train["objects_per_category"]) == label_files.NAMES
    assert all(one["exact"] and set(one["splits"]) == {"train", "val"} for one in found["same_images"][:3])
    assert found["recipe"]["model.min_size"] > 0
    command("check-data", config, "--json", "--fix", tmp_path / "fixed").refused("--json", "--fix")


def test_evaluate_as_json_and_quiet(weights: Path, tmp_path: Path) -> None:
    config = label_files.write_yolo(tmp_path / "data", splits=("val",))
    common = [config, "--weights", weights, "--workers", "0", "--device", "cpu", "--output"]
    asked = command("evaluate", *common, tmp_path / "a", "--json")
    assert asked.code == 0
    assert only_json(asked.out) == json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert "split 'val'" in asked.err
    quiet = command("evaluate", *common, tmp_path / "b", "--quiet", "--json")
    assert (quiet.code, quiet.out) == (0, asked.out)
    assert not [line for line in quiet.err.splitlines() if not line.startswith("warning")]
    refused = command("evaluate", *common, tmp_path / "a", "--quiet")
    assert "--overwrite" in refused.error()


def test_quiet_ends_with_its_command() -> None:
    command("check-data", "none", "-q")
    assert is_quiet()
    command("check-data", "none")
    assert not is_quiet()


def test_env_as_json_says_what_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    asked = command("env", "--json")
    found = only_json(asked.out)
    assert "secret" not in asked.out
    for title, rows in found.items():
        assert f"[{title}]" in environment_report()
        assert all(isinstance(value, str) for value in rows.values())
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0] or "torch" in found["versions"]


def run(arguments: list[str], **variables: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    code = f"import sys; sys.argv = ['vovnet', *{arguments!r}]; from vovnet.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    return done.stdout


def test_a_shell_completes_commands_and_options() -> None:
    asked = {"_VOVNET_COMPLETE": "complete_bash", "COMP_CWORD": "2", "COMP_WORDS": "vovnet evaluate --over"}
    assert "--overwrite" in run([], **asked).split()
    assert "--install-completion" in command("--help").out


@pytest.mark.slow
def test_without_colour_there_is_none() -> None:
    colours = re.compile(r"\x1b\[(\d+;)*(3[0-7]|9[0-7]|38)(;\d+)*m")
    forced = {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
    assert colours.search(run(["--help"], **forced))
    assert not colours.search(run(["--help"], **forced, NO_COLOR="1"))


def test_every_command_that_shows_progress_can_be_quiet() -> None:
    names = {group.name or group.callback.__name__: group for group in _commands()}
    for name in ("train", "quickstart", "evaluate", "predict", "check-data", "convert-data"):
        parameters = getattr(names[name].callback, "__annotations__", {})
        assert "quiet" in parameters, name


def _commands() -> Iterator[Any]:
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from group.typer_instance.registered_commands
