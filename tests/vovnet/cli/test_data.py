"""``vovnet check-data`` and ``vovnet convert-data`` as users type them."""

from __future__ import annotations

from pathlib import Path

import label_files
from support import command


def test_data_is_checked_mended_and_converted(tmp_path: Path) -> None:
    config = label_files.write_yolo(tmp_path / "data", splits=("train",))
    config.write_text(config.read_text().replace("train: images/train", "train: images/train\nval: images/train"))
    (tmp_path / "data" / "labels" / "train" / "a.txt").write_text("0 0.9 0.5 0.4 0.2\n")
    checked = command("check-data", tmp_path / "data")
    assert checked.code == 1
    assert "box partly outside" in checked.out
    assert "a recipe for this data" in checked.out
    assert "format       YOLO" in checked.out
    fixed = command("check-data", tmp_path / "data", "--split", "train", "--fix", tmp_path / "fixed")
    assert (fixed.code, "1 changes" in fixed.out) == (0, True)
    assert command("check-data", tmp_path / "fixed").code == 0
    converted = command("convert-data", tmp_path / "fixed", tmp_path / "voc", "--to", "voc")
    assert (converted.code, "3 images" in converted.out) == (0, True)
    for wrong in (["--to", "voc"], ["--to", "png"]):
        refused = command("convert-data", tmp_path / "fixed", tmp_path / "voc", *wrong)
        assert refused.code != 0
        assert len(refused.err.strip().splitlines()) == 1
