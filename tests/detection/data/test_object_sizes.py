"""The sizes of objects, before and after a detector's resize."""

import numpy as np
import pytest
from PIL import Image

from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.data.object_sizes import sizes_of, sizes_of_truth
from vovnet.files import write_json
from vovnet.results.limits import resize_factor

TRUTH = {
    "images": [
        {"id": 7, "width": 400, "height": 200, "file_name": "a.png"},
        {"id": 9, "width": 100, "height": 100, "file_name": "b.png"},
    ],
    "annotations": [
        {"id": number, "image_id": image, "category_id": 1, "bbox": [0, 0, *size]}
        for number, (image, size) in enumerate([(7, (20, 20)), (7, (8, 32)), (9, (10, 10))], 1)
    ],
    "categories": [{"id": 1, "name": "cell"}],
}


def test_sizes_of_a_coco_dictionary_and_its_dataset_agree(tmp_path):
    for image in TRUTH["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(tmp_path / image["file_name"])
    write_json(tmp_path / "a.json", TRUTH)
    datasets = [
        CocoDataset([DataSource(str(tmp_path), str(tmp_path / "a.json"))], masks=False, training=training)
        for training in (True, False)
    ]
    for sizes in (sizes_of_truth(TRUTH), *map(sizes_of, datasets)):
        assert sorted(sizes.sides) == [10, 16, 20]
        assert (sizes.median, sizes.most, sizes.counts.tolist()) == (16, 2, [2, 1])
        assert sizes.resized_median(100, 200) == 10  # 10 and 8 in the halved image, 10 in the other
    assert sizes_of(object()) is None
    assert sizes_of_truth({**TRUTH, "annotations": []}) is None
    assert sizes_of_truth({**TRUTH, "images": [{"id": 7}, {"id": 9}]}) is None, "sizes are optional for boxes"


@pytest.mark.parametrize("shape", [(30, 50), (1000, 3000), (7, 7)])
def test_the_factor_is_torchvisions(shape):
    import torch
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    transform = GeneralizedRCNNTransform(80, 133, [0.0] * 3, [1.0] * 3).eval()
    image, _ = transform.resize(torch.zeros(3, *shape), None)
    (factor,) = resize_factor([shape], 80, 133)
    assert np.abs(np.array(image.shape[1:]) - np.array(shape) * factor).max() <= 1
