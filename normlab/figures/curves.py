"""Ratios over training: in every layer and by receptive field, how far mean and variance, or two runs, are apart."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from normlab.dynamics.ratios import MOMENTS, RF_RANGES, average, divergence, divergence_by_range, mean_by_range
from normlab.errors import UserError
from normlab.figures.style import (
    LINES,
    MOMENT_NAMES,
    PAGE,
    at_print_size,
    draw_line,
    key_line,
    legend_above,
    scope_colours,
)
from normlab.runs.records import Record, Run, expect, labels

Series = dict[str, list[float | None]]  # scope, or what else a line shows -> its value at each moment

_APART = {"mean": "#0072B2", "var": "#D55E00"}  # divergences of the means' and of the variances' ratios
_DIVERGENCE = "divergence"
_TITLES = MOMENT_NAMES | {_DIVERGENCE: "divergence of mean and variance (nats)"}
_NOTE = "number: receptive field in pixels; bold: behind a 3×3 convolution; ■: on a shortcut"
_COLUMNS = 11
_LINEAR = 0.1  # nats below which the axis of divergences is linear
_PANEL, _SUMMARY, _TITLE = 0.5, 0.8, 0.45  # heights in inches


@at_print_size
def ratio_curves(
    runs: Sequence[Run], *, show: Sequence[Literal["mean", "var", "divergence"]] = ("mean", "var")
) -> Figure:
    """Every layer's ratios over training, a small panel each, and their averages by receptive field (seed 000, Fig. 3;
    seed 002, Fig. 7).

    A panel's number is the receptive field in pixels, bold behind a 3x3 convolution, with a square on a shortcut.

    Args:
        runs: one.
        show: what has a block of panels: the ratios of mean or variance, or D(mean||var), their symmetric KL
            divergence.
    """
    expect(runs, 1, 1)
    if not show:
        raise UserError("show=[]: expected one or more of mean, var, divergence")
    moments = runs[0].ratios
    rows = moments[-1]["layers"]
    colours = _colours(moments)
    num_rows = math.ceil(len(rows) / _COLUMNS)
    block_height = _TITLE + _PANEL * num_rows + _SUMMARY
    height = 0.45 + block_height * len(show)
    figure = Figure(figsize=(PAGE, height))
    for i, what in enumerate(show):
        top = 1 - (_TITLE + block_height * i) / height
        middle = top - _PANEL * num_rows / height
        grids = {"left": 0.05, "right": 0.99}
        small = figure.add_gridspec(num_rows, _COLUMNS, **grids, top=top, bottom=middle, hspace=0.12, wspace=0.12)
        large = figure.add_gridspec(
            1, len(RF_RANGES), **grids, top=middle - 0.25 / height, bottom=middle - _SUMMARY / height, wspace=0.12
        )
        panels = [figure.add_subplot(small[divmod(n, _COLUMNS)]) for n in range(len(rows))]
        summaries = [figure.add_subplot(large[0, n]) for n in range(len(RF_RANGES))]
        by_layer, by_range = _by_layer(moments, what), _by_range(moments, what)
        for axis, series, row in zip(panels, by_layer, rows, strict=True):
            _draw(axis, moments, series, colours, linewidth=0.9, marker=None)
            _note_layer(axis, row)
        for axis, name in zip(summaries, RF_RANGES, strict=True):
            _draw(axis, moments, by_range.get(name, {}), colours)
            axis.set_title(_range_title(name), fontsize=7, pad=2)
        _share_scale(panels, what, by_layer, room=0.35)
        _share_scale(summaries, what, by_range.values())
        for n, axis in enumerate(panels):
            axis.tick_params(length=1.5, labelbottom=False, labelleft=n % _COLUMNS == 0, labelsize=6)
            axis.grid(visible=False)
        for n, axis in enumerate(summaries):
            axis.tick_params(labelleft=n == 0, labelsize=6)
        figure.text(0.012, top + 0.08 / height, _TITLES[what], va="bottom", fontsize=9, fontweight="bold")
    if set(show) != {_DIVERGENCE}:
        figure.legend(
            handles=_scope_keys(colours), loc="upper right", ncols=len(colours), frameon=False, borderaxespad=0.2
        )
    figure.text(0.5, 0.06 / height, "epoch", ha="center", va="bottom")
    figure.text(0.012, 1 - 0.06 / height, _NOTE, va="top", fontsize=7)
    return figure


@at_print_size
def ratio_ranges(runs: Sequence[Run]) -> Figure:
    """Ratios over training averaged over the layers of each range of receptive fields (seed 000, Figs. 4, 7, 8 and 12).

    Args:
        runs: one or more; a row for the mean of each and one for the variance, or one for both where they are tied.
    """
    expect(runs, 1)
    colours = _colours([record for run in runs for record in run.ratios])
    lines = []
    for run, label in zip(runs, labels(runs), strict=True):
        tied = all(row["mean"] == row["var"] for record in run.ratios for row in record["layers"])
        names = {"mean": "µ and σ²"} if tied else {"mean": "µ", "var": "σ²"}
        lines += [(f"{label}\n{name}", run.ratios, moment) for moment, name in names.items()]
    figure, axes = _range_panels(len(lines))
    for row, (label, moments, moment) in zip(axes, lines, strict=True):
        by_range = _by_range(moments, moment)
        for axis, name in zip(row, RF_RANGES, strict=True):
            _draw(axis, moments, by_range.get(name, {}), colours)
        _share_scale(row, moment, ())
        row[0].set_ylabel(label)
    legend_above(figure, _scope_keys(colours))
    return figure


@at_print_size
def run_divergence(runs: Sequence[Run]) -> Figure:
    """How far the ratios of the first run are from those of each other run, by receptive field, over training.

    Symmetric KL divergence of each layer, in nats, averaged over the layers of a range (seed 000, Fig. 5).

    Args:
        runs: two or more of the same network, with moments at the same epochs; the first is compared with each other.
    """
    expect(runs, 2, why="the first is compared with each of the others")
    names = labels(runs)
    figure, axes = _range_panels(len(runs) - 1)
    drawn: list[Series] = []
    for row, other, name in zip(axes, runs[1:], names[1:], strict=True):
        moments, by_range = _between(runs[0], other)
        drawn += by_range.values()
        for axis, range_name in zip(row, RF_RANGES, strict=True):
            _draw(axis, moments, by_range.get(range_name, {}), _APART)
        row[0].set_ylabel(f"{names[0]}\nand {name}")
    _share_scale(list(axes.flat), _DIVERGENCE, drawn)
    legend_above(figure, _keys({f"ratios of the {MOMENT_NAMES[moment]}": colour for moment, colour in _APART.items()}))
    return figure


def draw_averages(axis: Axes, moments: Sequence[Record], moment: str, colours: Mapping[str, str]) -> None:
    """The ratios of the mean or the variance over training, averaged over all layers."""
    _draw(axis, moments, _by_range(moments, moment)["all"], colours)
    _share_scale([axis], moment, ())


# ---- what is drawn ---------------------------------------------------------------------------------------------------


def _by_layer(moments: Sequence[Record], what: str) -> list[Series]:
    """Of each layer of the last moment; None where an earlier one does not have the layer."""
    by_name = [{row["layer"]: row for row in moment["layers"]} for moment in moments]
    of_layers = [[rows.get(row["layer"]) for rows in by_name] for row in moments[-1]["layers"]]
    if what == _DIVERGENCE:
        return [{what: [row and divergence(row["mean"], row["var"]) for row in rows]} for rows in of_layers]
    return [_transposed([row[what] if row else {} for row in rows]) for rows in of_layers]


def _by_range(moments: Sequence[Record], what: str) -> dict[str, Series]:
    """Of each range that has a layer, averaged over its layers."""
    if what == _DIVERGENCE:
        found = [
            divergence_by_range((r["receptive_field"], divergence(r["mean"], r["var"])) for r in moment["layers"])
            for moment in moments
        ]
        return {name: {what: [values.get(name) for values in found]} for name in found[-1]}
    means = [mean_by_range(moment["layers"]) for moment in moments]
    return {name: _transposed([mean[name][what] if name in mean else {} for mean in means]) for name in means[-1]}


def _between(a: Run, b: Run) -> tuple[list[Record], dict[str, Series]]:
    """The moments that two runs share, and the divergence of their mean and variance ratios in each range.

    Raises UserError if the runs are not of one network, or share no moment.
    """
    others = {round(moment["epoch"], 6): moment for moment in b.ratios}
    shared = [(moment, others[round(moment["epoch"], 6)]) for moment in a.ratios if round(moment["epoch"], 6) in others]
    if not shared:
        raise UserError(f"{a.name} and {b.name}: their ratios were never recorded at the same epoch")
    if any([r["layer"] for r in x["layers"]] != [r["layer"] for r in y["layers"]] for x, y in shared):
        raise UserError(f"{a.name} and {b.name}: their layers are not the same; expected runs of one network")
    found = {
        moment: [
            divergence_by_range(
                (row["receptive_field"], divergence(row[moment], other[moment]))
                for row, other in zip(x["layers"], y["layers"], strict=True)
            )
            for x, y in shared
        ]
        for moment in MOMENTS
    }
    ranges = found["mean"][-1]
    series = {name: {m: [values.get(name) for values in found[m]] for m in MOMENTS} for name in ranges}
    return [x for x, _ in shared], series


def _transposed(ratios: Sequence[Mapping[str, float]]) -> Series:
    return {scope: [r.get(scope) for r in ratios] for scope in dict.fromkeys(s for r in ratios for s in r)}


# ---- how -------------------------------------------------------------------------------------------------------------


def _draw(axis: Axes, moments: Sequence[Record], series: Series, colours: Mapping[str, str], **style: Any) -> None:
    """A line for each entry; gaps where there is no value, or an infinite one, as between hard ratios."""
    epochs = [moment["epoch"] for moment in moments]
    for (name, values), line in zip(series.items(), itertools.cycle(LINES), strict=False):
        numbers = [math.nan if value is None or math.isinf(value) else value for value in values]
        look = {"color": colours.get(name, "black"), "linestyle": line} | style
        draw_line(axis, epochs, numbers, **look)


def _share_scale(axes: Sequence[Axes], what: str, drawn: Iterable[Series], room: float = 0.03) -> None:
    """Ratios go from 0 to 1, divergences as high as the highest, logarithmic above 0.1; room for a note is a share."""
    if what != _DIVERGENCE:
        for axis in axes:
            axis.set(ylim=(-0.03, 1 + room), yticks=(0, 1))
        return
    finite = [v for series in drawn for values in series.values() for v in values if v is not None and math.isfinite(v)]
    highest = max([1.0, *finite])
    ticks = (0, 1, 10) if room > 0.1 else (0, _LINEAR, 1, 10)  # a note is in a small panel, which has room for fewer
    for axis in axes:
        axis.set_yscale("symlog", linthresh=_LINEAR, linscale=0.5)
        axis.set_ylim(-0.01, highest * (highest / _LINEAR) ** (1.5 * room))
        axis.set_yticks([tick for tick in ticks if tick <= highest])
        axis.set_yticks([], minor=True)
        axis.yaxis.set_major_formatter("{x:g}")


def _note_layer(axis: Axes, row: Record) -> None:
    weight = "bold" if row["kernel_size"] == [3, 3] else "normal"
    field = "–" if row["receptive_field"] is None else row["receptive_field"]
    text = f"{'■ ' * row['shortcut']}{field}"
    box = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.4}
    axis.text(0.96, 0.94, text, transform=axis.transAxes, ha="right", va="top", fontsize=6, fontweight=weight, bbox=box)


def _range_panels(num_rows: int) -> tuple[Figure, Any]:
    """A figure with rows of six panels, one for each range of receptive fields."""
    figure = Figure(figsize=(PAGE, 0.75 + 1.0 * num_rows), layout="constrained")
    axes: np.ndarray = figure.subplots(num_rows, len(RF_RANGES), sharex=True, sharey=True, squeeze=False)
    for axis, name in zip(axes[0], RF_RANGES, strict=True):
        axis.set_title(_range_title(name))
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    return figure, axes


def _range_title(name: str) -> str:
    return "all layers" if name == "all" else f"RF {name.replace('-', '–')}"


def _colours(moments: Sequence[Record]) -> dict[str, str]:
    averages = average([row for moment in moments for row in moment["layers"]])
    return scope_colours(dict.fromkeys(scope for moment in MOMENTS for scope in averages[moment]))


def _keys(colours: Mapping[str, str]) -> list[Line2D]:
    return [
        key_line(color=colour, linestyle=line, label=name)
        for (name, colour), line in zip(colours.items(), itertools.cycle(LINES), strict=False)
    ]


def _scope_keys(colours: Mapping[str, str]) -> list[Line2D]:
    return _keys({scope.upper(): colour for scope, colour in colours.items()})
