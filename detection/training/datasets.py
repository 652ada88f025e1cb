"""The training and validation data of a run: those of the recipe, or the caller's own."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from vovnet.detection.config.detectors import DETECTORS
from vovnet.detection.config.schema import Recipe
from vovnet.detection.data.channel_statistics import ChannelStatistics, spread_positions
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.data.datasets import checked
from vovnet.detection.data.protocol import DetectionDataset
from vovnet.detection.data.user_transforms import Transforms, VariedDataset, check_transforms
from vovnet.detection.training.rules import TrainingRules
from vovnet.errors import InputError
from vovnet.terminal.streams import say_once


def datasets_of(
    recipe: Recipe, rules: TrainingRules, train_dataset: DetectionDataset | None, val_dataset: DetectionDataset | None
) -> tuple[DetectionDataset, DetectionDataset | None]:
    """Return the data for training and validation; those that the caller does not give are read from the files.

    Raises:
        InputError: there is no training data, or a dataset cannot be used.
    """
    facts = DETECTORS[recipe.model.detector]
    masks, keypoints = facts.needs_masks, facts.needs_keypoints
    data, channels = recipe.data, recipe.model.in_chans
    if train_dataset is not None:
        train_dataset = checked(
            train_dataset, "train_dataset", channels=channels, needs_masks=masks, needs_keypoints=keypoints
        )
    if val_dataset is not None:
        val_dataset = checked(val_dataset, "val_dataset", channels=channels)
    if train_dataset is None:
        if not data.train:
            raise InputError(
                "data.train: no training data; give it as data.train=[{images: FOLDER, annotations: FILE.json}]"
            )
        train_dataset = rules.dataset_class(
            data.train,
            masks=masks,
            training=True,
            keep_empty=data.keep_empty,
            channels=channels,
            max_pixels=data.max_pixels,
            keypoints=keypoints,
            min_keypoints=data.min_keypoints,
        )
    if val_dataset is None and data.val:
        val_dataset = CocoDataset(
            data.val,
            masks=masks,
            training=False,
            channels=channels,
            max_pixels=data.max_pixels,
            keypoints=keypoints,
            categories=train_dataset.categories,
        )
    if len(train_dataset) == 0:
        raise InputError("data.train: the dataset has no usable images; run `vovnet check-data` on it")
    return train_dataset, val_dataset


def with_crops(recipe: Recipe, dataset: DetectionDataset) -> DetectionDataset:
    """Return the training data as crops if the recipe has ``data.crop``."""
    if recipe.data.crop is None:
        return dataset
    masks = DETECTORS[recipe.model.detector].needs_masks
    return checked(dataset, "data.train", channels=recipe.model.in_chans, needs_masks=masks).with_crops(
        recipe.data.crop
    )


def with_transforms(
    recipe: Recipe, rules: TrainingRules, dataset: DetectionDataset, transforms: Transforms
) -> DetectionDataset:
    """Return the training data with the user's transforms, after they have been tried."""
    if not rules.takes_transforms:
        raise InputError(
            f"transforms: model.conventions={recipe.model.conventions} has none but the reference's; leave them out "
            "or set model.conventions=torchvision"
        )
    masks = DETECTORS[recipe.model.detector].needs_masks
    varied = VariedDataset(
        checked(dataset, "data.train", channels=recipe.model.in_chans, needs_masks=masks), transforms
    )
    check_transforms(varied, recipe.data.workers)
    return varied


def with_statistics(recipe: Recipe, dataset: DetectionDataset) -> Recipe:
    """Return the recipe with the mean and deviation of the data's channels, where those of colours mean nothing.

    They are measured if ``model.image_mean`` is null, images have neither one nor three channels, and the data is that
    of the recipe's files. The run's ``recipe.yaml`` has them.
    """
    model = recipe.model
    if model.in_chans in (1, 3) or model.image_mean is not None or not isinstance(dataset, CocoDataset):
        return recipe
    found = ChannelStatistics()
    for position in spread_positions(len(dataset)):
        found.add(dataset[position][0].as_subclass(Tensor).numpy())
    mean, std = found.mean, found.std if model.image_std is None else model.image_std
    say_once("statistics", f"model.image_mean={mean} and image_std={std}: measured on {found.count} training images")
    return replace(recipe, model=replace(model, image_mean=mean, image_std=std))
