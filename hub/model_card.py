"""Model cards: the page of a repository on the Hub, made from ``model_card.md`` and the contents of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from vovnet.checkpoints.sources import licence_notice
from vovnet.errors import install_command
from vovnet.hub.card_fields import CardFields
from vovnet.hub.example import EXAMPLE_THRESHOLD
from vovnet.hub.manifest import EXAMPLE_FILE, PublishedFile
from vovnet.hub.markdown import code, plain
from vovnet.hub.metrics import ClassMetrics, Metrics

UNKNOWN_REPOSITORY = "ORG/NAME"
"""The repository's name in a card before it is published."""

_CITATIONS = {
    "vovnet": """@inproceedings{lee2019vovnet,
  title     = {An Energy and {GPU}-Computation Efficient Backbone Network for Real-Time Object Detection},
  author    = {Lee, Youngwan and Hwang, Joong-won and Lee, Sangrok and Bae, Yuseok and Park, Jongyoul},
  booktitle = {CVPR Workshops},
  year      = {2019}
}""",
    "ese": """@inproceedings{lee2020centermask,
  title     = {{CenterMask}: Real-Time Anchor-Free Instance Segmentation},
  author    = {Lee, Youngwan and Park, Jongyoul},
  booktitle = {CVPR},
  year      = {2020}
}""",
    "resnet": """@inproceedings{he2016resnet,
  title     = {Deep Residual Learning for Image Recognition},
  author    = {He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian},
  booktitle = {CVPR},
  year      = {2016}
}""",
}


def compose_card(
    fields: CardFields,
    *,
    repository: str = UNKNOWN_REPOSITORY,
    license: str | None,
    source: PublishedFile | None,
    version: str,
    example: str | None = None,
) -> ModelCard:
    """Return the model card of a folder.

    Args:
        fields: The facts about the folder and its model.
        repository: ``ORG/NAME``.
        license: A license identifier of the Hub, such as ``apache-2.0``; ``other`` for a file whose authors state none;
            None if the publisher says nothing.
        source: The file that the weights were converted from.
        version: The version of this package.
        example: Author and licence of the image in :data:`~vovnet.hub.manifest.EXAMPLE_FILE`, or ``""``; None if there
            is no example.
    """
    return ModelCard.from_template(
        _card_data(fields, repository, license),
        template_path=str(Path(__file__).with_name("model_card.md")),
        title=plain(fields.title),
        summary=fields.summary,
        example=example,
        credit=plain(example or ""),
        example_file=EXAMPLE_FILE,
        threshold=EXAMPLE_THRESHOLD,
        loading=_loading(fields, repository),
        facts=fields.rows.items(),
        categories=[plain(name) for name in fields.categories],
        training=fields.training,
        metrics=_metrics(fields.metrics) + _class_table(fields.classes),
        licence=_licence(license, source),
        repository=repository,
        origin=None if source is None else f"{code(source.file)}, SHA-256 {code(source.sha256)}",
        version=version,
        citation="\n".join([*(_CITATIONS[key] for key in fields.citations), *([fields.paper] if fields.paper else [])]),
    )


def _card_data(fields: CardFields, repository: str, license: str | None) -> ModelCardData:
    other = license == "other"
    return ModelCardData(
        model_name=repository.partition("/")[2],
        license=license,
        license_name="not-stated" if other else None,
        license_link=f"https://huggingface.co/{repository}#licence" if other else None,
        library_name=fields.library,
        pipeline_tag=fields.task,
        tags=list(fields.tags),
        datasets=list(fields.datasets) or None,
        base_model=fields.base_model,
        eval_results=[
            EvalResult(
                task_type=metrics.task,
                dataset_type=metrics.dataset_type,
                dataset_name=metrics.dataset,
                dataset_split=metrics.part,
                metric_type=name,
                metric_name=name,
                metric_value=value,
                verified=False,
                source_name=metrics.claimed_by,
                source_url=metrics.address,
            )
            for metrics in fields.metrics
            for name, value in metrics.values.items()
        ]
        or None,
    )


def _loading(fields: CardFields, repository: str) -> list[dict[str, str]]:
    """Return the ways to load the model: a sentence, the command that installs what it needs, and code."""
    if not fields.details:
        code = (
            "from vovnet.detection import predict\nfrom vovnet.hub import load_detector\n\n"
            f'detector = load_detector("{repository}")\ndetections = predict(detector, ["photo.jpg"])'
        )
        return [{"text": "With vovnet:", "install": install_command("detection"), "code": code}]
    architecture, stored = fields.details["architecture"], fields.details["stored_architecture"]
    features = f'features = timm.create_model("hf-hub:{repository}", pretrained=True, features_only=True)'
    by_name = f'import timm\n\nmodel = timm.create_model("hf-hub:{repository}", pretrained=True).eval()\n{features}'
    ours = {"install": install_command()}
    if stored == architecture and not fields.details["ours"]:
        return [{"text": "With timm alone:", "install": "pip install timm", "code": by_name}]
    if stored == architecture:
        return [ours | {"text": "With timm and vovnet:", "code": f"import vovnet  # registers {stored}\n{by_name}"}]
    classes = fields.details["num_classes"]
    overlay = f'dict(hf_hub_id="{repository}", num_classes={classes})'
    with_ours = (
        f'import timm\nimport vovnet  # registers {architecture}\n\nmodel = timm.create_model("{architecture}", '
        f"pretrained=True, num_classes={classes},\n    pretrained_cfg_overlay={overlay})"
    )
    alone = {"text": "With timm alone (0.9.16 or newer):", "install": "pip install timm", "code": by_name}
    return [alone, ours | {"text": "With vovnet, as its own class; the outputs are equal:", "code": with_ours}]


def _metrics(found: Sequence[Metrics]) -> str:
    if not found:
        return "None are recorded."
    parts = []
    for metrics in found:
        claim = f" ({metrics.claimed_by}: {metrics.address})" if metrics.claimed_by else ""
        rows = (metrics.values, ["---"] * len(metrics.values), map(str, metrics.values.values()))
        table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        measured = ", ".join(plain(text) for text in (metrics.dataset, metrics.part) if text)
        parts.append(f"{measured}, in percent{claim}:\n\n{table}")
    return "\n\n".join(parts)


def _class_table(classes: Sequence[ClassMetrics]) -> str:
    if not classes:
        return ""
    names = list(classes[0].values)
    rows = [["category", "objects", *names], ["---"] * (2 + len(names))]
    for one in classes:
        rows.append([plain(one.name), f"{one.objects:,}", *("–" if v is None else str(v) for v in one.values.values())])
    return "\n\nBy category:\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _licence(license: str | None, source: PublishedFile | None) -> str:
    said = "The publisher states none." if license is None else f"`{license}`."
    if source is None:
        return said
    notice = licence_notice(source.license)
    return f"{said} Of the file that these weights come from, {notice}."
