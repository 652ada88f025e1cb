"""The reference's numbers, and detectors with the checkpoints that its rule makes."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

Row = tuple[str, str, str, str, bool]
"""What is compared, the expected and the found value, their difference, and whether it is within the bound."""


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """The folder of golden numbers."""
    return shared / "reference" / "golden"


@pytest.fixture(scope="session")
def units(golden: Path) -> dict[str, Any]:
    """The reference's unit cases: arrays as tensors, the rest as JSON gives it."""
    arrays = np.load(golden / "units.npz")
    return {
        **json.loads((golden / "units.json").read_text()),
        **{key: torch.from_numpy(arrays[key]) for key in arrays.files},
    }


@pytest.fixture(scope="session")
def rule(shared: Path) -> Callable[[str, list[int]], np.ndarray[Any, Any]]:
    """The rule that makes a checkpoint's array from its key and shape."""
    spec = importlib.util.spec_from_file_location("reference_rule", shared / "reference" / "rule.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make


@pytest.fixture(scope="session")
def converted(
    golden: Path, rule: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A configuration's name -> the detector folder that ``convert`` makes of its rule-made published file."""
    from vovnet.hub import convert_checkpoint

    made: dict[str, Path] = {}

    def make(config: str) -> Path:
        if config not in made:
            entries = json.loads((golden / f"keys_{config}.json").read_text())["state_dict"]
            state = {f"module.{key}": torch.from_numpy(rule(key, shape)) for key, shape, *_ in entries}
            folder = tmp_path_factory.mktemp(config)
            torch.save({"model": state, "iteration": 180000}, folder / "published.pth")
            convert_checkpoint(folder / "published.pth", folder / "detector")
            (folder / "published.pth").unlink()
            made[config] = folder / "detector"
        return made[config]

    return make


class Table:
    """Rows of a comparison, printed when the tests are over."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.exact = True
        """True if this machine computes convolutions as the reference's machine did; see ``same_arithmetic``."""

    def values(
        self,
        what: str,
        expected: Any,
        got: Any,
        *,
        relative: float = 0.0,
        absolute: float = 0.0,
        otherwise: float | None = None,
    ) -> bool:
        """Compare arrays element by element, hold the difference to a bound, and return True if they are equal.

        Args:
            what: The row's name.
            expected: The reference's numbers.
            got: Our numbers.
            relative: How much they may differ. If all bounds are 0, they must be equal to the last bit.
            absolute: How much more they may differ, in their own unit.
            otherwise: Used in place of ``absolute`` on a machine that is not ``exact``.
        """
        if otherwise is not None and not self.exact:
            absolute = otherwise
        expected, got = np.asarray(expected, dtype=np.float64), np.asarray(got, dtype=np.float64)
        if expected.shape != got.shape:
            self.rows.append((what, f"shape {expected.shape}", f"shape {got.shape}", "shape", False))
            return False
        difference = np.abs(expected - got)
        worst = float(difference.max(initial=0.0))
        scale = float(np.abs(expected).max(initial=0.0))
        within = bool((difference <= absolute + relative * np.maximum(np.abs(expected), 1e-3 * scale)).all())
        shown = "equal" if worst == 0 else f"{worst:.2g} (of {scale:.3g})"
        self.rows.append((what, _short(expected), _short(got), shown, within))
        return worst == 0

    def same(self, what: str, expected: object, got: object) -> None:
        """Compare two values for equality."""
        equal = expected == got
        self.rows.append((what, _cut(str(expected)), _cut(str(got)), "equal" if equal else "other", equal))

    def check(self, start: int = 0) -> None:
        """Fail with the rows from ``start`` on that are out of bounds."""
        wrong = [row for row in self.rows[start:] if not row[-1]]
        assert not wrong, "\n".join(" | ".join(row[:4]) for row in wrong)


def _short(values: np.ndarray[Any, Any]) -> str:
    if values.ndim == 0 or values.size == 1:
        return f"{values.item():.9g}"
    return f"{values.size} values, mean {values.mean():.6g}"


def _cut(text: str, length: int = 34) -> str:
    return text if len(text) <= length else f"{text[: length - 2]} …"


TABLE = Table()


@pytest.fixture(scope="session")
def same_arithmetic(golden: Path, rule: Callable[..., Any]) -> bool:
    """True if plain calls of torch, without any of our code, give the reference's C3 to the last bit.

    Another processor, library or number of threads may add floats in another order, which changes the last bits of
    everything that follows. C3 needs only the forward convolutions. Nothing is said about the exponential function, by
    which boxes are decoded, or about gradients: the tests look at those themselves.
    """

    def layer(x: Tensor, name: str, outputs: int, kernel: int = 3, stride: int = 1) -> Tensor:
        weight = torch.from_numpy(rule(f"{name}/conv.weight", [outputs, x.shape[1], kernel, kernel]))
        gamma, beta, mean, variance = (
            torch.from_numpy(rule(f"{name}/norm.{leaf}", [outputs]))[:, None, None]
            for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma * variance.rsqrt()
        return (F.conv2d(x, weight, None, stride, kernel // 2) * scale + (beta - mean * scale)).relu()

    def block(x: Tensor, stage: int, middle: int, outputs: int) -> Tensor:
        name = f"backbone.body.stage{stage}.OSA{stage}_1"
        parts = [x]
        for i in range(5):
            parts.append(layer(parts[-1], f"{name}.layers.{i}.OSA{stage}_1_{i}", middle))
        return layer(torch.cat(parts, dim=1), f"{name}.concat.OSA{stage}_1_concat", outputs, kernel=1)

    image = Image.open(golden / "images" / "synth.png").convert("RGB").resize((1199, 800), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    x = pixels.flip(0) * 255 - torch.tensor([102.9801, 115.9465, 122.7717])[:, None, None]
    x = F.pad(x, (0, 17))[None]
    former = torch.get_num_threads()
    torch.set_num_threads(2)
    for number, (outputs, stride) in enumerate(((64, 2), (64, 1), (128, 2)), start=1):
        x = layer(x, f"backbone.body.stem.stem_{number}", outputs, stride=stride)
    x = block(x, 2, 128, 256)
    x = block(F.max_pool2d(x, 3, 2, ceil_mode=True), 3, 160, 512)
    torch.set_num_threads(former)
    flat = x.flatten().numpy()
    places = np.linspace(0, flat.size - 1, 1024).astype(int)
    return bool(np.array_equal(flat[places], np.load(golden / "test_frcn_v39_synth.npz")["C3.sample"]))


@pytest.fixture
def table(same_arithmetic: bool) -> Iterator[Table]:
    """The table of the whole session; what a test adds is checked at its end."""
    start = len(TABLE.rows)
    TABLE.exact = same_arithmetic
    yield TABLE
    TABLE.check(start)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the comparison where it was asked for: ``make reproduce``."""
    if terminalreporter.config.option.markexpr != "reproduce" or not TABLE.rows:
        return
    header = ("what", "expected", "got", "difference")
    widths = [max(len(header[i]), *(len(row[i]) for row in TABLE.rows)) for i in range(4)]
    terminalreporter.section("comparison with the reference")
    if not TABLE.exact:
        terminalreporter.write_line("this machine adds floats in another order than the reference's: wider bounds")
    for row in [header, *(row[:4] for row in TABLE.rows)]:
        terminalreporter.write_line("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)))
