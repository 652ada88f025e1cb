"""Images in and detections out, against Pillow, the reference's sizes and arithmetic done again in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vovnet.detection.legacy.transform import PIXEL_MEAN_BGR, LegacyTransform, resize_image, resized_size


def transform(min_size: int = 20, max_size: int = 60) -> LegacyTransform:
    return LegacyTransform(min_size, max_size, PIXEL_MEAN_BGR, (1.0, 1.0, 1.0)).eval()


def make_image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_sizes_equal_the_reference(units: dict[str, Any]) -> None:
    for width, height, wanted in units["resize_wh_to_hw"]:
        assert list(resized_size(height, width, 800, 1333)) == wanted


def test_a_line_of_pixels_stays_one() -> None:
    assert resized_size(2, 600, 96, 96) == (1, 300)
    assert resized_size(600, 2, 96, 96) == (300, 1)


def test_resizing_is_pillows() -> None:
    image = make_image(40, 30)
    wanted = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((15, 20), Image.Resampling.BILINEAR)
    assert np.array_equal(resize_image(image, (20, 15)).permute(1, 2, 0).numpy(), np.asarray(wanted))


def test_a_image_of_the_right_size_is_left_alone() -> None:
    image = make_image(20, 31)
    assert resize_image(image, (20, 31)) is image


def test_the_network_gets_bgr_in_bytes_less_the_mean() -> None:
    image = make_image(20, 24)
    batch, _ = transform()([image.float() / 255])
    assert batch.image_sizes == [(20, 24)]
    assert batch.tensors.shape == (1, 3, 32, 32)
    wanted = image.flip(0).double() - torch.tensor(PIXEL_MEAN_BGR, dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(batch.tensors[0, :, :20, :24].double(), wanted, atol=2e-5, rtol=0)
    assert not batch.tensors[0, :, 20:].any()
    assert not batch.tensors[0, :, :, 24:].any()


def test_every_byte_survives_the_way_through_floats() -> None:
    ramp = torch.arange(256, dtype=torch.uint8).repeat(3, 64, 1)
    image = ramp.float() / 255
    batch, _ = transform(min_size=32, max_size=400)([image])
    shrunk = resize_image(ramp, (32, 128)).flip(0).double()
    wanted = shrunk - torch.tensor(PIXEL_MEAN_BGR, dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(batch.tensors[0].double(), wanted, atol=2e-5, rtol=0)


def test_in_training_images_are_not_resized() -> None:
    batch, targets = transform().train()([make_image(50, 70).float() / 255], [{"boxes": torch.zeros(0, 4)}])
    assert batch.image_sizes == [(50, 70)]
    assert targets is not None


def test_bytes_are_refused() -> None:
    with pytest.raises(TypeError, match=r"floats in \[0, 1\]"):
        transform().train()([make_image(20, 20)])


def test_boxes_return_to_the_images_pixels_and_masks_are_pasted_there() -> None:
    found = {"boxes": torch.tensor([[4.0, 2, 11, 9]]), "masks": torch.ones(1, 1, 28, 28)}
    (result,) = transform().postprocess([found], [(20, 24)], [(40, 48)])
    assert result["boxes"].tolist() == [[8, 4, 22, 18]]
    assert result["masks"].shape == (1, 1, 40, 48)
    rows, columns = torch.where(result["masks"][0, 0] > 0.5)
    edges = [int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())]
    assert edges == pytest.approx([4, 18, 8, 22], abs=1)  # pasting truncates the enlarged box to whole pixels


def test_pasting_equals_the_reference(units: dict[str, Any]) -> None:
    found = {"boxes": units["paste.boxes"].clone(), "masks": units["paste.masks"]}
    (result,) = transform().postprocess([found], [(400, 600)], [(400, 600)])
    pasted = (result["masks"] > 0.5).numpy()
    wanted = np.unpackbits(units["paste.out_packed"].numpy())[: pasted.size].reshape(pasted.shape)
    assert np.array_equal(pasted, wanted)
