"""The tables of the docs say what the code says."""

import dataclasses
import json
import math
import os
import pickle
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import backbone_reference
import numpy as np
import pytest
import recipe_reference
import weights_reference
from pages import fenced, find_page, rows

ROOT = Path(__file__).resolve().parent.parent


def test_the_keys_of_recipes_are_those_of_the_schema() -> None:
    """Both files are generated: ``python tests/helpers/recipe_reference.py`` writes them."""
    assert recipe_reference.PAGE.read_text(encoding="utf-8") == recipe_reference.page()
    assert json.loads(recipe_reference.SCHEMA.read_text(encoding="utf-8")) == json.loads(recipe_reference.json_schema())


def test_the_table_of_weights_is_current() -> None:
    """It is generated: ``python tests/helpers/weights_reference.py`` writes it. A newer timm may know more networks."""
    written, today = (
        text.splitlines() for text in (weights_reference.PAGE.read_text("utf-8"), weights_reference.page())
    )
    assert [line for line in today if not line.startswith("| `ese_vovnet")] == [
        line for line in written if not line.startswith("| `ese_vovnet")
    ]
    assert set(written) <= set(today)


def test_the_sizes_of_backbones_are_current() -> None:
    """They are counted: ``python tests/helpers/backbone_reference.py`` writes them."""
    assert backbone_reference.PAGE.read_text(encoding="utf-8") == backbone_reference.page()


@pytest.mark.parametrize("section", ["model", "data", "solver", "log"])
def test_every_key_of_a_recipe_is_documented_with_its_default(section: str) -> None:
    from vovnet.detection.config.schema import Recipe

    table = {row[0].strip("`"): row[1:] for row in rows("recipes.md", f"<!-- keys: {section} -->")[1:]}
    part = getattr(Recipe(), section)
    assert list(table) == [field.name for field in dataclasses.fields(part)]
    for key, (default, meaning) in table.items():
        value = getattr(part, key)
        assert default.strip("`") == (value if isinstance(value, str) else json.dumps(value)), key
        assert len(meaning) > 10, key


def test_every_recipe_names_the_schema_of_editors() -> None:
    for path in (ROOT / "detection" / "recipes").glob("*.yaml"):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert (path.parent / first.removeprefix("# yaml-language-server: $schema=")).is_file(), path


def test_every_recipe_is_listed() -> None:
    from vovnet.detection.config.loading import recipe_names

    listed = {name for row in rows("recipes.md", "# Recipes") for name in re.findall(r"`(\w+)`", row[0])}
    assert listed == set(recipe_names())


def test_every_kind_of_problem_is_documented() -> None:
    from vovnet.detection.data.report import KINDS

    table = [(row[0], row[1]) for row in rows("data.md", "## What is checked") if row[0] != "what is wrong"]
    assert table == [(kind.text, kind.action) for kind in KINDS.values()]


def test_the_networks_are_as_the_table_says() -> None:
    import timm
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import vovnet  # noqa: F401

    for name, convs, outs, blocks, millions, macs in rows("vovnet.md", "## The networks")[1:]:
        model: Any = timm.create_model(name.strip("`"))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        assert f"{parameters / 1e6:.1f} M" == millions
        with FlopCounterMode(display=False) as counter:
            model.eval().to("meta")(torch.empty(1, 3, 224, 224, device="meta"))
        assert f"{counter.get_total_flops() / 2e9:.2f}" == macs
        stages = list(model.stages)
        assert ", ".join(str(s.blocks[0].conv_mid[0].conv.out_channels) for s in stages) == convs
        assert ", ".join(str(s.blocks[0].conv_concat.conv.out_channels) for s in stages) == outs
        assert ", ".join(str(len(s.blocks)) for s in stages) == blocks


def test_the_operations_of_detectors_are_as_the_table_says() -> None:
    """On the device ``meta``: a detector's parts with as many boxes as the page says."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from torchvision.models import get_model

    import vovnet.detection  # noqa: F401

    (_, *backbones), *table = rows("detectors.md", "## Operations")
    for kind, *written in table:
        for backbone, number in zip(backbones, written, strict=True):
            name = f"{kind.strip('`').replace('_', '')}_{backbone.strip('`')}_fpn"
            with torch.device("meta"):
                model: Any = get_model(name, weights=None, weights_backbone=None).eval()
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                maps = list(model.backbone(torch.empty(1, 3, 800, 1344, device="meta")).values())
                if hasattr(model, "rpn"):
                    model.rpn.head(maps)
                    heads = model.roi_heads
                    heads.box_predictor(heads.box_head(torch.empty(1000, maps[0].shape[1], 7, 7, device="meta")))
                else:
                    model.head(maps)
            assert f"{counter.get_total_flops() / 2e9:.1f}" == number, name


def test_the_example_of_a_coco_file_is_sound(tmp_path: Path) -> None:
    from PIL import Image

    from vovnet.detection.data.validation import check_data

    text = find_page("data.md").read_text(encoding="utf-8").split("```json\n")[1].split("```")[0]
    (tmp_path / "a.json").write_text(text)
    Image.new("RGB", (640, 480)).save(tmp_path / "a.jpg")
    report = check_data(tmp_path, tmp_path / "a.json")
    assert report.ok, report.table()
    assert report.masks == 1


def test_the_published_numbers_are_those_of_the_recipes() -> None:
    folder = ROOT / "detection" / "recipes"
    header, *table = rows("published_detectors.md", "## The published numbers")
    assert header[:2] == ["recipe", "box AP"]
    assert {row[0].strip("`") for row in table} == {path.stem for path in folder.glob("*_FPN_2x.yaml")}
    for name, box, _, _, _, mask, *_ in table:
        numbers = f"box / mask AP {box} / {mask} on" if mask else f"box AP {box} on"
        assert numbers in (folder / f"{name.strip('`')}.yaml").read_text(encoding="utf-8"), name


def test_the_schedules_for_one_gpu_are_eight_times_as_long() -> None:
    from vovnet.detection.config.loading import load_recipe

    names = {"1x": "mask_rcnn_R_50_FPN_1x", "2x": "mask_rcnn_R_50_FPN_2x"}
    names["scratch 3x"] = "scratch_mask_rcnn_V_57_FPN_3x_gn"
    table = {row[0]: row[1:] for row in rows("reproduce.md", "### On one GPU, by the linear rule")[1:]}
    assert table.keys() == names.keys()
    for schedule, (iterations, steps) in table.items():
        solver = load_recipe(names[schedule]).solver
        assert int(iterations) == 8 * solver.max_iterations
        assert json.loads(steps.strip("`")) == [8 * step for step in solver.steps]


@pytest.mark.parametrize("page", ["reproduce.md", "several_gpus.md"])
def test_commands_for_many_processes_name_recipes_that_exist(page: str) -> None:
    from vovnet.detection.config.loading import load_recipe

    lines = "\n".join(fenced(page, "sh")).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith("torchrun ")]
    assert commands
    for command in commands:
        recipe, *rest = command[command.index("vovnet.detection.train") + 1 :]
        if not recipe.isupper():
            load_recipe(recipe, [word for word in rest if re.match(r"[a-z_.]+=", word)])


def caffe2_blobs() -> dict[str, Any]:
    """A ResNet-50 in Detectron's names: convolutions, norms' scales and biases, and a classifier."""
    draw = np.random.default_rng(0).standard_normal
    blobs: dict[str, Any] = {"fc1000_w": draw((1000, 2048), dtype=np.float32), "conv1_b": np.zeros(64, np.float32)}

    def layer(conv: str, norm: str, shape: tuple[int, ...]) -> None:
        blobs[f"{conv}_w"] = draw(shape, dtype=np.float32) / math.sqrt(math.prod(shape[1:]))
        blobs.update({f"{norm}_{leaf}": draw(shape[0], dtype=np.float32) for leaf in "sb"})

    layer("conv1", "res_conv1_bn", (64, 3, 7, 7))
    channels = 64
    for stage, (count, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], start=2):
        for number in range(count):
            shapes = {"2a": (width, channels, 1, 1), "2b": (width, width, 3, 3), "2c": (4 * width, width, 1, 1)}
            if number == 0:
                shapes["1"] = (4 * width, channels, 1, 1)
            for branch, shape in shapes.items():
                name = f"res{stage}_{number}_branch{branch}"
                layer(name, f"{name}_bn", shape)
            channels = 4 * width
    return blobs


def test_the_snippet_for_detectrons_resnets_makes_what_convert_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.numpy import load_file

    from vovnet.hub import convert_checkpoint

    (snippet,) = (block for block in fenced("reproduce.md", "python") if ".pkl" in block)
    blobs = caffe2_blobs()
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "reproduce.md", "exec"), {})
    convert_checkpoint("R-50.pth", "weights", expect="resnet50")
    weights = load_file("weights/model.safetensors")
    for key, blob in {
        "conv1.weight": "conv1_w",
        "bn1.weight": "res_conv1_bn_s",
        "layer2.0.downsample.1.bias": "res3_0_branch1_bn_b",
        "layer3.5.conv2.weight": "res4_5_branch2b_w",
        "layer4.2.bn3.weight": "res5_2_branch2c_bn_s",
    }.items():
        np.testing.assert_array_equal(weights[key], blobs[blob], err_msg=key)
    assert set(weights["layer1.0.bn1.running_var"]) == {1}
    assert set(weights["layer1.0.bn1.running_mean"]) == {0}


PROGRAMS = {
    "srun": 'exec "$@"',
    # The run asks for the signal that SLURM sends before the time limit, as soon as it can answer SIGTERM.
    "torchrun": 'trap "echo saved; exit 143" TERM\nkill -USR1 $PPID\nwhile read -r -t 60 _ <>"$FIFO"; do :; done',
    "scancel": 'echo "scancel $*"\nkill -TERM "$(cat "$PID")"',
    "scontrol": 'echo "scontrol $*"',
}
"""Stand-ins for SLURM's programs and torchrun."""


def test_the_slurm_script_requeues_a_run_that_has_been_saved(tmp_path: Path) -> None:
    (script,) = (block for block in fenced("several_gpus.md", "sh") if block.startswith("#!/bin/bash"))
    (tmp_path / "job").write_text(script)
    os.mkfifo(tmp_path / "fifo")
    for name, body in PROGRAMS.items():
        (tmp_path / name).write_text(f'#!/bin/bash\n[ {name} = torchrun ] && echo $$ > "$PID"\n{body}\n')
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "job"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        env=os.environ
        | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
        | {"FIFO": str(tmp_path / "fifo"), "PID": str(tmp_path / "pid")},
    )  # fmt: skip
    steps = [line for line in done.stdout.splitlines() if not line.startswith("scontrol show")]
    assert steps == ["scancel --signal=TERM 7.0", "saved", "scontrol requeue 7"], done


def test_the_page_of_clients_names_the_versions_that_were_tried() -> None:
    """The extra's floors; clients that no extra installs are written without a package's name alone."""
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]["clients"]
    text = find_page("works_with.md").read_text(encoding="utf-8")
    tried = dict(re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \|", text, re.MULTILINE))
    assert tried == dict(requirement.split(">=") for requirement in extra)
