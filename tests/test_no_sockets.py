"""Nothing reaches the network unless weights by name are asked for: imports, training, prediction open no socket."""

import json
import subprocess
import sys
from pathlib import Path

from local_hub import Hub

# One process for all steps: importing torch anew for each would take most of the time. Python tells of sockets through
# audit events; what the loopback Hub saw is a second witness, also for native code.
CODE = """
import json, os, sys

folder, address, report = sys.argv[1:]
opened, step = {}, "import"

def hook(event, arguments):
    if event == "socket.__new__" and arguments[1] not in (2, 10):  # neither AF_INET nor AF_INET6
        return
    if event.startswith("socket.") and event != "socket.gethostname":  # a system call; TensorBoard's file names have it
        opened.setdefault(step, []).append(f"{event} {arguments[1:]}")

sys.addaudithook(hook)

import timm
import torch

import vovnet, vovnet.adapters, vovnet.cli, vovnet.detection, vovnet.detection.training.engine, vovnet.hub
from vovnet.detection.data.synthetic import generate_shapes

step = "create_model"
timm.create_model("vovnet39")
timm.create_model("vovnet27_slim", pretrained=False, features_only=True)

step = "train"
sources = generate_shapes(folder + "/data", train=2, val=1, size=(64, 64), max_shapes=1)
listed = (
    f"data.{split}=[{{images: '{one.images}', annotations: '{one.annotations}'}}]" for split, one in sources.items()
)
recipe = vovnet.detection.load_recipe("quickstart", [
    *listed, "data.workers=0", "data.train_min_sizes=[64]", "data.train_max_size=64",
    "model.pretrained=false", "model.min_size=64", "model.max_size=64", "model.fpn_channels=8",
    "model.box_representation_size=16", "model.mask_head_convs=1", "model.mask_head_channels=8",
    "solver.batch_size=2", "solver.max_iterations=2", "solver.steps=[1]", "solver.warmup_iterations=1",
    "log.log_every=1", "log.evaluate_every=2",
])
run = folder + "/run"
vovnet.detection.train(recipe, run, device="cpu", progress=False)

step = "predict"
detector = vovnet.hub.load_detector(run)
vovnet.detection.predict(detector, [torch.rand(3, 64, 64)])

step = "a local folder"
model = timm.create_model("vovnet27_slim", num_classes=2)
timm.models.save_for_hf(model, folder + "/saved", model_config={"num_classes": 2}, safe_serialization=True)
timm.create_model(f"local-dir:{folder}/saved", pretrained=True)

step = "the command"
(image,) = os.listdir(folder + "/data/val")
sys.argv = ["vovnet", "predict", f"{folder}/data/val/{image}", "--weights", run, "--output", folder + "/drawn"]
try:
    vovnet.cli.main()
except SystemExit as stop:
    assert not stop.code, stop.code

step = "control"
import urllib.error, urllib.request

try:
    urllib.request.urlopen(address, timeout=30)
except urllib.error.HTTPError:
    pass
with open(report, "w") as file:
    json.dump(opened, file)
"""


def test_no_socket_is_opened_unless_weights_are_asked_for(hub: Hub, repository: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    arguments = (str(tmp_path), f"{hub.endpoint}/control", str(report))
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    opened = json.loads(report.read_text())
    seen = opened.pop("control")
    assert any(event.startswith("socket.__new__") for event in seen)
    assert any(event.startswith("socket.connect") and "127.0.0.1" in event for event in seen)
    assert opened == {}
    assert hub.log() == [("GET", "/control", 404)]
