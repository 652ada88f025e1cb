"""Images of every kind are read as 8-bit RGB or grey, or refused in one line; names cannot leave the root."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from vovnet.detection.data.images import (
    ImageFolder,
    ImageSizeError,
    OutsideRoot,
    UnreadableImage,
    list_images,
    read_image,
    resolve_inside,
    to_tensor,
    upright_size,
)
from vovnet.errors import InputError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_8_bit_modes(tmp_path: Path, mode: str, channels: int) -> None:
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


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", Image.new("L", (64, 64)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImage, match="decompression bomb"):
        read_image(path)


def test_channels_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="channels"):
        read_image(tmp_path / "a.png", channels=4)


def test_list_images(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", ".hidden.png", "c.txt"):
        (tmp_path / name).touch()
    (tmp_path / "d.png").mkdir()
    assert list_images(tmp_path) == [tmp_path / "a.png", tmp_path / "b.JPG"]
    with pytest.raises(InputError, match="no images"):
        list_images(tmp_path / "d.png")
    for wrong in (tmp_path / "none", tmp_path / "c.txt"):
        with pytest.raises(InputError, match="cannot be listed"):
            list_images(wrong)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    inside, outside = tmp_path / "root", tmp_path / "outside"
    (inside / "sub").mkdir(parents=True)
    outside.mkdir()
    for file in (inside / "a.png", inside / "sub" / "b.png", outside / "c.png"):
        file.touch()
    os.symlink(outside / "c.png", inside / "out.png")
    os.symlink(outside, inside / "away")
    os.symlink(inside / "a.png", inside / "in.png")
    os.symlink(inside / "nowhere.png", inside / "dangling.png")
    return inside


@pytest.mark.parametrize(
    "name", ["../outside/c.png", "/etc/passwd", "out.png", "away/c.png", "sub/../../x", "a\0b", "sub/.."]
)
def test_names_cannot_leave_the_root(root: Path, name: str) -> None:
    with pytest.raises(OutsideRoot):
        resolve_inside(root, name)
    with pytest.raises(OutsideRoot):
        ImageFolder(root).find(name)


def test_names_inside_are_found(root: Path) -> None:
    folder = ImageFolder(root)
    for name in ("a.png", "./a.png", "sub/b.png", "in.png", "sub//b.png"):
        path = folder.find(name)
        assert path is not None
        assert Path(path).is_file()
        assert resolve_inside(root, name) == Path(os.path.realpath(path)) or name == "in.png"
    for name in ("none.png", "sub/none.png", "no/none.png", "dangling.png", "sub", "", ".", "a.png/x"):
        assert folder.find(name) is None
    assert resolve_inside(root, "none.png") == root / "none.png"


def test_a_root_that_is_a_link(root: Path, tmp_path: Path) -> None:
    os.symlink(root, tmp_path / "link")
    assert ImageFolder(tmp_path / "link").find("a.png") == str(root / "a.png")


def test_a_root_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for wrong, words in (("none", "no such folder"), ("file", "not a folder")):
        with pytest.raises(InputError, match=words):
            ImageFolder(tmp_path / wrong)
