"""The benchmarks run, at sizes at which their numbers mean nothing, and compare what they say they compare."""

import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from local_hub import Hub

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[Namespace]:
    """The modules, which are found from the repository's root."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        names = ("common", "evaluation", "legacy", "loader", "loading", "pictures", "training")
        yield Namespace(**{name: import_module(f"benchmarks.{name}") for name in names})
        for name in names:
            sys.modules.pop(f"benchmarks.{name}")


def test_contestants_take_turns_in_alternating_order(benchmarks: Namespace) -> None:
    calls: list[tuple[str, int]] = []

    def contestant(name: str, seconds: float) -> Callable[[int], float]:
        def one_round(number: int) -> float:
            calls.append((name, number))
            return seconds + number

        return one_round

    seconds = benchmarks.common.interleave({"a": contestant("a", 1), "b": contestant("b", 2)}, 2, warmup=1)
    assert calls == [("b", -1), ("a", -1), ("a", 0), ("b", 0), ("b", 1), ("a", 1)]
    assert seconds == {"a": [1, 2], "b": [2, 3]}


@pytest.mark.parametrize(("theirs", "met"), [(4.0, True), (1.0, False)])
def test_a_ratio_is_of_rates_and_knows_its_goal(benchmarks: Namespace, theirs: float, met: bool) -> None:
    seconds = {"fast": [2.0, 2.0, 9.0], "slow": [theirs] * 3}
    ratio = benchmarks.common.speed_ratio(seconds, {"fast": 10, "slow": 5}, "fast", "slow", 3.0)
    assert ratio.value == pytest.approx(theirs / 5 / (2 / 10))
    assert ratio.met is met
    assert ("MISSED" in str(ratio)) is not met
    at_most = benchmarks.common.Ratio("seconds", theirs, 2.0, at_least=False)
    assert at_most.met is not met


@pytest.fixture(scope="module")
def small_run(benchmarks: Namespace) -> Any:
    training = benchmarks.training
    return training.build_ours(training.recipe_for(True, 1, 64, 64), training.CLASSES, torch.device("cpu"))


def test_the_model_by_hand_computes_the_same_losses(benchmarks: Namespace, small_run: Any) -> None:
    training = benchmarks.training
    hand = training.build_by_hand(small_run, residual=True)
    loop = training.loop_by_hand(hand, small_run.recipe, small_run.device)
    batch = training.make_batch(0, size=(64, 64), images=1, objects=3, masks=True)
    losses = []
    for one in (lambda: training.step(small_run, [batch]), lambda: loop(batch)):
        torch.manual_seed(0)
        losses.append(one())
    assert losses[0].keys() == losses[1].keys() >= {"loss", "loss_mask", "loss_box_reg"}
    # Channels-last weights change the order of sums, which may move a proposal across the line of a sample.
    assert losses[0] == pytest.approx(losses[1], rel=1e-3, abs=1e-4)
    # One step each, from the same weights by the same rule.
    for ours, theirs in zip(small_run.detector.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_training_runs(benchmarks: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    ratio = benchmarks.training.main(["--size", "64", "96", "--batch-size", "1", "--rounds", "1", "--warmup", "0"])
    assert ratio.value > 0
    assert "vovnet / torchvision over timm" in capsys.readouterr().out


def test_the_conventions_are_compared_on_the_same_objects(benchmarks: Namespace) -> None:
    legacy = benchmarks.legacy
    _, targets = benchmarks.training.make_batch(0, size=(64, 96), images=1, objects=3, masks=True)
    (target,) = legacy.legacy_targets(targets)
    assert torch.equal(target["boxes"][:, 2:] + 1, targets[0]["boxes"][:, 2:])
    assert len(target["polygons"]) == len(target["labels"]) == 3


def test_the_conventions_benchmark_runs(benchmarks: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--picture", "48", "64", "--min-size", "64", "--size", "64", "96", "--batch-size", "1"]
    ratios = benchmarks.legacy.main(["--mask", *sizes, "--rounds", "1", "--warmup", "0"])
    assert len(ratios) == 2
    assert all(ratio.value > 0 for ratio in ratios)
    assert "legacy / torchvision" in capsys.readouterr().out


def test_generated_pictures_are_sound_data(benchmarks: Namespace, tmp_path: Path) -> None:
    from vovnet.detection.data.coco import CocoDataset

    source = benchmarks.pictures.generate_pictures(tmp_path, count=4)
    dataset = CocoDataset([source], masks=True, training=True)
    assert (len(dataset), dataset.dropped_summary) == (4, "")
    image, target = dataset[0]
    assert image.shape == (3, 480, 640)
    boxes = target["boxes"]
    areas = target["masks"].flatten(1).sum(dim=1)
    assert torch.allclose(areas.float(), target["area"], rtol=0.2)
    assert bool((areas <= 1.1 * (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).all())


def test_the_loader_runs(benchmarks: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--count", "4", "--min-size", "64", "--max-size", "96", "--batch-size", "1"]
    few = ["--workers", "0", "--rounds", "1", "--batches", "2", "--steps", "1", "--detector", "faster"]
    (ratio,) = benchmarks.loader.main([*sizes, *few])
    assert ratio.value > 0
    assert "loader / training step" in capsys.readouterr().out


def test_images_without_annotations_are_refused(benchmarks: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmarks.loader.main(["--images", "somewhere"])
    assert "--annotations" in capsys.readouterr().err


def test_evaluations_give_the_same_numbers(benchmarks: Namespace) -> None:
    evaluation = benchmarks.evaluation
    records = [evaluation.one_process(name, 6, 12, 4) for name in (evaluation.OURS, evaluation.ALONE)]
    assert records[0]["metrics"] == records[1]["metrics"]
    assert 0 < records[0]["metrics"][0] < 1
    assert all(record["peak"] >= record["before"] > 1 for record in records)


def test_evaluation_runs_each_in_its_own_process(benchmarks: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    ratio = benchmarks.evaluation.main(["--images", "4", "--detections", "6", "--objects", "2", "--rounds", "1"])
    assert ratio.value > 0
    assert "equal in all 2 runs" in capsys.readouterr().out


def test_loading_compares_equal_detectors_from_the_cache(
    benchmarks: Namespace, hub: Hub, offline: Callable[[], None]
) -> None:
    from huggingface_hub import constants

    offline()
    loading, cache = benchmarks.loading, Path(constants.HF_HUB_CACHE)
    options = loading.parser().parse_args(["--mask", "--backbone", "vovnet27_slim", "--rounds", "1", "--warmup", "0"])
    ratio = loading.compare(options, cache)
    assert ratio.value > 0
    snapshot = cache / "models--somebody--detector" / "snapshots" / loading.COMMIT
    model = loading.model_of(options)
    load = loading.loaders(snapshot, model)
    assert not any(one().training for one in load.values())
    (snapshot / "model.safetensors").unlink()
    for one in load.values():  # each had read this very file
        with pytest.raises((OSError, ValueError), match=r"model\.safetensors"):
            one()
    assert hub.log() == []


def test_loading_runs_without_a_network(hub: Hub) -> None:
    command = [sys.executable, "-m", "benchmarks.loading", "--backbone", "vovnet27_slim", "--rounds", "1"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    assert "load_detector / by hand" in done.stdout
    assert hub.log() == []
