"""Figures of runs: what is drawn is what the records say, and every label can be read."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from figure_runs import (
    PARTS,
    SCOPES,
    apart,
    detector,
    in_parts,
    moments,
    of_range,
    over_layers,
    titles,
    without_fields,
    ydata,
)
from figure_runs import make as make  # a fixture
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text
from safetensors.numpy import save_file

from normlab.config import choices
from normlab.errors import UserError
from normlab.figures.bars import averages, hard_ratios, layers, overview
from normlab.figures.curves import ratio_curves, ratio_parts, ratio_ranges, run_divergence
from normlab.figures.geometry import angles, expected_std, geometry, lengths
from normlab.figures.gradients import reduction
from normlab.figures.statistics import evolution, fluctuation
from normlab.figures.style import at_print_size, norm_colours, save
from normlab.figures.training import estimators, learning_curves
from normlab.runs.records import NoRecordsError, labels

pytestmark = pytest.mark.filterwarnings("error")  # matplotlib warns when a layout does not fit

# ---- curves ----------------------------------------------------------------------------------------------------------


def test_curves_of_every_layer_and_range(make):
    records = moments(53)
    axes = ratio_curves([make(ratios=records)]).axes
    assert len(axes) == 2 * (53 + 6)
    for block, moment in enumerate(("mean", "var")):
        panels = axes[59 * block : 59 * (block + 1)]
        for i in (0, 17, 52):
            expected = [[record["layers"][i][moment][scope] for record in records] for scope in SCOPES]
            np.testing.assert_allclose(ydata(panels[i]), expected)
            assert panels[i].texts[0].get_text().removeprefix("■ ") == str(7 + 8 * i)
            assert panels[i].texts[0].get_text().startswith("■") == (i % 5 == 4)
        for i, axis in enumerate(panels[53:]):
            expected = [
                [of_range(r["layers"], i, lambda row, m=moment, s=s: row[m][s]) for r in records] for s in SCOPES
            ]
            np.testing.assert_allclose(ydata(axis), expected)


def test_divergence_of_mean_and_variance(make):
    records = moments(53)
    axes = ratio_curves([make(ratios=records)], show=["divergence"]).axes
    np.testing.assert_allclose(
        ydata(axes[8]), [[apart(r["layers"][8]["mean"], r["layers"][8]["var"]) for r in records]]
    )
    for i, axis in enumerate(axes[53:]):
        expected = [of_range(r["layers"], i, lambda row: apart(row["mean"], row["var"])) for r in records]
        np.testing.assert_allclose(ydata(axis), [expected])


def test_hard_ratios_leave_gaps_in_divergences(make):
    records = moments(2)
    records[1]["layers"][0] |= {"mean": {"in": 1.0, "ln": 0.0, "bn": 0.0}, "var": {"in": 0.0, "ln": 1.0, "bn": 0.0}}
    axis = ratio_curves([make(ratios=records)], show=["divergence"]).axes[0]
    assert [math.isnan(value) for value in ydata(axis)[0]] == [False, True, False]


def test_ratios_by_range(make):
    runs = [make(ratios=moments(20, seed=1)), make(ratios=moments(20, seed=2), batch="8x1")]
    for record in runs[1].ratios:
        for row in record["layers"]:
            row["var"] = row["mean"]
    figure = ratio_ranges(runs)
    axes = np.reshape(figure.axes, (3, 4))  # one row where mean and variance are tied; 20 layers reach 159 pixels
    assert titles(axes[0]) == ["RF <49", "RF 49–99", "RF 99–199", "all layers"]
    for row, (run, moment) in zip(axes, [(runs[0], "mean"), (runs[0], "var"), (runs[1], "mean")], strict=True):
        for i, axis in zip((0, 1, 2, 5), row, strict=True):
            expected = [
                [of_range(r["layers"], i, lambda row, m=moment, s=s: row[m][s]) for r in run.ratios] for s in SCOPES
            ]
            np.testing.assert_allclose(ydata(axis), expected)
    assert all(axis.lines for axis in figure.axes)  # none is empty
    assert axes[0, 0].get_ylabel() == "(8,2)\nratio of µ"


def test_curves_without_receptive_fields(make):
    """No panel is empty: of all layers, and of the parts where there are several."""
    records = without_fields(moments(9))
    figure = ratio_curves([make(ratios=records)])
    assert titles(figure.axes[9::10]) == 2 * ["all layers"] and len(figure.axes) == 20
    np.testing.assert_allclose(ydata(figure.axes[19]), over_layers(records, slice(9), "var"))
    assert [axis.texts[0].get_text() for axis in figure.axes[:9]] == [str(i) for i in range(1, 10)]
    assert any(text.get_text().startswith("number: layer in network order;") for text in figure.texts)
    assert not any("receptive" in text.get_text() for text in figure.texts)

    records = without_fields(detector())
    axes = ratio_curves([make(ratios=records)], show=["divergence"]).axes[69:]
    assert titles(axes) == ["backbone", "fpn", "box", "mask", "all layers"]
    for axis, inside in zip(axes, PARTS.values(), strict=True):
        expected = [np.mean([apart(row["mean"], row["var"]) for row in r["layers"][inside]]) for r in records]
        np.testing.assert_allclose(ydata(axis), [expected])


def test_curves_with_some_receptive_fields(make):
    """Ranges without a layer are left out; layers without a field count among all."""
    records = without_fields(moments(9), keep=7)  # 7 to 55 pixels
    figure = ratio_curves([make(ratios=records)], show=["mean"])
    assert titles(figure.axes[9:]) == titles(ratio_ranges([make(ratios=records)]).axes[:3])
    assert titles(figure.axes[9:]) == ["RF <49", "RF 49–99", "all layers"]
    for axis, inside in zip(figure.axes[9:], (slice(6), slice(6, 7), slice(9)), strict=True):
        np.testing.assert_allclose(ydata(axis), over_layers(records, inside, "mean"))
    assert [axis.texts[0].get_text() for axis in figure.axes[6:9]] == ["55", "–", "–"]
    assert any("receptive field in pixels (–: none)" in text.get_text() for text in figure.texts)


def test_ratios_by_part(make):
    runs = [make(ratios=detector()), make(batch="8x1", ratios=in_parts(moments(3), box=1, head=2))]
    axes = np.reshape(ratio_parts(runs).axes, (4, 6))
    assert titles(axes[0]) == ["backbone", "fpn", "box", "mask", "head", "all layers"]
    columns = (*range(4), 5)
    for row, moment in zip(axes, ("mean", "var"), strict=False):
        for i, inside in zip(columns, PARTS.values(), strict=True):
            np.testing.assert_allclose(ydata(row[i]), over_layers(runs[0].ratios, inside, moment))
    assert [[text.get_text() for text in axis.texts] for axis in axes[0, 3:5]] == [[], ["no such layer"]]
    np.testing.assert_allclose(ydata(axes[3, 2]), over_layers(runs[1].ratios, slice(1), "var"))
    np.testing.assert_allclose(ydata(axes[3, 5]), over_layers(runs[1].ratios, slice(3), "var"))
    with pytest.raises(UserError, match=r"run-\d+: all its layers are of one part of the model; ratio_ranges shows"):
        ratio_parts([make(ratios=moments(9))])


def test_a_classifier_beside_the_detector_that_begins_from_it(make):
    """Its one part has that part's panel, and long names are broken into lines that the panels have room for."""
    settings = {"model": "scenes_resnet", "data": "scenes"}, {"model": "scenes_detector", "data": "scene_boxes"}
    before, after = in_parts(moments(3), backbone=3), detector()
    figure = ratio_parts([make(ratios=before, **settings[0]), make(ratios=after, **settings[1])])
    axes = np.reshape(figure.axes, (4, 5))
    assert titles(axes[0]) == ["backbone", "fpn", "box", "mask", "all layers"]
    np.testing.assert_allclose(ydata(axes[0, 0]), over_layers(before, slice(3), "mean"))
    np.testing.assert_allclose(ydata(axes[2, 0]), over_layers(after, PARTS["backbone"], "mean"))
    assert [[text.get_text() for text in axis.texts] for axis in axes[0, 1:4]] == 3 * [["no such layer"]]
    figure.draw_without_rendering()
    boxes = [axis.yaxis.label.get_window_extent() for axis in axes[:, 0]]
    assert all(not a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_parts_take_the_place_of_ranges(make):
    runs = [make(ratios=without_fields(detector()), batch=batch) for batch in ("8x2", "8x1")]
    axes = ratio_ranges(runs).axes
    assert titles(axes[:5]) == ["backbone", "fpn", "box", "mask", "all layers"] and len(axes) == 4 * 5
    for axis, inside in zip(axes, PARTS.values(), strict=False):
        np.testing.assert_allclose(ydata(axis), over_layers(runs[0].ratios, inside, "mean"))
    assert titles(ratio_ranges([make(ratios=detector())]).axes[:6])[0::5] == ["RF <49", "all layers"]
    one = ratio_ranges([make(ratios=without_fields(moments(3)))]).axes
    assert titles(one) == ["all layers", ""]
    mixed = ratio_ranges([make(ratios=detector()), make(ratios=without_fields(moments(3)), batch="8x1")]).axes
    assert [bool(axis.texts) for axis in mixed] == [False] * 12 + 2 * [*[True] * 5, False]


def test_divergence_of_two_runs_by_part(make):
    a, b = (
        make(batch=f"8x{seed}", ratios=in_parts(without_fields(moments(6, seed=seed)), body=4, head=2))
        for seed in (1, 2)
    )
    axes = run_divergence([a, b]).axes
    assert titles(axes) == ["body", "head", "all layers"]
    for axis, inside in zip(axes, (slice(4), slice(4, 6), slice(6)), strict=True):
        for moment, drawn in zip(("mean", "var"), ydata(axis), strict=True):
            pairs = [(x["layers"][inside], y["layers"][inside]) for x, y in zip(a.ratios, b.ratios, strict=True)]
            expected = [np.mean([apart(p[moment], q[moment]) for p, q in zip(*pair, strict=True)]) for pair in pairs]
            np.testing.assert_allclose(drawn, expected)


def test_divergence_of_two_runs(make):
    a, b = (make(ratios=moments(20, epochs=epochs, seed=epochs), batch=f"8x{epochs}") for epochs in (3, 4))
    axes = run_divergence([a, b]).axes
    for i, axis in zip((0, 1, 2, 5), axes, strict=True):
        for moment, drawn in zip(("mean", "var"), ydata(axis), strict=True):
            pairs = zip(a.ratios, b.ratios[:3], strict=True)
            both = [[x | {"other": y} for x, y in zip(p["layers"], q["layers"], strict=True)] for p, q in pairs]
            expected = [of_range(rows, i, lambda row, m=moment: apart(row[m], row["other"][m])) for rows in both]
            np.testing.assert_allclose(drawn, expected)
    with pytest.raises(UserError, match="needs 2 or more runs, got 1: the first is compared"):
        run_divergence([a])
    with pytest.raises(UserError, match="expected runs of one network"):
        run_divergence([a, make(ratios=moments(19))])
    with pytest.raises(UserError, match="never recorded at the same epoch"):
        run_divergence([a, make(ratios=[{**moments(20)[0], "epoch": 0.5}])])


# ---- training --------------------------------------------------------------------------------------------------------

EPOCHS = [
    {"step": 10 * e, "epoch": e, "train/loss": 1 / e, "train/top1": 10.0 * e, "val/top1": 9.0 * e} for e in (1, 2, 3)
]


def test_learning_curves(make):
    between = {"step": 15, "epoch": 1.5, "batch/loss": 3.0}
    runs = [make(norm=norm, metrics=[*EPOCHS[:1], between, *EPOCHS[1:]]) for norm in ("bn", "gn")]
    loss, top1, *ends = learning_curves(runs).axes
    assert [ydata(end) for end in ends] == [ydata(loss), ydata(top1)]
    assert ends[1].get_xlim() == pytest.approx((3 - 2 / 3, 3 + 0.02 * 2 / 3)) and ends[1].get_ylim() == pytest.approx(
        (26.76, 30.24)
    )
    assert [axis.get_ylabel() for axis in (loss, top1)] == ["cross entropy (nats)", "top-1 accuracy (%)"]
    assert ydata(loss)[0] == pytest.approx([1, 1 / 2, 1 / 3]) and not ydata(loss)[1]
    assert ydata(top1) == 2 * [[10, 20, 30], [9, 18, 27]]
    assert [to_hex(line.get_color()) for line in top1.lines[::2]] == ["#009e73", "#cc79a7"]
    error, _ = learning_curves(runs[:1], quantities=["error1"], splits=["val"]).axes
    assert ydata(error) == [[91, 82, 73]]
    top1 = learning_curves(runs[:1], along="iteration").axes[1]
    assert ydata(top1) == [[10, 20, 30], [9, 18, 27]]
    assert [list(line.get_xdata()) for line in top1.lines] == 2 * [[10, 20, 30]] and top1.get_xlabel() == "iteration"
    with pytest.raises(UserError, match=r"quantities=top2: no run has measured it; did you mean 'top1'\?"):
        learning_curves(runs, quantities=["top2"])


def test_runs_that_differ_in_their_seed_are_a_line_with_a_band(make):
    """Mean and standard deviation where all have a value; another batch has a line of its own, paler."""
    other = [row | {"val/top1": row["val/top1"] + 2} for row in EPOCHS[:2]]
    runs = [make(seed="0", metrics=EPOCHS), make(seed="1", metrics=other), make(batch="8x32", metrics=EPOCHS)]
    figure = learning_curves(runs, quantities=["top1"], splits=["val"])
    axis = figure.axes[0]
    assert ydata(axis) == [[10, 19], [9, 18, 27]]
    (band,) = axis.collections
    spread = 2**0.5
    edges = band.get_paths()[0].vertices
    assert {tuple(edge) for edge in edges.round(6)} >= {(1, round(10 - spread, 6)), (2, round(19 + spread, 6))}
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["(8,2) (2 seeds)", "(8,32)", "val"]
    own, paler = (to_hex(line.get_color()) for line in axis.lines)
    assert own == "#000000" and paler not in (own, "#ffffff")


def test_every_normalizer_has_a_colour_of_its_own():
    """Everywhere the same, whatever else a figure shows."""
    norms = [name for name in choices("norm") if name != "none"]
    colours = norm_colours(norms)
    assert len(set(colours)) == len(norms)
    assert all(norm_colours([norm, "another"])[0] == colour for norm, colour in zip(norms, colours, strict=True))
    assert len(set(norm_colours(["gn", "gn", "gn", "a", "b"]))) == 5


@pytest.mark.parametrize("losses", [[1.0, math.inf, math.nan, None], [math.nan], [None]])
def test_learning_curves_of_a_diverged_run(make, tmp_path, losses):
    rows = [{"step": s, "epoch": s / 10, "train/loss": loss, "val/top1": 10.0} for s, loss in enumerate(losses)]
    save(learning_curves([make(metrics=rows)]), tmp_path / "new" / "training.png")
    assert imread(tmp_path / "new" / "training.png").ndim == 3


def test_estimators(make):
    both = [row | {"val_batch_average/top1": 50.0 + row["epoch"]} for row in EPOCHS]
    runs = [make(norm="bn", metrics=EPOCHS), make(norm="sn", metrics=both)]
    (axis,) = estimators(runs).axes
    assert ydata(axis) == [[9, 18, 27], [9, 18, 27], [51, 52, 53]]
    with pytest.raises(UserError, match="has no val_batch_average/top1"):
        estimators(runs[:1])


# ---- statistics and gradients ----------------------------------------------------------------------------------------


def statistics_records(steps: int, num_layers: int = 2, neurons: int = 3) -> list[dict]:
    random = np.random.default_rng(0)

    def row(i: int) -> dict:
        bn = {f"bn_{what}": random.normal(size=neurons).tolist() for what in ("mean", "std")}
        return {"layer": f"norm{i}", "index": i + 1} | bn | {f"en_{what}": random.normal() for what in ("mean", "std")}

    return [{"step": s, "epoch": s / 10, "layers": [row(i) for i in range(num_layers)]} for s in range(steps)]


def test_evolution_and_fluctuation(make):
    records = statistics_records(9)
    run = make(norm="bn", statistics=records)
    axis = evolution([run], neuron=2, last=4).axes[1]
    rows = [record["layers"][1] for record in records[-4:]]
    expected = [[r["bn_mean"][1] for r in rows], [r["bn_std"][1] for r in rows]]
    assert ydata(axis) == [*expected, [r["en_mean"] for r in rows], [r["en_std"] for r in rows]]
    assert list(axis.lines[0].get_xdata()) == [5, 6, 7, 8]

    bars = [bar.get_height() for bar in fluctuation([run], last=9).axes[0].patches]
    of_layer = [[record["layers"][i]["bn_std"] for record in records] for i in range(2)]
    assert bars[2:4] == pytest.approx([np.std(values, axis=0, ddof=1).mean() for values in of_layer])
    assert bars[4] == pytest.approx(np.std([r["layers"][0]["en_mean"] for r in records], ddof=1))
    one = [bar.get_height() for bar in fluctuation([run], last=9, neuron=3).axes[0].patches]
    assert one[3] == pytest.approx(np.std([values[2] for values in of_layer[1]], ddof=1))

    deep = make(norm="bn", statistics=statistics_records(3, num_layers=53))
    figure = evolution([deep])
    assert [axis.get_title(loc="left").partition("neuron ")[2] for axis in figure.axes] == [
        f"{layer}-1" for layer in (1, 11, 22, 32, 43, 53)
    ]
    assert ydata(evolution([deep], layers=[7]).axes[0]) == ydata(evolution([deep], layers=[3, 7]).axes[1])
    (axis,) = fluctuation([deep]).axes
    expected = [np.std([r["layers"][i]["bn_mean"] for r in deep.statistics], axis=0, ddof=1).mean() for i in range(53)]
    assert ydata(axis)[0] == pytest.approx(expected)
    with pytest.raises(UserError, match="layers=54: expected layers from 1 to 53"):
        evolution([deep], layers=[54])

    with pytest.raises(UserError, match=r"neuron=4: norm0 of .* has neurons 1 to 3"):
        evolution([run], neuron=4)
    with pytest.raises(UserError, match="not as many"):
        fluctuation([run, make(statistics=statistics_records(3, num_layers=1))])


def test_reduction(make):
    def row(i: int, epoch: int) -> dict:
        division, centring = 0.01 * (i + 1), 0.1 * (epoch + 1)
        return {
            "layer": f"conv{i}",
            "index": i + 1,
            "division": division,
            "centring": centring,
            "remaining": 1 - division - centring,
        }

    records = [{"step": 10 * e, "epoch": e, "layers": [row(i, e) for i in range(3)]} for e in (0, 1)]
    (axis,) = reduction([make(gradients=records)]).axes
    np.testing.assert_allclose(ydata(axis), [[88, 78], [10, 20], [2, 2]])
    assert axis.get_yscale() == "log"


# ---- geometry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 4, 64])
def test_bn_shortens_filters_as_simulated(n):
    """The linear filter nearest to x -> (w'x - batch mean) / batch std has this length, and the filter's direction."""
    random = np.random.default_rng(0)
    x_BNI = random.normal(size=(400_000 // n, n, 2))
    response_BN = x_BNI @ np.array([3.0, 4.0])
    std_B1 = response_BN.std(1, keepdims=True)
    normalized_BN = (response_BN - response_BN.mean(1, keepdims=True)) / std_B1
    nearest_I, *_ = np.linalg.lstsq(x_BNI.reshape(-1, 2), normalized_BN.ravel())
    np.testing.assert_allclose(nearest_I, expected_std(n) * np.array([0.6, 0.8]), atol=5e-3)


def test_lengths_and_angles():
    weight_CI = np.array([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]])
    found = lengths(weight_CI, 1.5, {"in": 0.5, "ln": 0.25, "bn": 0.25}, batch_values=4)
    np.testing.assert_allclose(found["wn"], 1.5)
    np.testing.assert_allclose(found["in"], 1.5)
    np.testing.assert_allclose(found["ln"], 1.5 * np.array([1, 2, 2**0.5]) / ((1 + 4 + 2) / 3) ** 0.5)
    np.testing.assert_allclose(found["sn"], 0.5 * found["in"] + 0.25 * found["ln"] + 0.25 * found["bn"])
    np.testing.assert_allclose(np.degrees(angles(weight_CI)), [0, 90, -135])
    turned, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))
    np.testing.assert_allclose(np.degrees(angles(np.pad(weight_CI, [(0, 0), (0, 3)]) @ turned)), [0, 90, 135])


def test_geometry_of_a_run(make):
    weight = np.random.default_rng(1).normal(size=(4, 1, 3, 3))
    run = make(ratios=moments(2))
    (run.folder / "checkpoints").mkdir()
    save_file(
        {"conv1.weight": weight, "fc.weight": np.ones((2, 2))}, run.folder / "checkpoints" / "weights.safetensors"
    )
    axis = geometry([run], filters=3, gamma=2.0).axes[2]
    norms = np.linalg.norm(weight.reshape(4, -1), axis=1)
    tips = [text.xy for text in axis.texts]
    np.testing.assert_allclose(np.hypot(*np.transpose(tips)), 2 * (norms / (norms**2).mean() ** 0.5)[:3])
    cosine = weight[1].ravel() @ weight[0].ravel() / norms[0] / norms[1]
    assert tips[1][0] / math.hypot(*tips[1]) == pytest.approx(cosine)
    with pytest.raises(UserError, match="convolution 'conv2' does not exist; did you mean 'conv1'"):
        geometry([run], layer="conv2")
    assert len(geometry([]).axes) == 5


# ---- all of them -----------------------------------------------------------------------------------------------------


def test_runs_are_told_apart(make):
    assert labels([make(norm="sn"), make(norm="bn")]) == ["SN", "BN"]
    assert labels([make(batch="8x2", seed="0"), make(batch="8x4", seed="1")]) == ["(8,2) seed 0", "(8,4) seed 1"]
    assert labels([make()]) == ["SN (8,2)"]
    assert labels([make(weight="none"), make(weight="ws")]) == ["SN", "SN +ws"]
    assert len(set(labels([make(), make()]))) == 2


def test_missing_and_damaged_records(make):
    with pytest.raises(NoRecordsError, match=r"there is no ratios\.jsonl: norm=bn has no ratios"):
        overview([make(norm="bn")])
    with pytest.raises(NoRecordsError, match="no epoch of it was evaluated"):
        learning_curves([make()])
    damaged = moments(2)
    del damaged[1]["layers"][1]["shortcut"]
    with pytest.raises(UserError, match=r"ratios\.jsonl: a layer has no shortcut"):
        layers([make(ratios=damaged)])
    with pytest.raises(UserError, match=r"ratios\.jsonl: part=\[a\]: expected a word or null"):
        ratio_parts(
            [make(ratios=[{**r, "layers": [row | {"part": ["a"]} for row in r["layers"]]} for r in moments(2)])]
        )
    with pytest.raises(UserError, match=r"gradients\.jsonl: a moment has no layers"):
        reduction([make(gradients=[{"step": 1, "epoch": 0.1, "layers": []}])])
    with pytest.raises(UserError, match=r"statistics\.jsonl: bn_std=3: expected list"):
        evolution(
            [
                make(
                    statistics=[
                        statistics_records(1)[0]
                        | {"layers": [{"layer": "a", "bn_mean": [1.0], "bn_std": 3, "en_mean": 0.0, "en_std": 0.0}]}
                    ]
                )
            ]
        )


def many_parts() -> list[dict]:
    ones = dict.fromkeys(("stem", "generator", "discriminator", "classifier"), 1)
    return in_parts(without_fields(moments(64), keep=53), backbone=53, **ones, mask=6, head=1)


EIGHT = ("in", "ln", "bn", "gn8", "gn32", "en1", "en8", "en32")
BUSY = {
    "overview": lambda make: overview([make(ratios=moments(53))]),
    "overview of one": lambda make: overview([make(ratios=moments(1, scopes=EIGHT))]),
    "layers": lambda make: layers([make(ratios=moments(53)), make(ratios=moments(53), batch="8x32")]),
    "hard_ratios": lambda make: hard_ratios([make(ratios=moments(53, epochs=11))]),
    "ratio_curves": lambda make: ratio_curves([make(ratios=moments(53))], show=["mean", "divergence"]),
    "blocks": lambda make: averages([make(ratios=moments(53))], by="block", block_depth=2),
    "ranges": lambda make: ratio_ranges([make(ratios=moments(53)), make(ratios=moments(53), batch="8x32")]),
    "overview of parts": lambda make: overview([make(ratios=detector())]),
    "overview of many parts": lambda make: overview([make(ratios=many_parts())]),
    "layers of parts": lambda make: layers([make(ratios=detector()), make(ratios=many_parts(), batch="8x32")]),
    "hard_ratios of parts": lambda make: hard_ratios([make(ratios=many_parts())]),
    "ratio_curves of parts": lambda make: ratio_curves([make(ratios=without_fields(many_parts()))]),
    "parts": lambda make: ratio_parts([make(ratios=many_parts())]),
    "averages by part": lambda make: averages([make(ratios=many_parts())], by="part"),
    "three layers": lambda make: ratio_curves([make(ratios=without_fields(moments(3)))]),
    "geometry": lambda make: geometry([]),
    "evolution": lambda make: evolution([make(statistics=statistics_records(9, num_layers=53))]),
    "fluctuation": lambda make: fluctuation([make(statistics=statistics_records(9, num_layers=53))] * 2, neuron=1),
}


@pytest.mark.parametrize("name", BUSY)
def test_every_label_can_be_read(make, name):
    """No two texts overlap, and none is cut off, at the size of print."""
    figure = BUSY[name](make)
    at_print_size(lambda drawn: drawn.draw_without_rendering() or drawn)(figure)
    hidden = set(outside(figure))
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    boxes = np.array([text.get_window_extent().extents for text in texts if text not in hidden])
    assert len(boxes) > 5
    x0, y0, x1, y1 = boxes.T
    assert x0.min() >= 0 and y0.min() >= 0 and x1.max() <= figure.bbox.x1 and y1.max() <= figure.bbox.y1
    overlap = (x0[:, None] < x1) & (x0 < x1[:, None]) & (y0[:, None] < y1) & (y0 < y1[:, None])
    straight = np.array([text.get_rotation() in (0, 90) for text in texts if text not in hidden])
    assert (
        overlap[straight][:, straight].sum() == straight.sum()
    )  # each with itself; the boxes of slanted ones are larger


def outside(figure: Figure) -> Iterator[Text]:
    """Labels of ticks beyond the ends of their axis, which matplotlib keeps and does not draw."""
    for axis in figure.axes:
        for which, interval in ((axis.xaxis, sorted(axis.get_xlim())), (axis.yaxis, sorted(axis.get_ylim()))):
            for tick in (*which.get_major_ticks(), *which.get_minor_ticks()):
                if not (axis.axison and interval[0] <= tick.get_loc() <= interval[1]):
                    yield from (tick.label1, tick.label2)


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_same_figure_gives_the_same_bytes(make, tmp_path, suffix):
    run = make(ratios=moments(2))
    paths = [Path(tmp_path, f"{name}.{suffix}") for name in "ab"]
    for path in paths:
        save(overview([run]), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
