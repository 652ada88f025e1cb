"""Images of every kind are read as 8-bit RGB or grey, or refused in one line; names cannot leave the root."""

import io
import os
import subprocess
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from packaging.version import Version
from PIL import Image, ImageOps

from vovnet.errors import InputError
from vovnet.images.reading import (
    ImageSizeError,
    TooManyPixels,
    UnreadableImage,
    convert_image,
    image_suffixes,
    read_image,
    upright_size,
)
from vovnet.images.tensors import to_tensor

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_8_bit_modes(tmp_path: Path, mode: str, channels: int) -> None:
    if mode == "YCbCr" and Version(PIL.__version__) < Version("13"):
        pytest.skip("Pillow 12 cannot read the YCbCr file that it writes")
    image = Image.fromarray(RGB).convert(mode)
    path = saved(tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png"), image)
    read = read_image(path, channels)
    assert read.mode == ("RGB" if channels == 3 else "L")
    assert read.size == (9, 6)
    expected = image.convert("RGB") if mode == "CMYK" else image.convert(read.mode)
    if channels == 3:
        assert np.abs(np.asarray(read).astype(int) - np.asarray(expected.convert("RGB"))).max() <= 2


def test_transparency_is_dropped(tmp_path: Path) -> None:
    pixels = np.dstack([RGB, np.zeros((6, 9), np.uint8)])
    path = saved(tmp_path / "a.png", Image.fromarray(pixels, "RGBA"))
    np.testing.assert_array_equal(np.asarray(read_image(path)), RGB)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    deep = np.array([[0, 255, 256], [1000, 40000, 65535]], dtype=np.uint16)
    path = saved(tmp_path / f"a{suffix}", Image.fromarray(deep))
    np.testing.assert_array_equal(np.asarray(read_image(path, 1)), deep >> 8)
    np.testing.assert_array_equal(np.asarray(read_image(path))[..., 2], deep >> 8)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bits_are_refused(tmp_path: Path, dtype: type) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(np.zeros((4, 4), dtype)))
    with pytest.raises(UnreadableImage, match="32 bits"):
        read_image(path)


@pytest.mark.parametrize("size", [None, (6, 4)])
def test_an_image_that_was_read_is_not_turned_again(tmp_path: Path, size: tuple[int, int] | None) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = read_image(saved(tmp_path / "a.png", Image.new("RGB", (6, 4)), exif=exif), size=size)
    assert convert_image(image, 3, "image").size == image.size == (size or (4, 6))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotated_images(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.png", Image.fromarray(RGB), exif=exif)
    with Image.open(path) as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(np.asarray(read_image(path)), upright)
    size = (upright.shape[1], upright.shape[0])
    assert upright_size(path) == size
    np.testing.assert_array_equal(np.asarray(read_image(path, size=size)), upright)
    if size != (9, 6):  # the annotations are of the image as stored
        np.testing.assert_array_equal(np.asarray(read_image(path, size=(9, 6))), RGB)
    with pytest.raises(ImageSizeError, match="9x7"):
        read_image(path, size=(9, 7))


def test_one_pixel(tmp_path: Path) -> None:
    assert to_tensor(read_image(saved(tmp_path / "a.png", Image.new("L", (1, 1), 7)))).tolist() == [[[7]]] * 3


def test_open_files_and_tensors() -> None:
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG")
    file.seek(0)
    tensor = to_tensor(read_image(file))
    assert tensor.dtype == torch.uint8
    np.testing.assert_array_equal(tensor.permute(1, 2, 0).numpy(), RGB)
    assert to_tensor(Image.fromarray(RGB).convert("L")).shape == (1, 6, 9)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".bmp"])
def test_truncated(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"a{suffix}", Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableImage) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_image(tmp_path: Path) -> None:
    text = tmp_path / "a.jpg"
    text.write_text("not an image")
    for path, words in ((text, "not an image|kind that Pillow"), (tmp_path / "b.jpg", "no such"), (tmp_path, "folder")):
        with pytest.raises(UnreadableImage, match=words) as caught:
            read_image(path)
        assert str(path) in str(caught.value)
    text.write_bytes(b"")
    with pytest.raises(UnreadableImage):
        read_image(text)


def test_the_limit_of_pixels_is_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", Image.new("L", (64, 64)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for limit, refused in ((None, True), (4095, True), (4096, False), (10**12, False)):
        if refused:
            with pytest.raises(TooManyPixels, match=r"4096 pixels .* --max-pixels 4096"):
                read_image(path, max_pixels=limit)
        else:
            assert read_image(path, max_pixels=limit).size == (64, 64)
        assert Image.MAX_IMAGE_PIXELS == 100
    assert upright_size(path) == (64, 64)  # the header is read, nothing is decoded
    with pytest.raises(InputError, match="max_pixels"):
        read_image(path, max_pixels=0)


def test_channels_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="channels"):
        read_image(tmp_path / "a.png", channels=4)


WRITTEN = [".apng", ".bmp", ".dib", ".gif", ".ico", ".im", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".msp", ".pbm"]
WRITTEN += [".pcx", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".rgb", ".sgi", ".tga", ".tif", ".tiff", ".webp", ".xbm"]


@pytest.mark.parametrize("suffix", [*WRITTEN, ".avif", ".dds", ".mpo"])
def test_every_suffix_is_read(tmp_path: Path, suffix: str) -> None:
    """What Pillow writes and decodes without help is an image."""
    mode = {".msp": "1", ".xbm": "1", ".pbm": "1", ".pgm": "L"}.get(suffix, "RGB")
    if suffix not in Image.registered_extensions():
        pytest.skip(f"this Pillow has no {suffix}")
    path = saved(tmp_path / f"a{suffix}", Image.new(mode, (64, 64), "white"))
    assert suffix in image_suffixes()
    assert read_image(path).size == upright_size(path) == (64, 64)
    assert np.asarray(read_image(path)).min() > 250


def test_an_animation_is_its_first_image(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    for suffix in (".gif", ".apng", ".webp", ".tif"):
        path = tmp_path / f"a{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        assert np.asarray(read_image(path))[4, 4].tolist() == [255, 0, 0], suffix


@pytest.mark.parametrize("kind", ["EPS", "WMF", "PDF", "GRIB", "HDF5", "BUFR", "MPEG", "IPTC"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".eps"])
def test_no_other_program_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, suffix: str) -> None:
    """What counts is the content: a file called .png may be PostScript."""
    path = tmp_path / f"a{suffix}"
    content = {
        "WMF": b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(100),
        "GRIB": b"GRIB\x00\x00\x00\x01" + bytes(100),
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "BUFR": b"BUFR" + bytes(100),
        "MPEG": b"\x00\x00\x01\xb3" + bytes(100),
        "IPTC": b"\x1c\x03\x3c\x00\x02" + bytes(100),
    }
    if kind in content:
        path.write_bytes(content[kind])
    else:
        with path.open("wb") as file:
            Image.new("RGB", (8, 8)).save(file, kind)

    def start(*arguments: object, **options: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", start)
    for source in (path, io.BytesIO(path.read_bytes())):
        with pytest.raises(UnreadableImage, match=r"not an image of a kind|is not read") as caught:
            read_image(source)
        assert len(str(caught.value).splitlines()) == 1
    assert not {".eps", ".ps", ".wmf", ".emf", ".pdf", ".h5", ".mpg"} & image_suffixes()


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
def test_a_pillow_without_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    plugin = pytest.importorskip(f"PIL.{'Avif' if kind == 'AVIF' else 'WebP'}ImagePlugin")  # Pillow 10 has no AVIF
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path, kind)
    monkeypatch.setattr(plugin, "SUPPORTED", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UnreadableImage, match=f"built without {kind}"):
            read_image(path)


def test_a_decoder_that_pillow_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.jp2", Image.new("RGB", (8, 8)))
    monkeypatch.delattr(Image.core, "jpeg2k_decoder")
    with pytest.raises(UnreadableImage, match="built without"):
        read_image(path)


@pytest.mark.parametrize("kind", [str, os.fsencode, Path, open, lambda path: io.BytesIO(path.read_bytes())])
def test_every_way_to_name_a_file(tmp_path: Path, kind: Any) -> None:
    path = saved(tmp_path / "ü.png", Image.fromarray(RGB))
    np.testing.assert_array_equal(np.asarray(read_image(path.open("rb") if kind is open else kind(path))), RGB)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.symlink(tmp_path / "loop.png", tmp_path / "loop.png")
    os.symlink(tmp_path / "none", tmp_path / "dangling.png")
    os.mkfifo(tmp_path / "pipe.png")
    for name, words in (("loop", "leads to itself"), ("dangling", "does not exist"), ("pipe", "a pipe")):
        with pytest.raises(UnreadableImage, match=words):
            read_image(tmp_path / f"{name}.png")
