"""Images of many channels: every form of the same pixels is the same image, and faults are one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vovnet.images.arrays import array_shape, read_array, viewable
from vovnet.images.channels import many_channels, read_pixels
from vovnet.images.faults import ImageSizeError, TooManyPixels, UnreadableImage
from vovnet.images.reading import image_suffixes, read_image, upright_size

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 20, 30), dtype=np.uint8)


def saved(path: Path, array: np.ndarray) -> str:  # type: ignore[type-arg]
    np.save(path, array, allow_pickle=True)
    return str(path)


@pytest.mark.parametrize("last", [False, True], ids=["C, H, W", "H, W, C"])
def test_both_orders_of_an_array_are_the_same_image(last: bool, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npy", PIXELS.transpose(1, 2, 0) if last else PIXELS)
    assert (read_array(path, 5) == PIXELS).all()
    assert (array_shape(path), upright_size(path), many_channels(path)) == ((5, 20, 30), (30, 20), 5)
    assert read_array(path, 5, (30, 20)).dtype == np.uint8


def test_sixteen_bits_keep_all_of_them(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 65536, (4, 6, 8), dtype=np.uint16)
    found = read_array(saved(tmp_path / "a.npy", values), 4)
    assert found.dtype == np.float32
    assert (np.round(found.astype(np.float64) * 65535) == values).all()


def test_grey_and_colour_arrays_are_images_like_others(tmp_path: Path) -> None:
    colour = PIXELS[:3].transpose(1, 2, 0)
    Image.fromarray(colour).save(tmp_path / "a.png")
    for channels in (1, 3):
        expected = np.asarray(read_image(tmp_path / "a.png", channels))
        for number, array in enumerate((colour, colour.transpose(2, 0, 1), colour.astype(np.uint16) * 257)):
            path = saved(tmp_path / f"{number}.npy", array)
            assert (np.asarray(read_image(path, channels)) == expected).all()
            assert many_channels(path) is None
    flag = saved(tmp_path / "flag.npy", PIXELS[0] > 127)
    assert set(np.unique(np.asarray(read_image(flag, 1)))) == {0, 255}
    assert ".npy" in image_suffixes()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiff_files_of_many_channels(dtype: type, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="the package tifffile is an extra (tiff)")
    values = PIXELS.astype(dtype) * (257 if dtype is np.uint16 else 1)
    values = values / np.float32(255) if dtype is np.float32 else values
    pages, planes = tmp_path / "pages.tif", tmp_path / "one.tiff"
    tifffile.imwrite(pages, values, photometric="minisblack")
    tifffile.imwrite(planes, values.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig")
    for path in (pages, planes):
        found = read_array(path, 5)
        assert found.shape == (5, 20, 30)
        assert np.abs(found / (255 if dtype is np.uint8 else 1) - PIXELS / 255).max() < 1e-6
        assert upright_size(path) == (30, 20)
    assert many_channels(str(planes)) == 5


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 5, 20, 30), np.uint8), "shape"),
        (np.zeros(7, np.uint8), "shape"),
        (np.zeros((0, 5, 5), np.uint8), "shape"),
        (np.zeros((7, 20, 30), np.uint8), "5 channels"),
        (np.zeros((20, 30), np.uint8), "5 channels"),
        (np.zeros((5, 20, 30), np.int32), "int32"),
        (np.zeros((5, 20, 30), np.complex64), "complex64"),
        (np.full((5, 20, 30), 1.5, np.float32), "0..1"),
        (np.full((5, 20, 30), np.nan, np.float32), "0..1"),
        (np.full((5, 20, 30), None), "cannot be read"),
    ],
)
def test_arrays_that_are_no_images_are_one_line(array: np.ndarray, words: str, tmp_path: Path) -> None:  # type: ignore[type-arg]
    with pytest.raises(UnreadableImage, match=words) as error:
        read_array(saved(tmp_path / "a.npy", array), 5)
    assert "\n" not in str(error.value)
    assert "a.npy" in str(error.value)


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", b"no array", b"\x93NUMPY\x01\x00\xff\xff{"])
def test_damaged_files_are_one_line(data: bytes, tmp_path: Path) -> None:
    for name in ("a.npy", "a.tif"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnreadableImage, match=name):
            read_pixels(str(tmp_path / name), 5)
    sound = Path(saved(tmp_path / "b.npy", PIXELS))
    sound.write_bytes(sound.read_bytes()[:-50])
    with pytest.raises(UnreadableImage, match=r"b\.npy"):
        read_array(sound, 5)


def test_what_is_refused_before_the_pixels_are_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npy", PIXELS)
    with pytest.raises(ImageSizeError, match="30x20"):
        read_array(path, 5, (20, 30))
    with pytest.raises(TooManyPixels, match="--max-pixels 600"):
        read_array(path, 5, max_pixels=599)
    with pytest.raises(UnreadableImage, match="in_chans=5"):
        read_image(path)
    with pytest.raises(UnreadableImage, match="no such image"):
        read_pixels(str(tmp_path / "none.npy"), 5)
    Image.new("RGB", (5, 5)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match=r"\.npy or TIFF"):
        read_pixels(str(tmp_path / "a.png"), 5)


def test_what_people_see_is_stretched() -> None:
    dark = np.zeros((5, 4, 6), np.float32)
    dark[0, 0, 0], dark[4] = 0.01, 1.0
    image = viewable(dark)
    assert (image.mode, image.size, image.getpixel((0, 0)), image.getpixel((1, 1))) == (
        "RGB",
        (6, 4),
        (255, 0, 0),
        (0, 0, 0),
    )
    assert viewable(PIXELS[:2]).mode == "L"
