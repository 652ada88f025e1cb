"""`vovnet convert --input` and `--part`: starts for detectors, which compute what the network of the file did."""

from __future__ import annotations

import json
import math
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from published_forms import dd3d, network, renamed
from safetensors.torch import load_file
from timm.models import save_for_hf
from tiny_runs import Squares
from torch import Tensor
from torch.nn import functional as F

from vovnet.checkpoints.shapes import published_resnet_keys, shapes_of
from vovnet.classification import load_classifier
from vovnet.cli import main
from vovnet.detection.checkpoints.initialize import load_matching
from vovnet.detection.config.loading import load_recipe
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.legacy.keys import published_detector_keys
from vovnet.detection.models.build import build_detector
from vovnet.detection.training.engine import train
from vovnet.detection.training.metrics_log import read_metrics
from vovnet.errors import InputError
from vovnet.hub import convert_checkpoint, load_detector, verify
from vovnet.hub.classifiers import infer_network
from vovnet.hub.network_inputs import described_by
from vovnet.hub.weights_file import read_weights_file
from vovnet.vovnet import published_keys, pytorchcv_keys
from vovnet.vovnet_v2 import published_v2_keys

SLIM = "vovnet27_slim"
BGR255 = {"channel_order": "bgr", "range": [0, 255], "mean": [102.9801, 115.9465, 122.7717], "std": [1, 1, 1]}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def detector(backbone: str, **settings: Any) -> Any:
    recipe = ModelRecipe(
        backbone=backbone,
        conventions="legacy",
        norm="frozen_bn",
        pretrained=True,
        fpn_channels=8,
        box_representation_size=8,
        num_classes=2,
        **settings,
    )
    return build_detector(recipe, download=False).eval()


def started(folder: Path, backbone: str, **settings: Any) -> Any:
    found = detector(backbone, **settings)
    assert load_matching(found, folder, "legacy").fresh == ["backbone.fpn.*", "roi_heads.*", "rpn.*"]
    return found


def photo(size: int = 96) -> Tensor:
    """An RGB image of whole bytes in 0..1, which is what the legacy transform keeps."""
    return torch.randint(0, 256, (3, size, size), generator=torch.Generator().manual_seed(4)) / 255


def maps_with_the_new_border(model: Any, image: Tensor, normalisation: Any, order: str) -> list[Tensor]:
    """The maps that the network of a file has if its first convolution pads with the mean of the new input.

    Its channels are in ``order``, and its normalisation is for images in 0..1.
    """
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalisation)
    edge = torch.tensor(BGR255["mean"]).view(3, 1, 1) / 255
    image, edge = (image.flip(0), edge) if order == "bgr" else (image, edge.flip(0))
    edge = ((edge - mean) / std)[None]
    conv = model.get_submodule(model.pretrained_cfg["first_conv"])
    padded = F.pad(((image - mean) / std)[None] - edge, (conv.padding[0],) * 4) + edge
    before, conv.padding = conv.padding, (0, 0)
    with torch.inference_mode():
        maps: list[Tensor] = model.forward_intermediates(padded, intermediates_only=True)
    conv.padding = before
    return maps[-4:]


def compare(folder: Path, model: Any, normalisation: Any, order: str = "rgb", **settings: Any) -> None:
    """The legacy detector's backbone computes the maps of the network that was converted."""
    found = started(folder, model.pretrained_cfg["architecture"], **settings)
    image = photo()
    with torch.inference_mode():
        maps = found.backbone.body(found.transform.normalize(image)[None])
    for ours, theirs in zip(maps, maps_with_the_new_border(model, image, normalisation, order), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


def zipped(path: Path) -> Path:
    with zipfile.ZipFile(path.with_suffix(".pth.zip"), "w") as archive:
        archive.write(path, path.name)
    return path.with_suffix(".pth.zip")


@pytest.mark.parametrize("names", [pytorchcv_keys, published_keys], ids=["pytorchcv", "authors"])
def test_a_classifier_of_vovnet_starts_a_legacy_detector(
    names: Callable[[Any], dict[str, str]], tmp_path: Path
) -> None:
    model = network(SLIM)
    path = tmp_path / "slim.pth"
    torch.save(renamed(model, names(model)), path)
    if names is pytorchcv_keys:
        path = zipped(path)
    result = convert_checkpoint(path, tmp_path / "out", input="bgr255")
    assert result.name == SLIM
    assert set(result.ignored.values()) == {"a backbone has no classifier"}
    assert len(result.ignored) == 2
    compare(tmp_path / "out", model, IMAGENET)
    assert verify(tmp_path / "out").difference == 0
    assert any("BGR" in note for note in result.notes)
    says_its_input_and_classifies_nothing(tmp_path / "out")


def says_its_input_and_classifies_nothing(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["preprocessing"] == BGR255
    assert (config["pretrained_cfg"]["mean"], config["pretrained_cfg"]["std"]) == (BGR255["mean"], BGR255["std"])
    assert (config["num_classes"], config["norm_eps"]) == (0, 1e-5)
    assert any("BGR" in note for note in config["pretrained_cfg"]["notes"])
    assert (
        "| input | 3×224×224, crop 0.875, bilinear, BGR images in 0..255 |" in ModelCard.load(folder / "README.md").text
    )
    with pytest.raises(InputError, match="no classifier"):
        load_classifier(folder)


@pytest.mark.parametrize("form", ["torchvision.pth", "folder"])
def test_a_resnet_of_timm_starts_a_legacy_detector(form: str, tmp_path: Path) -> None:
    """With its stride in the 3×3, by the normalisation of its folder, or ImageNet's if it comes without one."""
    model = network("resnet50", num_classes=3)
    path, normalisation = tmp_path / form, IMAGENET
    if form == "folder":
        model.pretrained_cfg = {**model.pretrained_cfg, "mean": HALF[0], "std": HALF[1], "license": "apache-2.0"}
        save_for_hf(model, str(path), safe_serialization=True)
        normalisation = HALF
    else:
        torch.save(model.state_dict(), path)
    result = convert_checkpoint(path, tmp_path / "out", input="bgr255", expect="resnet50")
    assert any("ImageNet's mean" in note for note in result.notes) == (form != "folder")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["stride_in_1x1"] is False
    assert config["pretrained_cfg"]["license"] == ("apache-2.0" if form == "folder" else "not-stated")
    compare(tmp_path / "out", model, normalisation, stride_in_1x1=False)
    with torch.device("meta"):
        other = detector("resnet50")
    with pytest.raises(InputError, match=r"model\.stride_in_1x1=false"):
        load_matching(other, tmp_path / "out", "legacy")


def test_the_references_resnets_start_the_other_way_round(tmp_path: Path) -> None:
    model = timm.create_model("resnet50", num_classes=0)
    file = {
        key: value for key, value in renamed(model, published_resnet_keys(model)).items() if "num_batches" not in key
    }
    torch.save(file, tmp_path / "r50.pth")
    convert_checkpoint(tmp_path / "r50.pth", tmp_path / "out")
    started(tmp_path / "out", "resnet50")
    with torch.device("meta"):
        other = detector("resnet50", stride_in_1x1=False)
    with pytest.raises(InputError, match=r"model\.stride_in_1x1=true"):
        load_matching(other, tmp_path / "out", "legacy")


def test_the_published_backbones_start_a_legacy_detector_as_they_are(tmp_path: Path) -> None:
    """Every value is the file's, also the variances: the reference's frozen norms have no epsilon, either."""
    model = network(SLIM)
    file = {key: value for key, value in renamed(model, published_keys(model)).items() if "/" in key}
    torch.save(file, tmp_path / "f.pth")
    convert_checkpoint(tmp_path / "f.pth", tmp_path / "out")
    state, names = started(tmp_path / "out", SLIM).backbone.body.state_dict(), published_keys(model)
    for theirs, value in file.items():
        if "num_batches" not in theirs:
            ours = names[theirs].replace("stem.", "stem_", 1).replace("stages.", "stages_", 1)
            assert torch.equal(state[ours], value), theirs
    with pytest.raises(InputError, match=r"already.*leave --input out"):
        convert_checkpoint(tmp_path / "f.pth", tmp_path / "other", input="bgr255")


def test_a_folder_is_folded_once(tmp_path: Path) -> None:
    """What convert wrote is a file for convert: a classifier first, its start then, and no second time."""
    model = network(SLIM)
    torch.save(renamed(model, published_keys(model)), tmp_path / "f.pth")
    convert_checkpoint(tmp_path / "f.pth", tmp_path / "classifier")
    convert_checkpoint(tmp_path / "classifier", tmp_path / "start", input="bgr255")
    convert_checkpoint(tmp_path / "f.pth", tmp_path / "direct", input="bgr255")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("start", "direct"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    with pytest.raises(InputError, match="already"):
        convert_checkpoint(tmp_path / "start", tmp_path / "again", input="bgr255")


def test_the_backbone_of_dd3d_starts_a_legacy_detector(tmp_path: Path) -> None:
    """The mean and deviation of its pixels are in the file: the recipe repeats them, or they are folded."""
    name = "ese_vovnet19b_slim_dw"
    model = network(name, num_classes=0)
    file = dd3d(model)
    torch.save({"model": file, "optimizer": {}}, tmp_path / "dd3d.pth")
    with pytest.raises(InputError, match="--part backbone"):
        convert_checkpoint(tmp_path / "dd3d.pth", tmp_path / "refused")
    result = convert_checkpoint(tmp_path / "dd3d.pth", tmp_path / "v2", part="backbone", expect=name)
    ours = set(result.ignored)
    assert ours == {key for key in file if not key.startswith("backbone.bottom_up.")}
    assert "ignored: fcos3d_head* (" in str(result)
    state, names = load_file(tmp_path / "v2" / "model.safetensors"), published_v2_keys(model)
    for theirs, value in renamed(model, names).items():
        assert torch.equal(state[names[theirs]], value), theirs
    mean, std = [103.53, 116.28, 123.675], [57.375, 57.12, 58.395]
    started(tmp_path / "v2", name, image_mean=mean, image_std=std)
    with pytest.raises(InputError, match=r"model\.image_mean=\[103\.53.*model\.image_std=\[57\.375"):
        load_matching(detector(name), tmp_path / "v2", "legacy")
    convert_checkpoint(tmp_path / "dd3d.pth", tmp_path / "folded", part="backbone", input="bgr255")
    bgr = [[value / 255 for value in values] for values in (mean, std)]
    compare(tmp_path / "folded", model, bgr, "bgr")


def test_the_backbone_of_a_published_detector(tmp_path: Path) -> None:
    found = detector(SLIM)
    names = published_detector_keys(found, SLIM)
    file = renamed(found, names)
    torch.save({"model": file}, tmp_path / "frcn.pth")
    result = convert_checkpoint(tmp_path / "frcn.pth", tmp_path / "out", part="backbone")
    assert (result.name, set(result.ignored)) == (SLIM, {key for key in file if not key.startswith("backbone.body.")})
    body = started(tmp_path / "out", SLIM).backbone.body.state_dict()
    for key, value in found.backbone.body.state_dict().items():
        assert torch.equal(body[key], value), key


def test_a_published_detector_has_its_input(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = build_detector(ModelRecipe(backbone=SLIM, conventions="legacy", num_classes=2), download=False)
    shapes = {key: value.shape for key, value in renamed(model, published_detector_keys(model, SLIM)).items()}
    torch.save({key: torch.full((1,), 2.0**-10).expand(shape) for key, shape in shapes.items()}, tmp_path / "frcn.pth")
    with pytest.raises(InputError, match=r"holds a detector.*--part backbone"):
        convert_checkpoint(tmp_path / "frcn.pth", tmp_path / "out", input="bgr255")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "backbone", "settings"),
    [
        ("faster_rcnn_V_39_FPN_1x", "vovnet39", []),
        ("faster_rcnn_R_50_FPN_1x", "resnet50", ["model.stride_in_1x1=false"]),
    ],
)
def test_a_published_schedule_trains_from_a_live_file(
    recipe: str, backbone: str, settings: list[str], tmp_path: Path
) -> None:
    model = network(backbone)
    with torch.no_grad():
        for module in model.modules():
            module.momentum = None  # norms average what they see
        model.train()(torch.rand(4, 3, 128, 128))
    path = tmp_path / "file.pth"
    torch.save(renamed(model, pytorchcv_keys(model)) if backbone == "vovnet39" else model.state_dict(), path)
    path = zipped(path) if backbone == "vovnet39" else path
    convert_checkpoint(path, tmp_path / "start", input="bgr255")
    small = ["data.train_min_sizes=[64]", "data.train_max_size=64", "model.min_size=64", "model.max_size=64"]
    short = ["solver.batch_size=2", "solver.max_iterations=2", "solver.steps=[]", "data.workers=0", "log.log_every=1"]
    init = f"init={tmp_path / 'start'}"
    ready = load_recipe(recipe, ["data.train=[]", "data.val=[]", init, *settings, *small, *short])
    train(ready, tmp_path / "run", train_dataset=Squares())
    losses = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    trained: Any = load_detector(tmp_path / "run")
    assert trained.recipe.stride_in_1x1 is (False if settings else None)
    first = trained.backbone.body.get_submodule("stem_0.bn" if backbone == "vovnet39" else "bn1")
    assert first.eps == 0  # and the epsilon is in the variance
    torch.testing.assert_close(
        first.running_var, model.get_submodule("stem.0.bn" if backbone == "vovnet39" else "bn1").running_var + 1e-5
    )


def test_an_option_that_there_is_not(tmp_path: Path) -> None:
    model = network(SLIM)
    torch.save(renamed(model, published_keys(model)), tmp_path / "f.pth")
    for options in ({"input": "rgb256"}, {"part": "head"}):
        with pytest.raises(InputError, match=f"--{next(iter(options))} "):
            convert_checkpoint(tmp_path / "f.pth", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_configuration_of_another_network_is_refused(tmp_path: Path) -> None:
    """timm's vovnet39a has the keys and shapes of vovnet39, and computes something else."""
    model = timm.create_model("vovnet39a", num_classes=0)
    save_for_hf(model, str(tmp_path / "timm"), safe_serialization=True)
    with pytest.raises(InputError, match=r"vovnet39a.*vovnet39"):
        convert_checkpoint(tmp_path / "timm", tmp_path / "out", input="bgr255")


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("model_args", {"act_layer": "silu"}, "act_layer"),
        ("model_args", {"output_stride": 8}, "output_stride"),
        ("stride_in_1x1", "maybe", "stride_in_1x1"),
        ("preprocessing", {"channel_order": "bgr"}, "preprocessing"),
        ("pretrained_cfg", {"mean": [0.5], "std": [0.5]}, "mean"),
        ("pretrained_cfg", {"std": [0.5, 0.5, 0.0]}, "std"),
        ("pretrained_cfg", {"notes": ["the detection backbones take BGR pixels in 0..255"]}, "published file again"),
    ],
)
def test_a_configuration_that_says_something_else_is_refused(key: str, value: Any, named: str, tmp_path: Path) -> None:
    """An argument can change what the same tensors compute."""
    save_for_hf(timm.create_model(SLIM, num_classes=3), str(tmp_path / "timm"), safe_serialization=True)
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    (tmp_path / "timm" / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(InputError, match=named) as caught:
        convert_checkpoint(tmp_path / "timm", tmp_path / "out", input="bgr255")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_classifier_with_another_pooling_is_refused_and_its_backbone_is_not(tmp_path: Path) -> None:
    """The folder would be written with timm's mean, and the same tensors give other logits."""
    save_for_hf(
        timm.create_model(SLIM, num_classes=3, global_pool="max"), str(tmp_path / "timm"), safe_serialization=True
    )
    with pytest.raises(InputError, match="global_pool"):
        convert_checkpoint(tmp_path / "timm", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert convert_checkpoint(tmp_path / "timm", tmp_path / "start", input="bgr255").name == SLIM
    file = read_weights_file(tmp_path / "timm")
    assert described_by(infer_network(shapes_of(file.tensors), "backbone"), file).name == SLIM


def test_strange_entries_of_a_configuration_are_not_kept(tmp_path: Path) -> None:
    save_for_hf(timm.create_model(SLIM, num_classes=3), str(tmp_path / "timm"), safe_serialization=True)
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    strange = {
        "crop_pct": {"a": 1},
        "tag": [1],
        "pool_size": "x",
        "license": "a\nb",
        "paper_ids": 3,
        "notes": "/root/x",
    }
    config["pretrained_cfg"] |= strange
    (tmp_path / "timm" / "config.json").write_text(json.dumps(config))
    convert_checkpoint(tmp_path / "timm", tmp_path / "out", input="bgr255")
    written = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
    assert written["license"] == "not-stated"
    assert not any(written.get(key) == value for key, value in strange.items())


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = network("ese_vovnet19b_slim_dw", num_classes=0)
    torch.save({"model": dd3d(model)}, tmp_path / "dd3d.pth")
    command = ["vovnet", "convert", str(tmp_path / "dd3d.pth"), str(tmp_path / "out"), "--part", "backbone"]
    monkeypatch.setattr(sys, "argv", [*command, "--input", "bgr255"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "VoVNetV2-19-slim-dw" in printed
    assert "takes BGR images in 0..255 less (102.9801, 115.9465, 122.7717)" in printed
    assert len(printed.splitlines()) < 25
