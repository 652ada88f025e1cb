"""Warnings before a training whose limits would lose objects."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

from vovnet.detection.config.data import DataRecipe
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.config.schema import Recipe
from vovnet.detection.data.object_sizes import ObjectSizes
from vovnet.detection.training.limits import warn_of_training_limits


def cells(side, image=2000, objects=5):
    return ObjectSizes(
        np.full((objects, 2), float(side)), np.zeros(objects, dtype=np.int64), np.array([[image, image]])
    )


def told(sizes, data=None, **model):
    recipe = Recipe(model=ModelRecipe(**{"min_size": 500, "max_size": 500, **model}))
    small = DataRecipe(train_min_sizes=[500], train_max_size=500)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_training_limits(replace(recipe, data=data or small), sizes)
    return [str(one.message) for one in caught]


def test_nothing_is_told_of_usual_data():
    assert told(cells(100)) == []
    assert told(cells(5, image=400)) == [], "small objects, but nothing shrinks"


@pytest.mark.parametrize(
    ("data", "model", "keys"),
    [
        (None, {}, ["data.train_min_sizes 500", "data.train_max_size 500", "model.min_size 500", "model.max_size 500"]),
        (DataRecipe(train_min_sizes=[1000, 2000], train_max_size=4000), {}, ["model.min_size 500"]),
        (None, {"min_size": 1000, "max_size": 1000}, ["data.train_min_sizes 500"]),
        (DataRecipe(train_max_size=500, scale_jitter=[0.5, 1.5]), {"min_size": 2000, "max_size": 2000}, ["jitter"]),
    ],
)
def test_a_resize_below_eight_pixels_names_its_keys(data, model, keys):
    (line,) = told(cells(20), data, **model)
    assert all(word in line for word in (*keys, "20 pixels", "5 pixels"))
    assert line.count("after the resize") == (2 if len(keys) == 4 else 1)


def test_more_objects_than_detections():
    (line,) = told(cells(100, objects=287))
    assert all(word in line for word in ("1 of 1", "287", "100", "model.box_detections_per_img"))
    assert told(cells(100, objects=287), box_detections_per_img=300) == []
