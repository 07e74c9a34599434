"""Bars of ratios: each layer's, as hard choices, and averaged."""

import itertools

import numpy as np
import pytest
from figure_runs import (
    COLOURS,
    PARTS,
    SCOPES,
    detector,
    heights,
    in_parts,
    moments,
    over_layers,
    panel,
    ticks,
    without_fields,
    ydata,
)
from figure_runs import make as make  # a fixture
from matplotlib.colors import to_hex

from normlab.errors import UserError
from normlab.figures.bars import averages, hard_ratios, layers, overview

pytestmark = pytest.mark.filterwarnings("error")  # matplotlib warns when a layout does not fit


@pytest.mark.parametrize("number", [1, 9, 53])
def test_bars_show_the_last_moment(make, number):
    records = moments(number)
    figure = overview([make(ratios=records)])
    last = records[-1]["layers"]
    for moment in ("mean", "var"):
        expected = {COLOURS[scope]: [row[moment][scope] for row in last] for scope in SCOPES}
        assert heights(panel(figure, moment)) == {c: pytest.approx(h) for c, h in expected.items()}
    bars = panel(figure, "mean").patches
    assert [bool(bar.get_hatch()) for bar in bars[:number]] == [i % 2 == 1 for i in range(number)]


def test_labels_and_marks(make):
    figure = overview([make(ratios=moments(9))])
    axis = panel(figure, "var")
    assert [tick.get_text() for tick in axis.get_xticklabels()] == [str(7 + 8 * i) for i in range(9)]
    assert list(axis.lines[0].get_xdata()) == [4]  # the fifth layer is on a shortcut
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        *("IN", "LN", "BN"),
        *("after a 3×3 convolution", "on a shortcut"),
    ]


def test_history_is_the_average_over_layers(make):
    records = moments(4)
    axis = panel(overview([make(ratios=records)]), "mean over epochs")
    expected = [[np.mean([row["mean"][s] for row in record["layers"]]) for record in records] for s in SCOPES]
    np.testing.assert_allclose(ydata(axis), expected)


def test_layers_of_runs_at_an_epoch(make):
    runs = [make(ratios=moments(6, seed=seed), batch=batch) for seed, batch in enumerate(("8x32", "8x2"))]
    figure = layers(runs, epoch=1.2)
    for i, (run, moment) in enumerate(itertools.product(runs, ("mean", "var"))):
        rows = run.ratios[1]["layers"]
        assert heights(figure.axes[i])[COLOURS["bn"]] == pytest.approx([row[moment]["bn"] for row in rows])
    assert figure.axes[2].get_title("left") == "(8,2): mean µ, epoch 1"


def test_hard_ratios(make):
    records = moments(12, epochs=11)
    figure = hard_ratios([make(ratios=records)])
    for axis, epoch in zip(figure.axes, (3, 6, 9), strict=True):
        rows = records[epoch]["layers"]
        chosen = [[max(SCOPES, key=row[moment].__getitem__) for row in rows] for moment in ("mean", "var")]
        colours = [to_hex(bar.get_facecolor()) for bar in axis.patches if bar.get_height() > 0]
        assert colours == [COLOURS[scope] for scope in chosen[0] + chosen[1]]
        differ = sum(a != b for a, b in zip(*chosen, strict=True))
        assert f"epoch {epoch}: µ and σ² choose differently in {differ} of 12 layers" in axis.get_title("left")
    assert len(hard_ratios([make(ratios=records)], epochs=[1, 10]).axes) == 2


def test_hard_ratios_show_how_near_a_choice_was(make):
    """The top of a bar is the second scope's share of both, in its colour, pale."""
    records = moments(12, epochs=1)
    (axis,) = hard_ratios([make(ratios=records)], epochs=[0]).axes
    tops = [bar for bar in axis.patches if bar.get_height() < 0 and to_hex(bar.get_facecolor()) != "#ffffff"]
    rows = [row[moment] for moment in ("mean", "var") for row in records[0]["layers"]]
    ordered = [sorted(ratio, key=ratio.__getitem__, reverse=True) for ratio in rows]
    assert [to_hex(bar.get_facecolor()) for bar in tops] == [COLOURS[second] for _, second, _ in ordered]
    shares = [
        ratio[second] / (ratio[first] + ratio[second]) for ratio, (first, second, _) in zip(rows, ordered, strict=True)
    ]
    assert [-bar.get_height() / 0.86 for bar in tops] == pytest.approx(shares)
    assert all(bar.get_alpha() < 0.5 for bar in tops)


def test_averages_by_batch_join_seeds(make):
    runs = [
        make(batch=batch, seed=str(seed), ratios=moments(5, seed=i))
        for i, (batch, seed) in enumerate([("8x2", 0), ("8x2", 1), ("8x32", 0)])
    ]
    figure = averages(runs, by="batch")
    of_run = [np.mean([row["var"]["ln"] for row in run.ratios[-1]["layers"]]) for run in runs]
    assert heights(figure.axes[1])[COLOURS["ln"]] == pytest.approx([(of_run[0] + of_run[1]) / 2, of_run[2]])
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["(8,2)", "(8,32)"]


@pytest.mark.parametrize(("depth", "blocks"), [(1, [[0, 1, 2], [3, 4, 5]]), (2, [[i] for i in range(6)])])
def test_averages_by_block(make, depth, blocks):
    run = make(ratios=moments(6))
    axis = averages([run], by="block", block_depth=depth).axes[0]
    rows = run.ratios[-1]["layers"]
    assert heights(axis)[COLOURS["in"]] == pytest.approx([np.mean([rows[i]["mean"]["in"] for i in b]) for b in blocks])


def test_bars_without_receptive_fields(make):
    """The layers' numbers are in their place, and no label promises fields."""
    none, some = make(ratios=without_fields(moments(9))), make(ratios=without_fields(moments(9), keep=5))
    fields = [str(7 + 8 * i) for i in range(5)] + 4 * ["–"]
    for draw, at in ((overview, 1), (layers, 1), (hard_ratios, 2)):
        axis = draw([none]).axes[at]
        assert (ticks(axis), axis.get_xlabel()) == ([str(i) for i in range(1, 10)], "layers in network order")
        axis = draw([some]).axes[at]
        assert ticks(axis) == fields
        assert axis.get_xlabel() == "layers in network order, by receptive field in pixels (–: none)"
    both = layers([none, some]).axes
    assert [bool(axis.get_xlabel()) for axis in both] == [False, True, False, True]
    last = none.ratios[-1]["layers"]
    assert heights(panel(overview([none]), "mean"))[COLOURS["ln"]] == pytest.approx([row["mean"]["ln"] for row in last])
    assert heights(averages([none]).axes[0])[COLOURS["ln"]] == pytest.approx([np.mean([r["mean"]["ln"] for r in last])])


def test_numbers_count_layers_that_have_no_ratios(make):
    records = without_fields(moments(2))
    for record in records:
        record["layers"][1]["index"] = 7
    assert ticks(overview([make(ratios=records)]).axes[1]) == ["1", "7"]


@pytest.mark.parametrize("draw", [overview, layers, hard_ratios])
@pytest.mark.parametrize("sizes", [{"backbone": 5, "fpn": 2, "box": 1, "mask": 1}, {"a": 53, "b": 8, "c": 4, "d": 4}])
def test_bars_of_parts_are_apart(make, draw, sizes):
    number = sum(sizes.values())
    axis = draw([make(ratios=in_parts(moments(number, epochs=11), **sizes))]).axes[0]
    assert [text.get_text() for text in axis.texts] == list(sizes)
    middles = [bar.get_x() + bar.get_width() / 2 for bar in axis.patches[:number]]
    edges = np.cumsum(list(sizes.values()))[:-1]
    steps = np.diff(middles)
    assert all(step > 1.35 if i + 1 in edges else step == pytest.approx(1) for i, step in enumerate(steps))
    assert list(axis.get_xticks()) == pytest.approx(middles)
    for line, first, last in zip(axis.lines[1:], [0, *edges], [*edges, number], strict=True):  # above a part's bars
        assert list(line.get_xdata()) == pytest.approx([middles[first] - 0.43, middles[last - 1] + 0.43])


def test_parts_that_alternate_are_brought_together(make):
    records = moments(4)
    for record in records:
        for row, part in zip(record["layers"], ("a", None, "a", "b"), strict=True):
            row["part"] = part
    axis = panel(overview([make(ratios=records)]), "mean")
    rows = [records[-1]["layers"][i] for i in (0, 2, 1, 3)]
    assert heights(axis)[COLOURS["bn"]] == pytest.approx([row["mean"]["bn"] for row in rows])
    assert ticks(axis) == [str(row["receptive_field"]) for row in rows]
    assert [text.get_text() for text in axis.texts] == ["a", "other", "b"]
    assert [bool(bar.get_hatch()) for bar in axis.patches[:4]] == [False, False, True, True]


def test_history_of_parts(make):
    records = detector()
    figure = overview([make(ratios=records)])
    for moment in ("mean", "var"):
        for name, inside in PARTS.items():
            axis = panel(figure, f"{moment} over epochs" if name == "all" else f"{moment} of {name}")
            np.testing.assert_allclose(ydata(axis), over_layers(records, inside, moment))
    assert len(figure.axes) == 2 + 2 * 5
    one = overview([make(ratios=in_parts(moments(4), backbone=4))])
    assert len(one.axes) == 4 and not panel(one, "mean").texts


def test_averages_by_part(make):
    runs = [make(seed=str(seed), ratios=in_parts(moments(6, seed=seed), backbone=4, head=2)) for seed in range(2)]
    axis = averages(runs, by="part").axes[0]
    of_runs = [[row["mean"]["bn"] for row in run.ratios[-1]["layers"]] for run in runs]
    both = np.mean(of_runs, axis=0)
    assert heights(axis)[COLOURS["bn"]] == pytest.approx([both[:4].mean(), both[4:].mean(), both.mean()])
    assert ticks(axis) == ["backbone", "head", "all layers"]
    with pytest.raises(UserError, match=r"by=part: run-\d+: all its layers are of one part"):
        averages([*runs, make(ratios=moments(6))], by="part")


def test_averages_by_task_have_the_parts_of_models_that_have_several(make):
    """As SN, Fig. 1c: a classifier, the parts of a detector, and a stylizer of which two seeds are one bar."""
    detector = in_parts(moments(6), backbone=4, box=2)
    seeds = [moments(3, seed=seed) for seed in range(2)]
    runs = [
        make(task="classification", ratios=moments(5)),
        make(task="detection", ratios=detector),
        *(make(task="stylization", seed=str(k), ratios=rows) for k, rows in enumerate(seeds)),
    ]
    axis = averages(runs, by="task").axes[0]
    assert ticks(axis) == ["classification", "detection, backbone", "detection, box", "stylization"]
    own = [row["mean"]["in"] for row in detector[-1]["layers"]]
    both = np.mean([row["mean"]["in"] for rows in seeds for row in rows[-1]["layers"]])
    classifier = np.mean([row["mean"]["in"] for row in runs[0].ratios[-1]["layers"]])
    expected = [classifier, np.mean(own[:4]), np.mean(own[4:]), both]
    assert heights(axis)[COLOURS["in"]] == pytest.approx(expected)


def test_scopes_of_one_family_differ_in_colour(make):
    scopes = ("bn", "en1", "en32", "gn8", "gn32")
    figure = overview([make(ratios=moments(1, scopes=scopes))])
    assert len(heights(panel(figure, "mean"))) == 5
