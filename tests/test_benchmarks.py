"""The benchmarks run at tiny sizes, and compare what they say they compare."""

import importlib.util
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

from vovnet.detection.config.detectors import DETECTORS

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[Namespace]:
    """The benchmarks' modules, imported from the repository's root."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        names = (
            "batches",
            "checking",
            "common",
            "evaluation",
            "input_folding",
            "legacy",
            "loader",
            "loading",
            "masks",
            "memory",
            "operators",
            "images",
            "tiles",
            "training",
        )
        yield Namespace(**{name: import_module(f"benchmarks.{name}") for name in names})
        for name in names:
            sys.modules.pop(f"benchmarks.{name}")


@pytest.mark.parametrize(("theirs", "met"), [(4.0, True), (1.0, False)])
def test_a_ratio_is_of_rates_and_knows_its_goal(benchmarks: Namespace, theirs: float, met: bool) -> None:
    seconds = {"fast": [2.0, 2.0, 9.0], "slow": [theirs] * 3}
    ratio = benchmarks.common.speed_ratio(seconds, {"fast": 10, "slow": 5}, "fast", "slow", 3.0)
    assert ratio.value == pytest.approx(theirs / 5 / (2 / 10))
    assert ratio.met is met
    assert ("MISSED" in str(ratio)) is not met
    at_most = benchmarks.common.Ratio("seconds", theirs, 2.0, at_least=False)
    assert at_most.met is not met


def small_run(benchmarks: Namespace, detector: str) -> Any:
    training = benchmarks.training
    recipe = training.recipe_for(detector, 1, 64, 64)
    return training.build_ours(recipe, benchmarks.batches.CLASSES, torch.device("cpu"))


@pytest.mark.parametrize("detector", DETECTORS)
def test_the_model_by_hand_computes_the_same_losses(benchmarks: Namespace, detector: str) -> None:
    training, run = benchmarks.training, small_run(benchmarks, detector)
    hand = training.build_by_hand(run, residual=True)
    loop = training.loop_by_hand(hand, run.recipe, run.device)
    batch = benchmarks.batches.make_batch(
        0, size=(64, 64), images=1, objects=3, masks=True, keypoints=training.KEYPOINTS
    )
    losses = []
    for one in (lambda: training.step(run, [batch]), lambda: loop(batch)):
        torch.manual_seed(0)
        losses.append(one())
    assert losses[0].keys() == losses[1].keys() > {"loss"}
    # Channels-last weights change the order of sums, which may move a proposal across the line of a sample.
    assert losses[0] == pytest.approx(losses[1], rel=1e-3, abs=1e-4)
    # One step each, from the same weights by the same rule.
    for ours, theirs in zip(run.detector.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_training_runs(benchmarks: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    ratio = benchmarks.training.main(["--size", "64", "96", "--batch-size", "1", "--rounds", "1", "--warmup", "0"])
    assert ratio.value > 0
    assert "vovnet / torchvision over timm" in capsys.readouterr().out


def test_the_conventions_are_compared_on_the_same_objects(benchmarks: Namespace) -> None:
    legacy = benchmarks.legacy
    _, targets = benchmarks.batches.make_batch(0, size=(64, 96), images=1, objects=3, masks=True)
    (target,) = legacy.legacy_targets(targets)
    assert torch.equal(target["boxes"][:, 2:] + 1, targets[0]["boxes"][:, 2:])
    assert len(target["polygons"]) == len(target["labels"]) == 3


@pytest.mark.slow
def test_the_conventions_benchmark_runs(benchmarks: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--image", "48", "64", "--min-size", "64", "--size", "64", "96", "--batch-size", "1"]
    ratios = benchmarks.legacy.main(["--mask", *sizes, "--rounds", "1", "--warmup", "0"])
    assert len(ratios) == 2
    assert all(ratio.value > 0 for ratio in ratios)
    assert "legacy / torchvision" in capsys.readouterr().out


def test_generated_images_are_sound_data(benchmarks: Namespace, tmp_path: Path) -> None:
    from vovnet.detection.data.coco import CocoDataset

    source = benchmarks.images.generate_images(tmp_path, count=4)
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
    if importlib.util.find_spec("faster_coco_eval"):
        faster = evaluation.one_process(evaluation.FASTER, 6, 12, 4)
        assert faster["metrics"] == pytest.approx(records[0]["metrics"], abs=1e-12)
    assert 0 < records[0]["metrics"][0] < 1
    assert all(record["peak"] >= record["before"] > 1 for record in records)


@pytest.mark.slow
def test_evaluation_runs_each_in_its_own_process(benchmarks: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    ratio = benchmarks.evaluation.main(["--images", "4", "--detections", "6", "--objects", "2", "--rounds", "1"])
    assert ratio.value > 0
    assert "twelve numbers are equal" in capsys.readouterr().out


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


@pytest.mark.slow
def test_loading_runs_without_a_network(hub: Hub) -> None:
    command = [sys.executable, "-m", "benchmarks.loading", "--backbone", "vovnet27_slim", "--rounds", "1"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    assert "load_detector / by hand" in done.stdout
    assert hub.log() == []


def test_the_operators_benchmark_needs_a_gpu(benchmarks: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU") as stop:
        benchmarks.operators.main([])
    assert isinstance(stop.value.code, str)  # printed to stderr; the exit code is 1
    assert "\n" not in stop.value.code


@pytest.mark.parametrize("size", [(800, 1344), (811, 1331)])
def test_the_aggregations_are_those_of_the_network(benchmarks: Namespace, size: tuple[int, int]) -> None:
    import timm

    import vovnet  # noqa: F401

    with torch.device("meta"):
        model: Any = timm.create_model("vovnet39")
    found: list[Any] = []
    for stage in model.stages:
        for block in stage.blocks:
            block.conv_concat.register_forward_hook(
                lambda _, given, out, identity=block.identity: found.append((given[0].shape, out.shape, identity))
            )
    model(torch.empty(2, 3, *size, device="meta"))
    cases = benchmarks.operators.aggregations(2, size)
    assert len({case.name for case in cases}) == len(cases) == 6
    for case, (given, out, identity) in zip(cases, found, strict=True):
        n, h, w = case.shape
        assert (n, sum(case.widths), h, w) == given
        assert (n, case.out_channels, h, w) == out
        assert case.residual == identity


def test_bytes_and_operations_by_hand(benchmarks: Namespace) -> None:
    operators = benchmarks.operators
    case = operators.Aggregation("a stage", (1, 2, 4), (8, 16), 32, True)
    # 8 pixels, 24 channels to 32, of 2 bytes: inputs 384, weight and bias 1600, output 512; 32 bytes of bits.
    assert case.operations(False) == 8 * 2 * 24 * 32
    assert case.operations(True) == 3 * case.operations(False)
    forward = 384 + 1600 + 512
    assert case.least_bytes(2, False) == forward
    assert case.least_bytes(2, True) == forward + 32 + (512 + 32 + 384 + 1600) + (384 + 1600)
    timings = [
        operators.Timing(case, "fp16", False, "one", [2e-6, 1e-6, 9e-6]),
        operators.Timing(case, "fp16", False, "another", [5e-6]),
    ]
    assert timings[0].bandwidth == pytest.approx(forward / 2e-6)
    assert timings[0].rate == pytest.approx(12288 / 2e-6)
    _, heading, *rows = operators.table(timings).splitlines()
    assert heading == "a stage: 1x2x4, 24 -> 32 + residual"
    assert [row.split() for row in rows] == [
        ["one", "2.0", "1.0", "1.2", "0.01", "1.00"],
        ["another", "5.0", "5.0", "0.5", "0.00", "2.50"],
    ]


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def stand_in(operators: Any) -> Any:
    """Return a device whose clock always returns a microsecond."""

    def clock(work: Callable[[], object]) -> float:
        work()
        return 1e-6

    return operators.Gpu(torch.device("cpu"), 0, clock)


needs_precision = pytest.mark.skipif(
    not hasattr(torch.backends.cudnn, "conv"), reason="the operators' benchmark needs PyTorch 2.9 or later"
)


@needs_precision
@pytest.mark.usefixtures("no_compiler")
def test_all_ways_of_the_operators_benchmark_compute_the_same(
    benchmarks: Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    operators = benchmarks.operators
    options = operators.parser().parse_args(["--size", "64", "96", "--rounds", "2", "--warmup", "1"])
    timings = operators.compare(options, stand_in(operators), ["bf16", "fp32"])
    assert len(timings) == 2 * 2 * 6 * 4
    assert all(timing.seconds == [1e-6, 1e-6] for timing in timings)
    shown = capsys.readouterr().out
    assert "bf16, forward and backward, 1 x 64x96" in shown
    assert shown.count("stage 4, block 2: 1x4x6, 1728 -> 768 + residual") == 4
    assert shown.count("osa_aggregate (no kernel: plain PyTorch)") == 2 * 2 * 6


@needs_precision
@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("fault", ["value", "gradient", "nan"])
def test_a_way_that_computes_something_else_is_not_measured(
    benchmarks: Namespace, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    operators, right = benchmarks.operators, benchmarks.operators.fused

    def wrong(*arguments: Any) -> torch.Tensor:
        out = right(*arguments)
        changed = {"value": out * 1.1, "gradient": out.detach() + 0.9 * (out - out.detach()), "nan": out * float("nan")}
        return changed[fault]

    monkeypatch.setattr(operators, "fused", wrong)
    options = operators.parser().parse_args(["--size", "32", "32", "--rounds", "1", "--warmup", "0"])
    with pytest.raises(RuntimeError, match="osa_aggregate differs from eager in fp32"):
        operators.compare(options, stand_in(operators), ["fp32"])


def test_only_what_the_gpu_computes_with_is_measured(benchmarks: Namespace) -> None:
    kinds = ["fp16", "bf16", "fp32", "tf32"]
    usable = benchmarks.operators.usable_kinds
    assert usable(kinds, (7, 5), True) == ["fp16", "fp32"]
    assert usable(kinds, (8, 0), True) == kinds
    assert usable(kinds, (9, 0), False) == ["fp16", "bf16", "fp32"]


@needs_precision
def test_the_precision_is_set_and_given_back(benchmarks: Namespace) -> None:
    from vovnet.ops.cuda import _tf32

    conv, matmul = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = conv.fp32_precision, matmul.fp32_precision
    for kind in ("fp32", "tf32"):
        with benchmarks.operators.precision(kind):
            assert _tf32() == (kind == "tf32")
            # Reading the older settings raises if they contradict the newer ones, as PyTorch's own code would find out.
            assert torch.backends.cudnn.allow_tf32 == matmul.allow_tf32 == (kind == "tf32")
    assert (conv.fp32_precision, matmul.fp32_precision) == before


def test_kept_bytes_are_those_of_a_network_that_can_be_counted_by_hand(benchmarks: Namespace) -> None:
    kept_bytes = benchmarks.memory.kept_bytes
    x = torch.rand(2, 3, 8, 8)
    conv, relu, last = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 5, 1)
    a_map = 2 * 4 * 8 * 8 * 4  # float32
    assert kept_bytes(conv, x) == 0  # its input and its weight are there anyway
    assert kept_bytes(torch.nn.Sequential(conv, relu), x) == a_map
    assert kept_bytes(torch.nn.Sequential(conv, relu, last), x) == a_map  # by two, in one memory
    norm = torch.nn.BatchNorm2d(4).eval()
    assert kept_bytes(torch.nn.Sequential(conv, norm, relu, last), x) == 2 * a_map
    pool = torch.nn.MaxPool2d(2)  # of its outputs' indices, 8 bytes each
    assert kept_bytes(torch.nn.Sequential(conv, pool), x) == a_map + a_map // 4 * 2


def test_what_a_dropped_graph_kept_is_not_counted(benchmarks: Namespace) -> None:
    x = torch.rand(4, requires_grad=True)
    with benchmarks.memory.Kept([x]) as kept:
        first = x.exp()
        second = x.exp()
        assert kept.bytes() == 32
        del first
    assert kept.bytes() == 16
    second.sum().backward()
    assert torch.equal(x.grad, second)


@pytest.mark.parametrize("memory", [None, "normal", "low"])
def test_fake_and_real_tensors_count_alike(benchmarks: Namespace, memory: str | None) -> None:
    module = benchmarks.memory
    network = module.Network("vovnet27_slim", memory)
    real = module.backbone_memory(network, (64, 96), real=True)
    assert 0 < real.activations < real.peak
    model = module.build_backbone(network)
    assert module.kept_bytes(model, torch.rand(1, 3, 64, 96)) == real.kept
    with module.fake(model):
        x = torch.rand(1, 3, 64, 96)
        assert module.measure(model, [x], lambda: module.total(model(x))) == real
        assert module.kept_bytes(model, torch.rand(1, 3, 64, 96)) == real.kept


def test_the_goals_of_memory_are_met(benchmarks: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    ratios = benchmarks.memory.main(["--networks", "vovnet39", "--of", "backbone"])  # counted, so the same anywhere
    assert [ratio.bound for ratio in ratios] == [0.58, 0.40]
    assert all(ratio.met for ratio in ratios)
    rows = capsys.readouterr().out.split("of it activations\n")[1].splitlines()[:5]
    timm, plain, normal, low, checkpointed = (float(row.split("blocks")[-1].split()[-4]) for row in rows)
    assert checkpointed < low < normal < timm < plain


def test_times_of_rounds_make_the_ratio(benchmarks: Namespace) -> None:
    ratio = benchmarks.memory.time_ratio([1.0, 3.0, 8.0], [2.0, 4.0, 4.0], "ours", "theirs", "low")
    assert (ratio.value, ratio.bound, ratio.met) == (0.75, 1.08, True)
    assert not benchmarks.memory.time_ratio([5.0], [4.0], "ours", "theirs", "low").met


def test_a_detector_keeps_less_by_memory_efficient(benchmarks: Namespace) -> None:
    module = benchmarks.memory
    plain, ours = (
        module.detector_memory(module.Network("vovnet27_slim", memory), (64, 64)) for memory in (None, "low")
    )
    assert 0 < ours.kept < plain.kept < plain.peak


def test_the_times_of_saving_memory_are_compared(benchmarks: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--size", "64", "64", "--rounds", "1", "--warmup", "0"]
    ratios = benchmarks.memory.main(["--of", *few, "--time", "--channels-last"])
    assert [ratio.bound for ratio in ratios] == [1.0, 1.08]
    assert all(ratio.value > 0 for ratio in ratios)
    assert "seconds, timm vovnet39a, low / timm vovnet39a" in capsys.readouterr().out


@pytest.mark.parametrize("way", ["predict", "tiles", "drawing", "video", "evaluate", "torchvision"])
def test_every_way_of_masks_runs(
    benchmarks: Namespace, way: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["backbone=vovnet27_slim", "fpn_channels=8", "min_size=64", "max_size=64", "box_representation_size=16"]
    monkeypatch.setattr(benchmarks.masks, "MODEL", [*benchmarks.masks.MODEL, *(f"model.{one}" for one in small)])
    if way == "video":
        pytest.importorskip("av")
    small_run = ["--size", "60x40", "--whole-image", "--frames", "3", "--in-this-process"]
    assert benchmarks.masks.main([*small_run, "--ways", way]) == 0
    count, peak = capsys.readouterr().out.split()[-2:]
    assert int(count) == 3 if way == "video" else int(count) > 50
    assert float(peak) > 0


def test_tiles_are_compared_with_sahi(benchmarks: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--size", "96", "128", "--tile", "64", "--rounds", "1"]
    ratios = benchmarks.tiles.main(small)
    out = capsys.readouterr().out
    if importlib.util.find_spec("sahi") is None:
        assert "pip install sahi" in out
        assert ratios == []
    else:
        assert [ratio.name for ratio in ratios] == ["auto / SAHI", "nms / SAHI", "nmm / SAHI"]
        assert "objects: auto" in out


@pytest.mark.parametrize(("more", "code"), [(0.5, 0), (0.9, 1)])
def test_the_memory_of_masks_has_a_goal(
    benchmarks: Namespace, more: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[str], **options: Any) -> Any:
        return Namespace(returncode=0, stdout=f"100 {1.0 if command[-1] == 'detector' else 1.0 + more}\n")

    monkeypatch.setattr(benchmarks.masks.subprocess, "run", run)
    assert benchmarks.masks.main(["--ways", "predict"]) == code
    assert f"{more:+6.2f} (100 detections)" in capsys.readouterr().out


def test_checking_is_compared_with_loading(
    benchmarks: Namespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checked: list[int] = []
    check_sample = benchmarks.checking.check_sample
    monkeypatch.setattr(
        benchmarks.checking, "check_sample", lambda *given: (checked.append(given[1]), check_sample(*given))
    )
    for goal, code in ((1e9, 0), (1e-9, 1)):
        monkeypatch.setattr(benchmarks.checking, "GOAL", goal)
        assert benchmarks.checking.main(["--size", "64x48", "--count", "2", "--rounds", "1"]) == code
    assert checked == [0, 1] * 8  # twice boxes and masks, each once before the measured round
    out = capsys.readouterr().out
    assert out.count("boxes and masks: load ") == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", [[], ["--legacy"], ["--fuse"]], ids=str)
def test_masks_of_twelve_megapixels(benchmarks: Namespace, kind: list[str]) -> None:
    """Each process is new: ``ru_maxrss`` is its peak."""
    assert benchmarks.masks.main(["--size", "4000x3000", "--whole-image", *kind, "--ways", "predict", "evaluate"]) == 0


def test_a_difference_of_maps_by_hand(benchmarks: Namespace) -> None:
    folding = benchmarks.input_folding
    expected = torch.ones(1, 2, 8, 6)
    expected[0, 1, 4, 3] = -4.0
    found = expected.clone()
    assert folding.difference(found, expected) == folding.Difference(0.0, 0, 6)
    found[0, 1, 2, 1] += 0.4  # two cells from the left
    found[0, 0, 4, 2] += 0.0039  # three cells, and too little to count
    assert folding.difference(found, expected) == folding.Difference(pytest.approx(0.1), 2, 6)


def test_a_folded_input_changes_the_border_alone(benchmarks: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    folding = benchmarks.input_folding
    found = folding.main(["--networks", "V-39", "R-50", "--sizes", "64"])
    for maps, logits in found.values():
        assert [one.width for one in maps] == [16, 8, 4, 2]
        assert all(0 < one.largest < 0.1 for one in maps[:2])
        assert 0 < maps[0].cells < 8
        assert logits > 0
    assert "| R-50 | 64 |" in capsys.readouterr().out
