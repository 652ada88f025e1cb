"""Which options of a check fit one another."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

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
def test_good_options(
    options: CheckOptions, precision: Precision, kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    IMAGES.mkdir()
    Image.new("RGB", (3, 3)).save(IMAGES / "one.png")
    FILE.write_text("{}")
    options.validate(precision, kind)
    if options.annotations is not None:
        FILE.unlink()
        with pytest.raises(InputError, match=f"--annotations {FILE}"):
            options.validate(precision, kind)
    if options.images is not None:
        (IMAGES / "one.png").unlink()
        with pytest.raises(InputError, match=str(IMAGES)):
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
def test_options_that_do_not_fit(
    options: CheckOptions, precision: Precision, kind: Kind, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    IMAGES.mkdir()
    Image.new("RGB", (3, 3)).save(IMAGES / "one.png")
    with pytest.raises(InputError, match=named):
        options.validate(precision, kind)
