"""Images that are there twice are found, also smaller, recompressed or brighter; different images are not."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageEnhance

from vovnet.detection.data.duplicates import Fingerprint, find_twins, fingerprint


def scene(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """An image with large and small structure, as photographs have."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    fine = random.integers(-12, 13, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + fine).clip(0, 255).astype(np.uint8))


def variants(image: Image.Image) -> dict[str, Image.Image]:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=60)
    return {
        "smaller": image.resize((image.width // 2, image.height // 2)),
        "recompressed": Image.open(file).convert("RGB"),
        "brighter": ImageEnhance.Brightness(image).enhance(1.1),
    }


def prints(split: str, images: dict[str, Image.Image]) -> list[Fingerprint]:
    return [fingerprint(image, split, name) for name, image in images.items()]


def test_variants_in_another_split_are_found_and_others_are_not() -> None:
    train = prints("train", {f"t{seed}": scene(seed) for seed in range(12)})
    val = prints("val", {**variants(scene(3)), "same": scene(5), **{f"v{seed}": scene(seed) for seed in range(50, 60)}})
    found = {(one.first.name, one.second.name): one for one in find_twins([*train, *val]) if one.across}
    assert found.keys() == {("t3", "smaller"), ("t3", "recompressed"), ("t3", "brighter"), ("t5", "same")}
    assert [pair for pair, one in found.items() if one.exact] == [("t5", "same")]


def test_each_repeated_image_is_named_once() -> None:
    images = prints("train", {name: scene(1) for name in "abc"}) + prints("val", {"d": scene(1)})
    found = [(one.first.name, one.second.name, one.across) for one in find_twins(images)]
    assert found == [("a", "d", True), ("a", "b", False), ("a", "c", False)]


def test_images_without_detail_are_the_same_only_pixel_by_pixel() -> None:
    flat = {str(grey): Image.new("RGB", (50, 50), (grey, grey, grey)) for grey in range(5)}
    assert find_twins(prints("train", flat)) == []
    assert [one.exact for one in find_twins(prints("train", flat) + prints("val", flat))] == [True] * 5


def test_a_crowd_of_equal_hashes_takes_no_time_but_is_found_by_pixels() -> None:
    alike = [Fingerprint("train", str(number), number.to_bytes(4, "big"), (1 << 128) - 1) for number in range(3000)]
    assert find_twins(alike) == []
    assert len(find_twins([*alike, alike[7]])) == 1
