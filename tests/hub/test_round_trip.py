"""Up and down again: what is published computes the same in plain timm, with this package, and as a detector."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from hub_folders import Made, converted
from local_hub import Hub
from support import command

import vovnet  # noqa: F401 (registers our models)
from vovnet.errors import InputError
from vovnet.hub import load_detector, publish, verify

PLAIN = """
import sys, timm, torch
torch.set_num_threads(1)
x = torch.load(sys.argv[1])
answers = {}
for name in sys.argv[3:]:
    with torch.inference_mode():
        model = timm.create_model(f"hf-hub:{name}", pretrained=True).eval()
        features = timm.create_model(f"hf-hub:{name}", pretrained=True, features_only=True).eval()
        answers[name] = [type(model).__module__, model.pretrained_cfg["num_classes"], model(x), *features(x)]
assert not any(name.split(".")[0] == "vovnet" for name in sys.modules)
torch.save(answers, sys.argv[2])
"""


@pytest.fixture(scope="module")
def v39(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return converted(tmp_path_factory.mktemp("v39"), "vovnet39", 3)


@pytest.mark.usefixtures("token")
def test_plain_timm_computes_with_what_we_publish(hub: Hub, slim: Made, v39: Made, tmp_path: Path) -> None:
    """Loaded without vovnet, the outputs are equal to the last bit to our own networks with the file's weights."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64)
    torch.save(x, tmp_path / "x.pt")
    for made in (slim, v39):
        publish(made.folder, f"me/{made.name}", yes=True, license="other")
    names = [f"me/{made.name}" for made in (slim, v39)]
    arguments = [sys.executable, "-c", PLAIN, str(tmp_path / "x.pt"), str(tmp_path / "answers.pt"), *names]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = torch.load(tmp_path / "answers.pt")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for made, classes in ((slim, 7), (v39, 3)):
            module, told, *outputs = answers[f"me/{made.name}"]
            assert module == "timm.models.vovnet"
            assert told == classes
            expected = own_outputs(made, classes, x)
            assert len(outputs) == len(expected) == 6
            assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True)), made.name
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def own_outputs(made: Made, classes: int, x: torch.Tensor) -> list[torch.Tensor]:
    """Logits and feature maps of our own class, whose weights come straight from the published file."""
    from vovnet.vovnet import published_keys

    model = timm.create_model(made.name, num_classes=classes).eval()
    names, file = published_keys(model), torch.load(made.file, weights_only=True)
    model.load_state_dict({ours: file[theirs] for theirs, ours in names.items()})
    assert type(model).__module__.startswith("vovnet.")
    body = timm.create_model(made.name, features_only=True).eval()
    state = {
        key.replace("stem.", "stem_", 1).replace("stages.", "stages_", 1): v for key, v in model.state_dict().items()
    }
    body.load_state_dict({key: state[key] for key in body.state_dict()})
    return [model(x), *body(x)]


@pytest.mark.usefixtures("token")
def test_ours_by_its_name(hub: Hub, slim: Made) -> None:
    """``architecture="vovnet"``: needs this package, and computes the same."""
    publish(slim.folder, "me/ours", yes=True, license="other", architecture="vovnet")
    model = timm.create_model("hf-hub:me/ours", pretrained=True).eval()
    assert type(model).__module__.startswith("vovnet.")
    features = timm.create_model("hf-hub:me/ours", pretrained=True, features_only=True).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        found = [model(x), *features(x)]
    assert all(torch.equal(a, b) for a, b in zip(found, own_outputs(slim, 7, x), strict=True))


@pytest.mark.usefixtures("token")
def test_a_detector_comes_back_equal(hub: Hub, run: Path) -> None:
    publish(run, "me/detector", yes=True, license="apache-2.0")
    here, there = load_detector(run), load_detector("me/detector")
    assert there.categories == here.categories
    assert there.recipe == here.recipe
    assert there.preprocessing == here.preprocessing
    image = torch.rand(3, 60, 80)
    with torch.inference_mode():
        for a, b in zip(here([image])[0].values(), there([image])[0].values(), strict=True):
            assert torch.equal(a, b)
    assert command("verify", "me/detector").code == 0


@pytest.mark.usefixtures("token")
def test_what_came_from_the_hub_can_be_published_on(hub: Hub, slim: Made, tmp_path: Path) -> None:
    """The source of the weights stays known, so a licence is still needed."""
    publish(slim.folder, "me/slim", yes=True, license="other")
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for name, data in hub.files("me/slim").items():
        (folder / name).write_bytes(data)
    with pytest.raises(InputError, match=r"--license.*vovnet27_slim\.pth"):
        publish(folder, "me/again", yes=True)
    publish(folder, "me/again", yes=True, license="other")
    assert verify("me/again").outputs == 2
