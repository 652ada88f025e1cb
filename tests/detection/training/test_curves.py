"""Curves of a run: written whole, from what the log says, without a display or global state."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vovnet.detection.training.curves import _series, plot_curves, smooth
from vovnet.detection.training.metrics_log import read_metrics
from vovnet.errors import InputError


def write_log(path, evaluations=True):
    lines = []
    for iteration in range(1, 41):
        loss = 2.0 / iteration
        lines.append(json.dumps({"iteration": iteration, "loss": loss, "loss_classifier": loss / 2, "lr": 0.01}))
        if evaluations and iteration % 20 == 0:
            lines.append(json.dumps({"iteration": iteration, "box_ap": 0.4, "box_ap50": 0.7, "box_aps": -1.0}))
    path.write_text("\n".join([*lines, '{"iteration": 41, "lo']))
    return path


@pytest.mark.parametrize("evaluations", [True, False])
def test_curves(tmp_path, evaluations):
    log = write_log(tmp_path / "metrics.jsonl", evaluations)
    plot_curves(log, tmp_path / "curves.png")
    image = np.asarray(Image.open(tmp_path / "curves.png").convert("L"))
    assert image.shape[1] > (1400 if evaluations else 800)
    assert (image < 128).sum() > 1000, "nothing is drawn"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_log_of_evaluations_or_one_line_alone(tmp_path):
    for number, record in enumerate([{"box_ap": 0.5}, {"loss": 0.0, "lr": 0.0}, {"loss": float("inf"), "box_ap": 0.1}]):
        (tmp_path / "m.jsonl").write_text(json.dumps({"iteration": 5, **record}) + "\n")
        plot_curves(tmp_path / "m.jsonl", tmp_path / f"{number}.png")


@pytest.mark.parametrize("text", ["", "nonsense\n", '{"iteration": 3, "lr": 0.1}\n', "[1, 2]\n"])
def test_nothing_to_plot_is_said(tmp_path, text):
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"no losses and no AP"):
        plot_curves(tmp_path / "m.jsonl", tmp_path / "curves.png")
    with pytest.raises(InputError, match="cannot be read"):
        plot_curves(tmp_path / "absent.jsonl", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_series_leave_out_what_is_no_number(tmp_path):
    records = [{"iteration": 1, "loss": float("nan")}, {"iteration": 2, "loss": 3}, {"iteration": 3, "loss": -1}]
    assert _series(records, lambda key: key == "loss") == {"loss": ([2], [3.0])}
    assert len(read_metrics(write_log(tmp_path / "m.jsonl"))) == 42


def test_smoothing_keeps_constants_and_length():
    assert smooth([2.0] * 30) == pytest.approx([2.0] * 30)
    assert smooth([5.0]) == [5.0]
    noisy = np.random.default_rng(0).normal(1, 0.3, 500)
    assert np.std(smooth(noisy.tolist())[100:]) < 0.15


def test_pyplot_is_left_alone(repository, tmp_path):
    program = (
        "import sys; from vovnet.detection.training.curves import plot_curves; "
        f"plot_curves({str(write_log(tmp_path / 'm.jsonl'))!r}, {str(tmp_path / 'c.png')!r}); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    environment = {"PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, env=environment, check=False)
    assert done.returncode == 0
