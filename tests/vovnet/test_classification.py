"""Classifying images: the preprocessing is the model's own, and names and errors help."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn
from torch.nn import functional as F

import vovnet
from vovnet.classification import classify, classify_files, load_classifier
from vovnet.errors import InputError

assert vovnet.VoVNet  # the import registers the names


def make_image(seed: int, size: tuple[int, int] = (320, 240), mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vovnet27_slim", num_classes=7).eval()


def save(model: nn.Module, folder: Path, **config: Any) -> Path:
    save_for_hf(model, str(folder), model_config=config or None, safe_serialization=True)
    return folder


def test_scores_are_those_of_torchvisions_preprocessing(model: nn.Module) -> None:
    """Resize the short side to 256, crop 224 from the middle, scale to [0, 1], normalise: written out here."""
    image = make_image(1)
    resized = image.resize((341, 256), Image.Resampling.BILINEAR)
    left, upper = round((341 - 224) / 2), 16
    pixels = np.asarray(resized.crop((left, upper, left + 224, upper + 224)), dtype=np.float32) / 255
    pixels = (pixels - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    with torch.inference_mode():
        expected = F.softmax(model(torch.from_numpy(pixels).permute(2, 0, 1)[None]), dim=1)[0]
    (result,) = classify(model, [image], top=7)
    assert [r["index"] for r in result] == expected.argsort(descending=True).tolist()
    assert [r["score"] for r in result] == pytest.approx(expected.sort(descending=True).values.tolist(), abs=1e-5)


def test_each_image_has_its_own_likeliest_classes(model: nn.Module) -> None:
    images = [make_image(i, size) for i, size in enumerate([(320, 240), (50, 400), (1, 1)])]
    results = classify(model, images, top=2)
    assert [len(r) for r in results] == [2, 2, 2]
    for image, result in zip(images, results, strict=True):
        alone = classify(model, [image], top=2)[0]
        assert [r["index"] for r in alone] == [r["index"] for r in result]
        assert result[0]["score"] >= result[1]["score"]
        assert result[0]["label"] == str(result[0]["index"])
    assert classify(model, []) == []


def test_top_ends_at_the_number_of_classes(model: nn.Module) -> None:
    (result,) = classify(model, [make_image(1)], top=100)
    assert len(result) == 7
    assert sum(r["score"] for r in result) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "LA", "1"])
def test_images_of_any_mode(model: nn.Module, mode: str) -> None:
    assert len(classify(model, [make_image(1, mode=mode)])[0]) == 5


def test_an_opened_image_gives_the_answer_of_its_file(model: nn.Module, tmp_path: Path) -> None:
    """Orientation and 16 bits are read alike by both entrances, as detectors read them."""
    turned, deep = tmp_path / "turned.jpg", tmp_path / "deep.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to see it upright
    make_image(2).save(turned, exif=exif)
    Image.fromarray(np.random.default_rng(3).integers(0, 2**16, (240, 320), dtype=np.uint16)).save(deep)
    for path in (turned, deep):
        ((_, from_file),) = classify_files(model, [path])
        with Image.open(path) as image:
            assert classify(model, [image], top=5)[0] == from_file
            pixels = Image.fromarray(np.asarray(image.convert("RGB")))
        assert classify(model, [pixels], top=5)[0] != from_file


def test_a_grey_model_sees_grey() -> None:
    grey = timm.create_model("vovnet27_slim", in_chans=1, num_classes=3)
    assert len(classify(grey, [make_image(1)])[0]) == 3
    with pytest.raises(InputError, match="4 channels"):
        classify(timm.create_model("vovnet27_slim", in_chans=4, num_classes=3), [make_image(1)])


def test_names_given_by_the_caller(model: nn.Module) -> None:
    names = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]
    (result,) = classify(model, [make_image(1)], class_names=names)
    assert all(r["label"] == names[r["index"]] for r in result)
    with pytest.raises(InputError, match="class_names has 2 names and the model has 7 classes"):
        classify(model, [make_image(1)], class_names=["a", "b"])


def test_imagenet_names() -> None:
    imagenet = timm.create_model("vovnet27_slim")
    with torch.no_grad():
        imagenet.head.fc.bias[24] = 50.0
    (result,) = classify(imagenet, [make_image(1)])
    assert result[0]["index"] == 24
    assert result[0]["label"].startswith("great grey owl")


@pytest.mark.parametrize("top", [0, -1, 2.5, True, "5"])
def test_a_wrong_top_is_named(model: nn.Module, top: Any) -> None:
    with pytest.raises(InputError, match="top="):
        classify(model, [make_image(1)], top=top)


def test_what_is_no_image_is_named(model: nn.Module) -> None:
    with pytest.raises(InputError, match=r"images\[1\] is a str"):
        classify(model, [make_image(1), "cat.png"])  # type: ignore[list-item]


# --- loading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_folder_that_timm_wrote(model: nn.Module, tmp_path: Path, prefix: str) -> None:
    folder = save(model, tmp_path / "owls", label_names=list("abcdefg"))
    loaded = load_classifier(f"{prefix}{folder}")
    assert isinstance(loaded, vovnet.VoVNet)
    assert not loaded.training
    expected = classify(model, [make_image(1)], class_names=list("abcdefg"))
    assert classify(loaded, [make_image(1)]) == expected
    assert classify(load_classifier(folder), [make_image(1)]) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vovnet93", "no timm model and no folder is called 'vovnet93': did you mean .*vovnet39"),
        ("resnet5O", "did you mean .*resnet50"),
        ("???", "timm.list_models"),
        ("ese_vovnet19b", "no published weights"),
        ("vovnet39.imagenet", "'vovnet39' has no weights called 'imagenet': expected one of in1k, osmr_in1k"),
        ("./no/such/folder", "no folder './no/such/folder'"),
        ("/no/such", "no folder '/no/such'"),
        ("local-dir:/no/such", "no folder '/no/such'"),
    ],
)
def test_a_wrong_name(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        load_classifier(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "has no config.json"),
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object, got list"),
        ("{}", "names no timm 'architecture'"),
        ('{"format": "vovnet-detector", "format_version": 1}', "holds a detector"),
        ('{"architecture": "vovnet93"}', "vovnet93"),
        (
            '{"architecture": "vovnet27_slim", "pretrained_cfg": {}, "model_args": {"outptu_stride": 8}}',
            "outptu_stride",
        ),
    ],
)
def test_a_wrong_folder(tmp_path: Path, config: str | None, message: str) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=message) as error:
        load_classifier(tmp_path)
    assert "\n" not in str(error.value)


def test_weights_that_are_missing_truncated_or_another_models(model: nn.Module, tmp_path: Path) -> None:
    folder = save(model, tmp_path / "m")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"not safetensors at all"):
        weights.write_bytes(broken)
        with pytest.raises(InputError, match=r"model\.safetensors: truncated, damaged"):
            load_classifier(folder)
    weights.unlink()
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        load_classifier(folder)
    weights.write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    config["architecture"] = "vovnet39"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="weights of another model"):
        load_classifier(folder)


def test_a_model_without_classes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="num_classes is 0"):
        load_classifier(save(timm.create_model("vovnet27_slim", num_classes=0), tmp_path / "m"))


def test_names_that_timm_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def unreachable(name: str, **kwargs: Any) -> nn.Module:
        asked.append(name)
        raise OSError("we are offline\nand will stay so")

    monkeypatch.setattr(timm, "create_model", unreachable)
    for name in ("vovnet39", "vovnet39.in1k"):
        with pytest.raises(InputError, match="we are offline and will stay so"):
            load_classifier(name)
    assert asked == ["vovnet39", "vovnet39.in1k"]
