"""The authors' ImageNet recipe as docs/how-to/classification.md gives it, one step of it, on generated images.

timm's ``train.py`` is not in its wheel; where it lies is told by ``TIMM_TRAIN_SCRIPT`` and then the script itself is
run. The other test takes the same parts of timm that the script puts together.
"""

import itertools
import os
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

import vovnet

assert vovnet.VoVNet  # the import registers the names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """ImageFolder form: SPLIT/CLASS/*.png, two classes told apart by colour."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("validation", 2)):
        for label, colour in (("blue", (40, 60, 200)), ("red", (200, 50, 40))):
            target = tmp_path / "data" / split / label
            target.mkdir(parents=True)
            for i in range(count):
                noise = generator.integers(-30, 30, (72, 80, 3))
                Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(target / f"{i}.png")
    return tmp_path / "data"


def documented_flags(repository: Path) -> list[str]:
    """The recipe's flags out of the docs page, so that page and test cannot part."""
    text = (repository / "docs" / "how-to" / "classification.md").read_text(encoding="utf-8")
    command = re.search(r"python train\.py (.*?)\n```", text, re.DOTALL)
    assert command
    return command.group(1).replace("\\\n", " ").split()


def test_the_page_says_the_authors_recipe(repository: Path) -> None:
    flags = documented_flags(repository)
    pairs = dict(itertools.pairwise(flags))
    expected = {
        "--model": "vovnet39", "--device-modules": "vovnet", "--epochs": "90", "--batch-size": "256", "--lr": "0.1",
        "--sched": "step", "--decay-epochs": "30", "--decay-rate": "0.1", "--warmup-epochs": "0", "--opt": "momentum",
        "--momentum": "0.9", "--weight-decay": "1e-4", "--smoothing": "0", "--color-jitter": "0",
    }  # fmt: skip
    assert {key: pairs[key] for key in expected} == expected


def test_one_step_with_timms_parts(folder: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vovnet27_slim", num_classes=2).train()
    data = resolve_data_config({"input_size": (3, 64, 64)}, model=model)
    loader = create_loader(
        create_dataset("", root=str(folder), split="train", is_training=True),
        input_size=data["input_size"],
        batch_size=4,
        is_training=True,
        use_prefetcher=False,
        color_jitter=0.0,
        interpolation=data["interpolation"],
        mean=data["mean"],
        std=data["std"],
        num_workers=0,
        device=torch.device("cpu"),
    )
    optimizer = create_optimizer_v2(
        model, opt="momentum", lr=0.1, momentum=0.9, weight_decay=1e-4, filter_bias_and_bn=False
    )
    scheduler, epochs = create_scheduler_v2(
        optimizer, sched="step", num_epochs=90, decay_epochs=30, decay_rate=0.1, warmup_epochs=0
    )
    assert epochs == 90
    group = optimizer.param_groups[0]
    assert len(optimizer.param_groups) == 1  # norms and biases decay too, as in PyTorch's ImageNet example
    assert (type(optimizer), group["momentum"], group["nesterov"]) == (torch.optim.SGD, 0.9, False)
    assert (group["lr"], group["weight_decay"]) == (0.1, 1e-4)

    before = {name: value.clone() for name, value in model.named_parameters()}
    images, targets = next(iter(loader))
    assert images.shape == (4, 3, 64, 64)
    loss = nn.functional.cross_entropy(model(images), targets)
    optimizer.zero_grad()
    loss.backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
    optimizer.step()
    for name, value in model.named_parameters():
        expected = before[name] - 0.1 * (gradients[name] + 1e-4 * before[name])
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    rates = []
    for epoch in (0, 29, 30, 59, 60, 89):
        scheduler.step(epoch)
        rates.append(group["lr"])
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_one_epoch_with_timms_own_script(
    folder: Path, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = os.environ.get("TIMM_TRAIN_SCRIPT", "")
    if not Path(script).is_file():
        pytest.skip("timm's train.py is not in its wheel: set TIMM_TRAIN_SCRIPT to its path to run it here")
    flags = [*documented_flags(repository), "--data-dir", str(folder), "--model", "vovnet27_slim", "--num-classes", "2"]
    small = ["--input-size", "3", "64", "64", "--batch-size", "4", "--epochs", "1", "--workers", "0"]
    where = ["--device", "cpu", "--no-prefetcher", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [script, *flags, *small, *where])
    runpy.run_path(script, run_name="__main__")
    assert list((tmp_path / "out").rglob("summary.csv"))
