"""The least dataset that follows the protocol, and transforms that take little time."""

from typing import Any

import torch

from vovnet.detection.config.data import DataRecipe


def quick_recipe(**fields: Any) -> DataRecipe:
    """Return the data part of a recipe with small images, loaded in this process unless ``workers`` is given."""
    return DataRecipe(**{"train_min_sizes": [40, 50, 60], "train_max_size": 90, "colour": 0.5, "workers": 0, **fields})


class MinimalDataset:
    """The least that follows the protocol."""

    categories = ({"id": 3, "name": "thing"},)

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        target = {"boxes": torch.tensor([[1.0, 2, 30, 40]]), "labels": torch.tensor([1]), "image_id": 10 + index}
        return torch.zeros(3, 50, 60, dtype=torch.uint8), target
