"""The same image gives the same pixels as a file, a Pillow image, an array and a tensor."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vovnet.detection.data.pixels import as_bytes, to_pixels
from vovnet.errors import InputError
from vovnet.images.reading import read_image
from vovnet.images.tensors import to_tensor

RGBA = np.random.default_rng(0).integers(0, 256, (6, 9, 4), dtype=np.uint8)
MODES = ["1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "I;16", "LAB", "HSV", "La", "RGBa", "RGBX"]


def pillow(mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(RGBA[..., 0].astype(np.uint16) * 257)
    image = Image.fromarray(RGBA, "RGBA")
    if mode in ("La", "RGBa"):
        return image.convert("LA" if mode == "La" else "RGBA").convert(mode)
    return image.convert("LA").convert(mode) if mode == "PA" else image.convert("RGB").convert(mode)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_files_and_pillow_images(tmp_path: Path, mode: str, channels: int) -> None:
    image = pillow(mode)
    expected = to_pixels(image, channels, "image")
    assert expected.dtype == torch.uint8
    assert expected.shape == (channels, 6, 9)
    if mode in ("HSV", "La", "RGBa", "RGBX", "PA", "YCbCr"):  # no lossless file holds them in every Pillow
        return
    path = tmp_path / ("a.png" if mode in ("1", "L", "P", "RGB", "RGBA", "LA", "I;16") else "a.tif")
    image.save(path)
    for same in (str(path), path, os.fsencode(path), io.BytesIO(path.read_bytes()), Image.open(path)):
        assert torch.equal(to_pixels(same, channels, "image"), expected)
    with path.open("rb") as file:
        assert torch.equal(to_pixels(file, channels, "image"), expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("given_channels", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "bool", "float32", "float64", ">u2", "bfloat16", "float16"])
def test_arrays_and_tensors_are_what_their_file_is(kind: str, given_channels: int, channels: int) -> None:
    """0 channels stand for (H, W)."""
    pixels = RGBA[..., :given_channels] if given_channels else RGBA[..., 0]
    if kind == "bool":
        pixels = (pixels > 127).astype(np.uint8) * 255
    mode = {0: "L", 1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[given_channels]
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if given_channels == 1 else pixels, mode).save(file, "PNG")
    expected = to_tensor(read_image(io.BytesIO(file.getvalue()), channels))
    given = {
        "uint8": lambda: pixels,
        "uint16": lambda: pixels.astype(np.uint16) * 256 + 77,
        ">u2": lambda: (pixels.astype(np.uint16) * 256 + 77).astype(">u2"),
        "bool": lambda: pixels > 127,
    }.get(kind, lambda: pixels / (np.float32(255) if kind == "float32" else 255))()
    tensor = torch.from_numpy(np.array(given, dtype=given.dtype.newbyteorder("=")))
    tensor = tensor if given_channels == 0 else tensor.permute(2, 0, 1)
    both: list[Any] = [given, np.asfortranarray(given), tensor, tensor.requires_grad_(tensor.is_floating_point())]
    if "float" in kind:
        both = [tensor.to(getattr(torch, kind))] if kind.endswith("16") else both
    for one in both:
        found = to_pixels(one, channels, "image")
        if found.is_floating_point():
            assert found.dtype == torch.float32
            tolerance = {"float16": 0.001, "bfloat16": 0.005}.get(kind, 0.51 / 255)  # the file's grey is rounded
            assert (found - expected.float() / 255).abs().max() < tolerance + (0.51 / 255 if channels == 1 else 0)
            if channels == 3 and not kind.endswith("16"):
                assert torch.equal(as_bytes(found), expected)
        else:
            assert torch.equal(found, expected)


def test_strides_and_memory() -> None:
    for view in (RGBA[::-1, :, :3], RGBA[:, ::-2, :3], RGBA.transpose(1, 0, 2)[..., :3]):
        frozen = view.copy()
        frozen.setflags(write=False)
        assert np.array_equal(to_pixels(view, 3, "image").permute(1, 2, 0).numpy(), view)
        assert np.array_equal(to_pixels(frozen, 3, "image").permute(1, 2, 0).numpy(), view)


def test_other_numbers_of_channels() -> None:
    deep = torch.rand(7, 5, 6)
    assert torch.equal(to_pixels(deep, 7, "image"), deep)
    assert torch.equal(to_pixels(deep, None, "image"), deep)
    with pytest.raises(InputError, match="7 channels"):
        to_pixels(Image.new("L", (3, 3)), 7, "image")


WRONG = [
    None, 5, object(), [[1, 2], [3, 4]], "no-such-file.png", b"no-such-file.png", b"\x89PNG\0", np.zeros(3),
    np.zeros(()), np.zeros((2, 2, 2, 2)), np.zeros((4, 4, 5)), np.zeros((4, 4, 3), dtype=np.int64),
    np.zeros((4, 4), dtype=np.complex64), np.zeros((4, 4), dtype="U3"), np.zeros((4, 4), dtype=object),
    np.full((4, 4), 1.5), np.full((4, 4), -0.1),
    np.full((4, 4), np.nan), np.zeros((0, 4, 3)), torch.zeros(3), torch.zeros(1, 3, 4, 4), torch.full((3, 4, 4), 255.0),
    torch.zeros(3, 4, 4, dtype=torch.int8), torch.zeros(3, 4, 4, device="meta"), torch.zeros(3, 4, 4).to_sparse(),
    torch.full((3, 4, 4), float("inf")), torch.zeros(5, 4, 4), Image.new("F", (4, 4)), Image.new("I", (4, 4)),
    io.BytesIO(b"no image"), io.BytesIO(),
]  # fmt: skip


@pytest.mark.parametrize("image", WRONG)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_refused(image: Any, channels: int) -> None:
    with pytest.raises(InputError):
        to_pixels(image, channels, "photo")


@given(
    st.sampled_from([np.uint8, np.int8, np.uint16, np.int32, np.float16, np.float32, np.float64, bool, np.complex64]),
    st.lists(st.integers(0, 5), max_size=4),
    st.sampled_from([1, 3]),
    st.booleans(),
)
def test_any_array(dtype: Any, shape: list[int], channels: int, as_tensor: bool) -> None:
    """It is refused in one line, or has the form that a detector takes."""
    array = np.random.default_rng(0).random(shape).astype(dtype)
    try:
        found = to_pixels(torch.from_numpy(np.array(array)) if as_tensor else array, channels, "image")
    except InputError:
        return
    assert found.dtype in (torch.uint8, torch.float32)
    assert found.shape[0] == channels
    assert min(found.shape) > 0
