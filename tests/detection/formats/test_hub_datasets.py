"""Datasets in the forms of the Hub, read from a local folder: no test reaches the network."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from label_files import NAMES, SIZES, THINGS, Thing
from PIL import Image

from vovnet.detection.config.loading import load_recipe
from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.data.dataset_check import check_dataset
from vovnet.detection.data.sources import read_source, splits_of
from vovnet.detection.formats import hub_datasets
from vovnet.detection.formats.finding import sources_of
from vovnet.errors import InputError

datasets = pytest.importorskip("datasets", reason="the package datasets is an extra (hf)")


# The last box tells corners from sides: as x, y, width, height its corners would lie outside of the image.
ROWS = [*THINGS.items(), ("a.png", [Thing("cat", (40, 25, 15, 10))])]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def png(name: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", SIZES[name], (9, 9, 9)).save(file, "PNG")
    return file.getvalue()


def write(folder: Path, *, corners: bool = False, as_list: bool = False, texts: bool = False, **splits: str) -> Path:
    """Write the dataset of ``label_files`` as Parquet files in the form of cppe-5 and its like."""
    kind: Any = datasets.Value("string") if texts else datasets.ClassLabel(names=NAMES)
    box = datasets.Sequence(datasets.Value("float32"), length=4)
    inside = {"bbox": box, "category": kind}
    objects = datasets.List(inside) if as_list else {key: datasets.List(one) for key, one in inside.items()}
    features = datasets.Features({"image": datasets.Image(), "objects": objects})
    rows: list[dict[str, Any]] = []
    for name, things in ROWS:
        boxes = [[one.box[0], one.box[1], one.box[0] + one.box[2], one.box[1] + one.box[3]] for one in things]
        boxes = boxes if corners else [list(one.box) for one in things]
        kinds = [one.name if texts else NAMES.index(one.name) for one in things]
        pairs: Any = [{"bbox": b, "category": k} for b, k in zip(boxes, kinds, strict=True)]
        rows.append(
            {
                "image": {"bytes": png(name), "path": None},
                "objects": pairs if as_list else {"bbox": boxes, "category": kinds},
            }
        )
    folder.mkdir(parents=True)
    for split in splits or {"train": ""}:
        datasets.Dataset.from_list(rows, features=features).to_parquet(str(folder / f"{split}.parquet"))
    return folder


@pytest.mark.parametrize(
    "form", [{}, {"corners": True}, {"as_list": True}, {"texts": True}], ids=["sides", "corners", "list", "texts"]
)
def test_every_form_gives_the_same_objects(form: dict[str, bool], tmp_path: Path) -> None:
    folder = write(tmp_path / "data", **form)  # type: ignore[arg-type]
    dataset = CocoDataset([DataSource(hf=str(folder), split="train")], masks=False, training=True)
    assert [one["name"] for one in dataset.categories] == NAMES
    for index, (_, things) in enumerate(ROWS):
        target = dataset[index][1]
        assert [NAMES[label - 1] for label in target["labels"].tolist()] == [one.name for one in things]
        expected = [[x, y, x + w, y + h] for x, y, w, h in (one.box for one in things)]
        assert target["boxes"].reshape(-1, 4).tolist() == expected


def test_the_second_time_nothing_but_the_cache_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "data", train="", validation="")
    source = DataSource(hf=str(folder))
    first = [read_source(source, split)[0] for split in ("train", "val")]
    assert [Path(one.name).name for one in first] == ["train.json", "validation.json"]

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("the dataset was read again")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(hub_datasets, "absent_package", lambda *_: "datasets")
    assert read_source(source, "val")[0].content.images == first[1].content.images
    with pytest.raises(InputError, match=r"\[hf\]"):
        read_source(DataSource(hf="someone/else"), "train")


def test_an_evaluation_never_takes_the_training_data_by_itself(tmp_path: Path) -> None:
    source = DataSource(hf=str(write(tmp_path / "data")))
    with pytest.raises(InputError, match="val"):
        read_source(source, "val")
    with pytest.raises(InputError, match="holdout"):
        read_source(DataSource(hf=source.hf, split="holdout"))
    tested = DataSource(hf=str(write(tmp_path / "two", train="", test="")))
    assert Path(read_source(tested, "val")[0].name).name == "test.json"


def remove(*columns: str) -> Callable[[Any], Any]:
    return lambda rows: rows.remove_columns(list(columns))


@pytest.mark.parametrize("change", [remove("image"), remove("objects")])
def test_a_dataset_without_images_or_boxes_is_one_line(change: Callable[[Any], Any], tmp_path: Path) -> None:
    folder = write(tmp_path / "data")
    rows = datasets.Dataset.from_parquet(str(folder / "train.parquet"))
    change(rows).to_parquet(str(folder / "train.parquet"))
    with pytest.raises(InputError, match="columns"):
        read_source(DataSource(hf=str(folder)), "train")


@pytest.mark.parametrize("name", ["none", "/etc/passwd", "../up/there", "a/b/c", "a b/c", "org/none"])
def test_a_name_that_leads_nowhere_is_one_line(name: str) -> None:
    with pytest.raises(InputError, match="hf") as error:
        read_source(DataSource(hf=name), "train")
    assert "\n" not in str(error.value)


def test_a_broken_image_is_one_line_and_leaves_no_labels(tmp_path: Path) -> None:
    folder = write(tmp_path / "data")
    file = folder / "train.parquet"
    rows = datasets.Dataset.from_parquet(str(file)).cast_column("image", datasets.Image(decode=False)).to_list()
    rows[1]["image"] = {"bytes": b"no image", "path": None}
    features = datasets.Dataset.from_parquet(str(file)).features
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(file))
    with pytest.raises(InputError, match="image 2"):
        read_source(DataSource(hf=str(folder)), "train")
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_classes_without_names_are_their_texts(tmp_path: Path) -> None:
    (file,) = read_source(DataSource(hf=str(write(tmp_path / "data", texts=True))), "train")
    assert [one["name"] for one in file.content.categories] == sorted(NAMES)
    assert json.loads(Path(file.name).read_text())["categories"][0] == {"id": 0, "name": "cat"}


def test_a_path_that_begins_with_hf_has_all_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands take it, a recipe does, and the second time the splits are known without the package."""
    name = f"hf:{write(tmp_path / 'data', train='', validation='')}"
    title, splits = splits_of(name)
    assert list(splits) == ["train", "val"]
    assert check_dataset(splits).splits[1].report.images == len(ROWS)
    found = sources_of(name)
    assert [(one.hf, one.split) for one in (*found.train, *found.val)] == [
        (name[3:], "train"),
        (name[3:], "validation"),
    ]
    assert "Hub" in title
    recipe = load_recipe("quickstart", [f"data.train=[{name}]"])
    assert recipe.data.train == [DataSource(hf=name[3:])]
    monkeypatch.setattr(hub_datasets, "absent_package", lambda *_: "datasets")
    assert list(splits_of(name)[1]) == ["train", "val"]
    assert list(splits_of(name, "valid")[1]) == ["val"]
    with pytest.raises(InputError, match=r"\[hf\]"):
        splits_of("hf:someone/else")
