"""Which options of a check fit one another."""

from __future__ import annotations

from pathlib import Path

import pytest

from vovnet.errors import InputError
from vovnet.export.checking import CheckOptions
from vovnet.export.metadata import Kind, Precision

IMAGES, FILE = Path("images"), Path("truth.json")


@pytest.mark.parametrize(
    ("options", "precision", "kind"),
    [
        (CheckOptions(), "fp32", "detector"),
        (CheckOptions(), "bf16", "detector"),
        (CheckOptions(IMAGES), "fp16", "detector"),
        (CheckOptions(IMAGES, FILE), "int8", "detector"),
        (CheckOptions(force=True), "int8", "detector"),
        (CheckOptions(IMAGES), "int8", "classifier"),
    ],
)
def test_good_options(options: CheckOptions, precision: Precision, kind: Kind) -> None:
    options.validate(precision, kind)


@pytest.mark.parametrize(
    ("options", "precision", "kind", "named"),
    [
        (CheckOptions(None, FILE), "fp32", "detector", "--annotations"),
        (CheckOptions(IMAGES, FILE), "fp32", "classifier", "--annotations"),
        (CheckOptions(IMAGES), "int8", "detector", "--annotations FILE"),
        (CheckOptions(), "int8", "detector", "--force"),
        (CheckOptions(), "int8", "classifier", "--check IMAGES"),
    ],
)
def test_options_that_do_not_fit(options: CheckOptions, precision: Precision, kind: Kind, named: str) -> None:
    with pytest.raises(InputError, match=named):
        options.validate(precision, kind)
