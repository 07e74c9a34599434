import math

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from normlab.report.figures import ratio_figure, training_figure
from normlab.report.style import save

pytestmark = pytest.mark.filterwarnings("error")  # matplotlib warns when a layout does not fit


def layer(index: int, mean: dict[str, float], var: dict[str, float], kernel: int = 1, shortcut: bool = False) -> dict:
    return {
        "layer": f"bn{index}",
        "index": index,
        "kernel_size": [kernel, kernel],
        "shortcut": shortcut,
        "receptive_field": 3 * index,
        "mean": mean,
        "var": var,
    }


def records(layers: int, epochs: int = 3) -> list[dict]:
    def rows(epoch: int) -> list[dict]:
        bn = 0.3 + 0.1 * epoch
        ratio = {"in": 0.9 - bn, "ln": 0.1, "bn": bn}
        return [layer(i, ratio, {"bn": 1.0}, (1, 3)[i % 2], shortcut=i % 5 == 0) for i in range(1, layers + 1)]

    return [{"epoch": epoch, "step": 10 * epoch, "layers": rows(epoch)} for epoch in range(epochs)]


def panel(figure: Figure, label: str):
    (axis,) = (axis for axis in figure.axes if axis.get_label() == label)
    return axis


@pytest.mark.parametrize("layers", [1, 9, 53])
def test_bars_show_the_last_record(layers):
    bars = panel(ratio_figure(records(layers)), "mean").patches
    heights = {to_hex(colour): 0.0 for colour in ("#0072B2", "#D55E00", "#009E73")}
    assert len(bars) == 3 * layers
    for bar in bars:
        heights[to_hex(bar.get_facecolor())] += bar.get_height() / layers
    assert list(heights.values()) == pytest.approx([0.4, 0.1, 0.5])
    assert [bool(bar.get_hatch()) for bar in bars[:layers]] == [i % 2 == 1 for i in range(1, layers + 1)]


def test_labels_and_marks():
    figure = ratio_figure(records(9))
    axis = panel(figure, "var")
    assert [tick.get_text() for tick in axis.get_xticklabels()] == [str(3 * i) for i in range(1, 10)]
    assert list(axis.lines[0].get_xdata()) == [4]  # the fifth layer is on a shortcut
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        *("IN", "LN", "BN"),
        *("after a 3×3 convolution", "on a shortcut"),
    ]


def test_history_is_the_average_over_layers():
    axis = panel(ratio_figure(records(4)), "mean over epochs")
    assert list(axis.lines[2].get_xdata()) == [0, 1, 2]
    assert list(axis.lines[2].get_ydata()) == pytest.approx([0.3, 0.4, 0.5])


def test_scopes_of_one_family_differ_in_colour():
    ratios = {"bn": 0.2, "en1": 0.2, "en32": 0.2, "gn8": 0.2, "gn32": 0.2}
    figure = ratio_figure([{"epoch": 0, "step": 0, "layers": [layer(1, ratios, ratios)]}])
    assert len({bar.get_facecolor() for bar in panel(figure, "mean").patches}) == 5


def test_nothing_is_cut_off(tmp_path):
    """With many scopes, few and many layers, all text lies inside the picture."""
    scopes = ("in", "ln", "bn", "gn8", "gn32", "en1", "en8", "en32")
    ratio = dict.fromkeys(scopes, 1 / 8)
    for layers in (1, 53):
        rows = [layer(i, ratio, ratio, 3, shortcut=layers > 1) for i in range(1, layers + 1)]
        figure = ratio_figure([{"epoch": 0, "step": 0, "layers": rows}])
        save(figure, tmp_path / "ratios.png")
        needed, whole = figure.get_tightbbox(), figure.bbox_inches
        assert needed.x0 >= 0 and needed.y0 >= 0 and needed.x1 <= whole.x1 and needed.y1 <= whole.y1


def test_training_curves():
    rows = [{"step": s, "epoch": s / 2, "train/loss": float(s), "lr": 0.1} for s in range(4)]
    rows += [{"step": 3, "epoch": 2, "val/top1": 97.5, "val/top5": 99.0}]
    loss, top1 = training_figure(rows).axes
    (line,) = loss.lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([0, 0.5, 1, 1.5], [0, 1, 2, 3])
    (line,) = top1.lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([2], [97.5])
    assert top1.get_ylabel() == "top-1 (%)"


@pytest.mark.parametrize("losses", [[1.0, math.inf, math.nan, None], [math.nan], [None], []])
def test_training_curves_of_a_diverged_run(tmp_path, losses):
    rows = [{"step": s, "epoch": s / 10, "train/loss": loss} for s, loss in enumerate(losses)]
    save(training_figure(rows), tmp_path / "new" / "training.png")
    assert imread(tmp_path / "new" / "training.png").ndim == 3


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        save(ratio_figure(records(2)), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
