"""Any text as a label: in plots, in drawings, and what happens where a plot fails."""

import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from vovnet.detection.evaluation.coco_eval import METRICS
from vovnet.detection.evaluation.plots import plot_precision_recall
from vovnet.detection.evaluation.tables import format_metrics
from vovnet.detection.figures import new_figure, warn_without_plot
from vovnet.errors import InputError
from vovnet.results.drawing import draw_detections
from vovnet.results.lettering import drawable

NAMES = ["A$10^$", "$x", "stop\nsign", "_hidden", "汽车", "%", "100%s", "<b>", "x" * 300, "", " ", "😀", "\x1b[31m"]
NAMES += ["\u202eabc", "\\frac{", "e\u0301", "\t", "{0}", "#", "العربية", "\x00", "a\r\nb", "null"]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def test_names_become_short_lines_of_letters_that_the_font_has():
    assert [drawable(name) for name in ("A$10^$", "stop\nsign", "_x", "汽", "")] == [
        "A$10^$",
        "stop sign",
        "_x",
        r"\u6c7d",
        '""',
    ]
    assert len(drawable("x" * 300)) == 40
    assert drawable("a" * 30 + "1" * 30) != drawable("a" * 30 + "2" * 30)


@settings(max_examples=60, deadline=None)
@given(ANY_TEXT)
@example("\ud800")
def test_any_text_is_a_label_of_a_drawing(name):
    detection = {"bbox": [2, 2, 9, 9], "score": 0.9, "category_id": 1, "category": name}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = draw_detections(Image.new("RGB", (60, 40)), [detection])
    assert drawn.size == (60, 40)


def precision(classes):
    return np.full((10, 101, classes), 0.5)


def plotted_without_warning(path, names):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_precision_recall({"bbox": precision(len(names))}, path, names)
    return Image.open(path)


def test_names_of_every_kind_are_in_the_legend(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(
        "vovnet.detection.evaluation.plots.save_figure",
        lambda figure, out: shown.append([text.get_text() for text in figure.axes[0].get_legend().get_texts()]),
    )
    for start in range(0, len(NAMES), 8):
        names = NAMES[start : start + 8]
        plot_precision_recall({"bbox": precision(len(names))}, tmp_path / "p.png", names)
        assert shown[-1][: len(names)] == [f"{drawable(name)}, IoU 0.50" for name in names]


def test_names_of_every_kind_are_plotted(tmp_path):
    for start in range(0, len(NAMES), 8):
        assert plotted_without_warning(tmp_path / "p.png", NAMES[start : start + 8]).width > 600


@settings(max_examples=5, deadline=None)
@given(st.lists(ANY_TEXT, min_size=6, max_size=10))
def test_any_texts_are_names_of_a_plot(tmp_path_factory, names):
    plotted_without_warning(tmp_path_factory.mktemp("plot") / "p.png", names)


@given(st.lists(st.text(st.characters()), min_size=1, max_size=4))
def test_any_texts_are_names_of_a_table(names):
    numbers = dict.fromkeys(("AP", "AP50"), 0.5)
    metrics = {
        "bbox": dict.fromkeys(METRICS, 0.25),
        "per_class": {"bbox": [{"id": 1, "name": name, "objects": 3, **numbers} for name in names]},
    }
    lines = format_metrics(metrics).split("\n")
    assert len(lines) == 4 + len(names)
    assert all(line.isprintable() and line.endswith("3      50.0  50.0") for line in lines[4:])


@pytest.mark.parametrize(
    "error", [ValueError("a\nb"), InputError("no matplotlib"), SyntaxError("x"), OSError(28, "full")]
)
def test_a_plot_that_fails_is_a_warning_and_leaves_no_older_plot(tmp_path, error):
    old = tmp_path / "plot.png"
    old.write_bytes(b"an earlier run's")
    with pytest.warns(RuntimeWarning, match="plot.png") as caught, warn_without_plot(old):
        raise error
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert caught[0].filename == __file__
    assert not old.exists()


@pytest.mark.parametrize("error", [ImportError("broken"), RuntimeError("abi"), AttributeError("numpy"), OSError("lib")])
def test_a_broken_matplotlib_is_one_line(monkeypatch, error):
    import builtins

    real = builtins.__import__

    def broken(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise error
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(InputError, match="matplotlib"):
        new_figure(2, 2)
