"""The folder of a Space: complete, without paths, and one that starts."""

import os
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from demo_cases import Fixed, image_file
from hub_folders import SECRETS, write_run
from huggingface_hub import SpaceCard
from support import command, contents

from vovnet.detection.demo import space
from vovnet.detection.demo.bounds import Bounds
from vovnet.detection.demo.content import Content
from vovnet.detection.demo.opening import open_content
from vovnet.detection.demo.space import export_demo, space_card
from vovnet.errors import InputError, absent_package

CATEGORIES = [{"id": 4, "name": "disc"}, {"id": 9, "name": "bar"}]
# https://huggingface.co/docs/hub/spaces-config-reference
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("secret") / "first", CATEGORIES)


@pytest.fixture(autouse=True)
def version(monkeypatch):
    if absent_package("gradio"):
        monkeypatch.setattr(space, "_gradio_version", lambda: "6.0.0")


@pytest.fixture
def exported(run, tmp_path):
    examples = tmp_path / "given"
    examples.mkdir()
    (examples / "a.png").write_bytes(image_file())
    options = {"tile": 64, "score": 0.0}
    content = open_content(
        [str(run)], title="Discs: and 'bars'", examples=examples, bounds=Bounds(rate=7), device="cpu", **options
    )
    export_demo(content, [str(run)], tmp_path / "out", **options)
    return tmp_path / "out"


def test_it_holds_the_weights_and_nothing_else_of_the_run(exported, run):
    assert sorted(contents(exported)) == [
        ".gitattributes",
        "README.md",
        "app.py",
        "examples/a.png",
        "requirements.txt",
        "weights/first/config.json",
        "weights/first/model.safetensors",
    ]
    for name in ("config.json", "model.safetensors"):
        assert (exported / "weights" / "first" / name).read_bytes() == (run / name).read_bytes()
    for name, content in contents(exported).items():
        assert not [text for text in (*SECRETS, str(run.parent)) if text.encode() in content], name


def test_the_card_has_what_a_space_needs(exported):
    card = SpaceCard.load(exported / "README.md")
    data = card.data
    assert data.title == "Discs: and 'bars'"
    assert (data.sdk, data.app_file, data.pinned) == ("gradio", "app.py", False)
    assert re.fullmatch(r"\d+\.\d+\.\d+", data.sdk_version)
    assert {data.colorFrom, data.colorTo} <= COLOURS
    assert data.python_version == "3.11"
    assert data.models is None
    assert "7 images" in " ".join(card.text.split())


def test_the_card_names_the_models_of_the_hub_and_no_others():
    weights = ["org/name@v1", "torchvision:fasterrcnn_resnet50_fpn_v2", "org/other"]
    content = Content("t", {name: Fixed().ready() for name in weights})
    assert SpaceCard(space_card(content, weights)).data.models == ["org/name", "org/other"]


def test_names_stay_names(tmp_path):
    weights = ["org/name@v1", "torchvision:fasterrcnn_resnet50_fpn_v2"]
    export_demo(Content("t", {name: Fixed().ready() for name in weights}), weights, tmp_path / "out")
    assert not (tmp_path / "out" / "weights").exists()
    assert str(weights) in (tmp_path / "out" / "app.py").read_text()


def test_the_program_opens_the_same_page(exported, monkeypatch):
    served = []
    monkeypatch.setattr("vovnet.detection.demo.server.serve", served.append)
    monkeypatch.chdir("/")
    program = exported / "app.py"
    scope = {"__file__": str(program), "__name__": "__main__"}
    exec(compile(program.read_text(), program, "exec"), scope)
    (content,) = served
    assert content.title == "Discs: and 'bars'"
    assert list(content.detectors) == ["first"]
    assert content.bounds == Bounds(rate=7)
    assert content.examples == [("a.png", image_file())]
    assert scope["OPTIONS"] == {"tile": 64, "score": 0.0}


def test_a_folder_that_is_not_empty_is_refused_or_replaced(exported, run):
    content = open_content([str(run)], device="cpu")
    before = contents(exported)
    with pytest.raises(InputError, match="not empty"):
        export_demo(content, [str(run)], exported)
    assert contents(exported) == before
    export_demo(content, [str(run)], exported, overwrite=True)
    assert "examples/a.png" not in contents(exported)
    # Also if the weights are its own.
    own = str(exported / "weights" / "first")
    export_demo(open_content([own], device="cpu"), [own], exported, overwrite=True)
    assert contents(exported)["weights/first/config.json"] == before["weights/first/config.json"]


def test_the_command_names_what_is_missing(run, tmp_path):
    if absent_package("gradio"):
        command("demo", "--weights", run, "--export-space", tmp_path / "out").refused("Gradio", "[demo]")
    else:
        command("demo", "--weights", tmp_path / "no", "--export-space", tmp_path / "out").refused(tmp_path / "no")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_folder_serves_the_page(run, tmp_path):
    pytest.importorskip("gradio")
    out = tmp_path / "out"
    outcome = command("demo", "--weights", run, "--export-space", out, "--title", "Discs")
    assert outcome.code == 0, outcome.err
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    variables = {**os.environ, "GRADIO_SERVER_PORT": str(port), "PYTHONPATH": str(Path(__file__).parents[3])}
    program = [sys.executable, "-u", "app.py"]
    with subprocess.Popen(program, cwd=out, env=variables, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert f"http://127.0.0.1:{port}/" in server.stdout.readline()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
                page = answer.read().decode()
        finally:
            server.terminate()
    assert '"title":"Discs"' in page
