"""Model cards are what the Hub and people can read, whatever names a folder brings along."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_folders import RUN_RECIPE, Made, write_run
from huggingface_hub import ModelCard, ModelCardData
from local_hub import Hub
from markdown_it import MarkdownIt
from PIL import Image

from vovnet.detection.config.detectors import DETECTORS
from vovnet.detection.models.flops import detector_gmacs
from vovnet.detection.zoo.published import coco_categories
from vovnet.errors import SOURCE as SOURCE_ADDRESS
from vovnet.hub import load_detector
from vovnet.hub.card_fields import CardFields
from vovnet.hub.manifest import PublishedFile
from vovnet.hub.metrics import ClassMetrics, Metrics
from vovnet.hub.model_card import compose_card
from vovnet.hub.publishing import check_card, publish
from vovnet.hub.release import Description, describe

SOURCE = PublishedFile(
    "MRCN-V-39-FPN-2x.pth", "ab" * 32, "Mask R-CNN V-39-FPN, 80 classes", "mask_rcnn_V_39_FPN_2x", "unknown"
)
BOX = {"box AP": 41.0, "box APs": 24.6, "box APm": 43.9, "box APl": 53.1}
MASK = {"mask AP": 36.7, "mask APs": 17.9, "mask APm": 39.3, "mask APl": 53.0}
FACTS = CardFields(
    title="Mask R-CNN",
    summary="A detector.",
    task="image-segmentation",
    library="vovnet",
    rows={"backbone": "`vovnet39`", "parameters": "44,000,000"},
    training="By somebody.",
    citations=("vovnet",),
    paper=DETECTORS["mask_rcnn"].citation,
    tags=("vovnet", "object-detection"),
    categories=("cat", "dog"),
    metrics=(
        Metrics("object-detection", "COCO 2014 minival", "coco", BOX, "the authors", "https://example.org/a"),
        Metrics("image-segmentation", "COCO 2014 minival", "coco", MASK, "the authors", "https://example.org/a"),
    ),
    datasets=("coco",),
    base_model="someone/else",
)


def compose(facts: CardFields = FACTS, **arguments: Any) -> ModelCard:
    values: dict[str, Any] = {"license": "other", "source": SOURCE, "version": "1.2", "repository": "me/it"}
    return compose_card(facts, **{**values, **arguments})


def folder_card(folder: Path, tmp_path: Path, source: PublishedFile | None = None, **arguments: Any) -> ModelCard:
    """The card that is published with a folder, read by the Hub's own class."""
    describe(folder, tmp_path, source, Description(**{"repository": "me/it", "license": "apache-2.0", **arguments}))
    return ModelCard.load(tmp_path / "README.md")


def tokens(card: ModelCard, inside: str) -> list[Any]:
    """Return the tokens that a Markdown parser sees, of every kind of token that begins with ``inside``."""
    found = []
    for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(card.text):
        found += [token, *(token.children or [])]
    return [token for token in found if token.type.startswith(inside)]


def table_rows(card: ModelCard) -> int:
    return len(tokens(card, "tr_open"))


def headings(card: ModelCard) -> list[str]:
    parsed = MarkdownIt("commonmark").parse(card.text)
    return [b.content for a, b in pairwise(parsed) if a.type == "heading_open"]


SECTIONS = ["Load it", "What it is", "Training", "Metrics", "Licence", "Check it", "Citation"]


def test_the_hubs_own_classes_read_it_back() -> None:
    card = ModelCard(str(compose()))
    data: Any = card.data
    assert isinstance(data, ModelCardData)
    assert (data.library_name, data.pipeline_tag, data.license) == ("vovnet", "image-segmentation", "other")
    assert data.license_name
    assert data.license_link.startswith("https://")
    assert data.tags == ["vovnet", "object-detection"]
    assert data.datasets == ["coco"]
    assert data.base_model == "someone/else"
    assert data.model_name == "it"
    assert headings(card)[1:] == SECTIONS


def test_metrics_come_back_with_their_numbers_and_their_source() -> None:
    results: Any = ModelCard(str(compose())).data.eval_results
    assert {result.metric_name: result.metric_value for result in results} == BOX | MASK
    assert {result.metric_name for result in results if result.task_type == "image-segmentation"} == set(MASK)
    assert {(result.dataset_type, result.dataset_name) for result in results} == {("coco", "COCO 2014 minival")}
    assert {result.source_url for result in results} == {"https://example.org/a"}
    assert {result.source_name for result in results} == {"the authors"}


def test_the_model_index_has_the_hubs_form() -> None:
    """The metadata have the form of https://huggingface.co/docs/hub/model-cards."""
    front = yaml.safe_load(str(compose()).split("---")[1])
    (index,) = front["model-index"]
    assert index["name"] == "it"
    for result in index["results"]:
        assert set(result) >= {"task", "dataset", "metrics"}
        assert result["task"]["type"] in ("object-detection", "image-segmentation")
        assert set(result["dataset"]) >= {"type", "name"}
        assert all(isinstance(metric["value"], float) for metric in result["metrics"])


def test_numbers_of_others_are_said_to_be_theirs() -> None:
    text = compose().text
    assert "the authors: https://example.org/a" in text
    assert "| 41.0 | 24.6 | 43.9 | 53.1 |" in text
    assert "| 36.7 | 17.9 | 39.3 | 53.0 |" in text


def test_without_metrics_there_is_no_model_index() -> None:
    card = compose(dataclasses.replace(FACTS, metrics=()))
    assert "model-index" not in str(card)
    assert "None are recorded." in card.text


def test_licences() -> None:
    """Stated, left open, and those of files of others with what is to be known of them."""
    stated = compose(license="apache-2.0", source=None)
    assert stated.data.license == "apache-2.0"
    assert "license_name" not in str(stated)
    assert "imagenet" not in stated.text.lower()
    silent = compose(license=None, source=None)
    assert "license" not in str(silent).split("---")[1]
    assert "states none" in silent.text
    other = compose()
    for link in ("https://www.image-net.org/download", "https://cocodataset.org/#termsofuse"):
        assert link in other.text
    assert SOURCE.sha256 in other.text
    assert SOURCE.file in other.text
    v2 = compose(license="cc-by-nc-4.0", source=dataclasses.replace(SOURCE, license="cc-by-nc-4.0"))
    assert "https://creativecommons.org/licenses/by-nc/4.0/" in v2.text
    assert "image-net.org" not in v2.text


def test_the_card_of_a_converted_classifier(slim: Made) -> None:
    card = ModelCard.load(slim.folder / "README.md")
    assert card.data.library_name == "timm"
    assert card.data.pipeline_tag == "image-classification"
    for words in ("vovnet27_slim.pth", "`vovnet39a`", "3,016,327", "hf-hub:ORG/NAME", "lee2019vovnet"):
        assert words in card.text


def test_the_card_of_a_run(run: Path, tmp_path: Path) -> None:
    card = folder_card(run, tmp_path, train_data="my images", eval_data="held back")
    results: Any = card.data.eval_results
    values = {"box AP": 32.14, "box AP50": 55.0, "mask AP": 28.75, "mask AP50": 50.0}
    assert {result.metric_name: result.metric_value for result in results} == values
    assert {(result.dataset_name, result.dataset_split) for result in results} == {
        ("held back", "validation data, val.json")
    }
    assert "held back, validation data, val.json, in percent:" in card.text
    assert "my images" not in str(card).split("## Metrics")[1]
    assert "By `vovnet train` on my images:" in card.text
    assert "Categories, in the order of the labels 1 to 2: cat, dog." in card.text
    assert "1,200 iterations of 4 images" in card.text
    assert headings(card)[1:] == SECTIONS
    assert table_rows(card) == 1 + 8 + 2 + 2  # the header, eight facts, and two tables of metrics


def test_the_card_of_a_published_detector(run: Path, tmp_path: Path) -> None:
    assert folder_card(run, tmp_path, SOURCE, license="other").data.eval_results is None  # its categories are others
    run = write_run(tmp_path / "coco", coco_categories(), RUN_RECIPE.replace("num_classes: 2", "num_classes: 80"))
    card = folder_card(run, tmp_path, SOURCE, license="other")
    results: Any = card.data.eval_results
    assert {result.metric_name: result.metric_value for result in results} == BOX | MASK
    assert card.data.datasets == ["coco"]
    renamed = folder_card(run, tmp_path, dataclasses.replace(SOURCE, file="model_final.pth"), license="other")
    assert renamed.data.eval_results is None
    assert "41.0" not in renamed.text


def test_the_card_says_how_to_install_what_loads_it(run: Path, slim: Made, tmp_path: Path) -> None:
    detector = folder_card(run, tmp_path).text
    assert f"pip install 'vovnet[detection] @ git+{SOURCE_ADDRESS}'" in detector
    classifier = ModelCard.load(slim.folder / "README.md").text
    assert classifier.index("pip install timm\n") < classifier.index(f"pip install 'vovnet @ git+{SOURCE_ADDRESS}'")


def test_the_size_and_the_multiply_adds_are_those_of_the_detector(run: Path, tmp_path: Path) -> None:
    """The run's detector works on images of 64 to 96 pixels: far less than at COCO's size."""
    (row,) = re.findall(r"\| GMACs \| ([\d.]+) for one (.*) \|", folder_card(run, tmp_path).text)
    assert row[1] == "64×96 image, 1,000 proposals and 100 masks"
    detector = load_detector(run)
    assert float(row[0]) == pytest.approx(detector_gmacs(detector, (64, 96)), abs=0.05)
    assert float(row[0]) < detector_gmacs(detector, (800, 1344)) / 2


def test_a_run_has_a_table_of_its_categories(run: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("config.json", "model.safetensors", "recipe.yaml"):
        (tmp_path / "run" / name).write_bytes((run / name).read_bytes())
    bbox = [{"id": 4, "name": "cat", "AP": 0.5, "AP50": 0.75, "objects": 3}]
    bbox.append({"id": 2, "name": "dog", "AP": -1.0, "AP50": -1.0, "objects": 0})
    line = {"iteration": 1, "mask_ap": 0.5, "per_class": {"bbox": bbox, "segm": bbox}}
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    text = folder_card(tmp_path / "run", tmp_path).text
    assert "| category | objects | box AP | box AP50 | mask AP | mask AP50 |" in text
    assert "| cat | 3 | 50.0 | 75.0 | 50.0 | 75.0 |" in text
    assert "| dog | 0 | – | – | – | – |" in text


HOSTILE = [
    "a | b",
    "a\nb\n\n# Heading\n\n---\nlicense: mit\n---\n",
    "---",
    "`code`",
    "``` fence",
    "<script>alert(1)</script>",
    "<!-- hidden",
    "<img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "{# gone #}",
    "license: mit",
    "- tag",
    "*bold* _it_",
    "[link](javascript:alert(1))",
    "![x](http://example.org/x.png)",
    "https://example.org",
    "back\\slash",
    "&lt;b&gt;",
    "naïve ✓ 猫",
    "\u202egnirts",
    "'\"",
]


def test_hostile_names_of_categories_are_text(tmp_path: Path) -> None:
    recipe = RUN_RECIPE.replace("num_classes: 2", f"num_classes: {len(HOSTILE)}")
    run = write_run(tmp_path / "run", [{"id": i, "name": name} for i, name in enumerate(HOSTILE, 1)], recipe)
    plain = write_run(tmp_path / "plain", [{"id": i, "name": f"c{i}"} for i in range(1, len(HOSTILE) + 1)], recipe)
    for folder in ("cards", "plain_cards"):
        (tmp_path / folder).mkdir()
    card, expected = folder_card(run, tmp_path / "cards"), folder_card(plain, tmp_path / "plain_cards")

    assert card.data.to_dict() == expected.data.to_dict()
    assert headings(card) == headings(expected)
    assert table_rows(card) == table_rows(expected)
    assert tokens(card, "html") == []
    for kind in ("fence", "link_open", "image", "code_inline", "hr", "strong", "em_open", "list_item"):
        assert len(tokens(card, kind)) == len(tokens(expected, kind)), kind
    # A reader sees the names themselves.
    (shown,) = [token for token in tokens(card, "inline") if token.content.startswith("Categories")]
    text = "".join(child.content if child.type != "softbreak" else " " for child in shown.children)
    for name in HOSTILE:
        assert " ".join(name.split()) in text, name


def test_hostile_texts_of_the_publisher_break_nothing() -> None:
    """Texts from the command line and from a manifest of others are escaped."""
    for text in HOSTILE:
        metrics = (Metrics("object-detection", text, "custom", {"box AP": 1.5}),)
        source = dataclasses.replace(SOURCE, file=text.replace("/", ""), title=text)
        classes = (ClassMetrics(text, 1234, {"box AP": 1.5, "box AP50": None}),)
        facts = dataclasses.replace(FACTS, metrics=metrics, classes=classes, title=text)
        card = ModelCard(str(compose(facts, source=source, example=text)))
        results: Any = card.data.eval_results
        assert results[0].dataset_name == text
        assert card.data.license == "other"
        assert headings(card)[-7:] == SECTIONS, text
        assert [token.attrs["src"] for token in tokens(card, "image")] == ["example.jpg"]
        assert "| 1,234 | 1.5 | – |" in card.text
        assert table_rows(card) == 3 + 2 + 2, text  # facts, metrics and one category, each with its header
        assert tokens(card, "html") == [], text
        assert "49" not in headings(card)[0]


def test_names_of_a_timm_folder_break_nothing(slim: Made, tmp_path: Path) -> None:
    """``pretrained_cfg`` may hold anything, and some of it is told."""
    from hub_folders import edit_json

    folder, out = tmp_path / "folder", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((slim.folder / name).read_bytes())
    cfg = {"notes": HOSTILE, "interpolation": "a | b\n\n# c", "crop_pct": "<b>"}
    edit_json(folder / "config.json", lambda config: config["pretrained_cfg"].update(cfg))
    card = folder_card(folder, out)
    expected = ModelCard.load(slim.folder / "README.md")
    assert headings(card) == headings(expected)
    assert table_rows(card) == table_rows(expected)
    assert tokens(card, "html") == []
    assert [t.content for t in tokens(card, "text") if "a | b # c" in t.content]  # in a cell, as a whole
    assert card.data.license == "apache-2.0"


def test_the_hub_accepts_the_cards(hub: Hub, slim: Made, run: Path, tmp_path: Path) -> None:
    check_card(folder_card(run, tmp_path), hub.endpoint)
    check_card(folder_card(run, tmp_path, SOURCE, license="other"), hub.endpoint)
    check_card(folder_card(run, tmp_path, license=None), hub.endpoint)
    check_card(ModelCard.load(slim.folder / "README.md"), hub.endpoint)
    assert [(seen.path, seen.status) for seen in hub.log()] == [("/api/validate-yaml", 200)] * 4
    with pytest.raises(ValueError, match="license"):
        check_card(folder_card(run, tmp_path, license="My own licence"), hub.endpoint)


def python_blocks(hub: Hub, name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", hub.files(name)["README.md"].decode(), re.DOTALL)


def run_all(blocks: list[str], place: Path, follow: str) -> list[Any]:
    """Run each block in a process for them all, in a namespace of its own; what ``follow`` makes of each."""
    code = (
        "import json, sys, torch\ntorch.set_num_threads(1)\nblocks, follow = json.loads(sys.argv[1])\n"
        "for block in blocks:\n    space = {}\n    exec(block, space)\n    print('|', json.dumps(eval(follow, space)))"
    )
    arguments = [sys.executable, "-c", code, json.dumps([blocks, follow])]
    done = subprocess.run(arguments, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line[1:]) for line in done.stdout.splitlines() if line.startswith("|")]


@pytest.mark.usefixtures("token")
def test_what_the_card_says_about_loading_runs(hub: Hub, slim: Made, tmp_path: Path) -> None:
    """Plain timm in a process without vovnet; ours in another; all compute the same."""
    for architecture in ("timm", "vovnet"):
        publish(slim.folder, f"me/{architecture}", license="other", architecture=architecture, yes=True, private=False)
    plain, ours = python_blocks(hub, "me/timm")
    (named,) = python_blocks(hub, "me/vovnet")
    assert "vovnet" not in plain.replace("me/vovnet", "")
    compute = "model.eval()(__import__('torch').full((1, 3, 64, 64), 0.5)).tolist()"
    loaded = "'vovnet' in __import__('sys').modules"
    follow = f"[{compute}, {loaded}, len(globals().get('features', model).state_dict())]"
    (alone,) = run_all([plain], tmp_path, follow)
    together = run_all([ours, named], tmp_path, follow)
    assert [answer[1] for answer in (alone, *together)] == [False, True, True]
    assert len(alone[0][0]) == 7
    assert together[0][0] == together[1][0] == alone[0]


@pytest.mark.usefixtures("token")
def test_what_a_detectors_card_says_about_loading_runs(hub: Hub, run: Path, tmp_path: Path) -> None:
    publish(run, "me/detector", license="apache-2.0", yes=True)
    Image.effect_noise((80, 60), 90).convert("RGB").save(tmp_path / "photo.jpg")
    blocks = python_blocks(hub, "me/detector")
    assert len(blocks) == 1
    ((found,),) = run_all(blocks, tmp_path, "detections")
    assert found
    assert {entry["category"] for entry in found} <= {"cat", "dog"}
