"""Ratios over training: in every layer, by receptive field and by part, how far mean and variance, or two runs, are
apart.
"""

import itertools
import math
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from normlab.dynamics.ratios import (
    MOMENTS,
    RF_RANGES,
    average,
    by_part,
    divergence,
    divergence_by_range,
    mean_by_part,
    mean_by_range,
)
from normlab.errors import UserError
from normlab.figures.style import (
    LINES,
    MOMENT_NAMES,
    PAGE,
    at_print_size,
    draw_line,
    fitting_size,
    key_line,
    legend_above,
    scope_colours,
)
from normlab.runs.records import Record, Run, expect, labels

Series = dict[str, list[float | None]]  # scope, or what else a line shows -> its value at each moment

_APART = {"mean": "#0072B2", "var": "#D55E00"}  # divergences of the means' and of the variances' ratios
_DIVERGENCE = "divergence"
_SCALE = "linear below 0.1 nats, logarithmic above"
_TITLES = {moment: f"ratios of the {name}, from 0 to 1" for moment, name in MOMENT_NAMES.items()} | {
    _DIVERGENCE: f"divergence of mean and variance ({_SCALE})"
}
_MARKS = "bold: behind a 3×3 convolution; ■: on a shortcut"
_COLUMNS = 11
_LINEAR = 0.1  # nats below which the axis of divergences is linear
_PANEL, _SUMMARY, _TITLE = 0.5, 0.8, 0.45  # heights in inches
NO_FIELD = "–"
_LABEL = 16  # characters in a line beside a row of panels
ONE_PART = "all its layers are of one part of the model"


@at_print_size
def ratio_curves(
    runs: Sequence[Run], *, show: Sequence[Literal["mean", "var", "divergence"]] = ("mean", "var")
) -> Figure:
    """Every layer's ratios over training, a small panel each, and their averages by receptive field (Distinct, Fig. 3;
    SN-TPAMI, Fig. 7), or by part where no layer has a receptive field.

    A panel's number is the receptive field in pixels, or the layer's own where none has one; bold behind a 3x3
    convolution, with a square on a shortcut.

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
    columns, across = _columns(runs), min(_COLUMNS, len(rows))
    num_rows = math.ceil(len(rows) / across)
    block_height = _TITLE + _PANEL * num_rows + _SUMMARY
    height = 0.45 + block_height * len(show)
    figure = Figure(figsize=(PAGE, height))
    for i, what in enumerate(show):
        top = 1 - (_TITLE + block_height * i) / height
        middle = top - _PANEL * num_rows / height
        grids = {"left": 0.05, "right": 0.99}
        small = figure.add_gridspec(num_rows, across, **grids, top=top, bottom=middle, hspace=0.12, wspace=0.12)
        large = figure.add_gridspec(
            1, len(columns), **grids, top=middle - 0.25 / height, bottom=middle - _SUMMARY / height, wspace=0.12
        )
        panels = [figure.add_subplot(small[divmod(n, across)]) for n in range(len(rows))]
        summaries = [figure.add_subplot(large[0, n]) for n in range(len(columns))]
        by_layer, by_group = _by_layer(moments, what), _by_group(moments, what)
        for axis, series, row, note in zip(panels, by_layer, rows, notes(rows), strict=True):
            _draw(axis, moments, series, colours, linewidth=0.9, marker=None)
            _note_layer(axis, row, note)
        for axis, name in zip(summaries, columns, strict=True):
            _draw(axis, moments, by_group.get(name, {}), colours)
            title = _group_title(name)
            axis.set_title(title, fontsize=fitting_size(title, PAGE / len(columns), 7), pad=2)
        _share_scale(panels, what, by_layer, room=0.35)
        _share_scale(summaries, what, by_group.values())
        for n, axis in enumerate(panels):
            axis.tick_params(length=1.5, labelbottom=False, labelleft=n % across == 0, labelsize=6)
            axis.grid(visible=False)
        for n, axis in enumerate(summaries):
            axis.tick_params(labelleft=n == 0, labelsize=6)
        figure.text(0.012, top + 0.08 / height, _TITLES[what], va="bottom", fontsize=9, fontweight="bold")
    if set(show) != {_DIVERGENCE}:
        figure.legend(
            handles=_scope_keys(colours), loc="upper right", ncols=len(colours), frameon=False, borderaxespad=0.2
        )
    figure.text(0.5, 0.06 / height, "epoch", ha="center", va="bottom")
    figure.text(
        0.012,
        1 - 0.06 / height,
        f"number: {what_notes_mean(rows) or 'layer in network order'}; {_MARKS}",
        va="top",
        fontsize=7,
    )
    return figure


@at_print_size
def ratio_ranges(runs: Sequence[Run]) -> Figure:
    """Ratios over training averaged over the layers of each range of receptive fields (Distinct, Figs. 4, 7, 8 and 12).

    Where no layer has a receptive field, the parts of the model are in the place of the ranges.

    Args:
        runs: one or more; a row for the mean of each and one for the variance, or one for both where they are tied.
    """
    expect(runs, 1)
    return _over_training(runs, _columns(runs))


@at_print_size
def ratio_parts(runs: Sequence[Run]) -> Figure:
    """Ratios over training averaged over the layers of each part of the model, and over all.

    Args:
        runs: one or more, one at least of a model with several parts, as of a detector and of the classifier that it
            begins from (Distinct, Fig. 8); rows as in ratio_ranges.
    """
    expect(runs, 1)
    if not any(mean_by_part(run.ratios[-1]["layers"]) for run in runs):
        raise UserError(f"{runs[0].name}: {ONE_PART}; ratio_ranges shows their average")
    return _over_training(runs, _parts(runs))


@at_print_size
def run_divergence(runs: Sequence[Run]) -> Figure:
    """How far the ratios of the first run are from those of each other run, by receptive field, over training.

    Symmetric KL divergence of each layer, in nats, averaged over the layers of a range (Distinct, Fig. 5), or of a part
    where no layer has a receptive field.

    Args:
        runs: two or more of the same network, with moments at the same epochs; the first is compared with each other.
    """
    expect(runs, 2, why="the first is compared with each of the others")
    names, columns = labels(runs), _columns(runs)
    figure, axes = _group_panels(len(runs) - 1, columns)
    drawn: list[Series] = []
    for row, other, name in zip(axes, runs[1:], names[1:], strict=True):
        moments, by_group = _between(runs[0], other)
        drawn += [by_group[column] for column in columns if column in by_group]
        _draw_groups(row, columns, moments, by_group, _APART)
        row[0].set_ylabel(f"{names[0]}\nand {name}")
    _share_scale(list(axes.flat), _DIVERGENCE, drawn)
    keys = _keys({f"ratios of the {MOMENT_NAMES[moment]}": colour for moment, colour in _APART.items()})
    legend_above(figure, [*keys, key_line(linestyle="none", label=_SCALE)])
    return figure


def draw_averages(axes: Mapping[str, Axes], moments: Sequence[Record], moment: str, colours: Mapping[str, str]) -> None:
    """The ratios of the mean or the variance over training, averaged over "all" layers or over those of a part."""
    by_group = _by_group(moments, moment)
    for group, axis in axes.items():
        _draw(axis, moments, by_group[group], colours)
    _share_scale(list(axes.values()), moment, ())


def notes(rows: Sequence[Record]) -> list[str]:
    """What tells the layers apart: their receptive fields, or their numbers where none has one."""
    if not what_notes_mean(rows):
        return [str(row.get("index", number)) for number, row in enumerate(rows, start=1)]
    return [NO_FIELD if row["receptive_field"] is None else str(row["receptive_field"]) for row in rows]


def what_notes_mean(rows: Sequence[Record]) -> str:
    """In words; nothing where they are the layers' numbers."""
    known = [row["receptive_field"] is not None for row in rows]
    return "receptive field in pixels" + f" ({NO_FIELD}: none)" * (not all(known)) if any(known) else ""


def _over_training(runs: Sequence[Run], columns: Sequence[str]) -> Figure:
    """Averages of the layers in some groups, a column each; two rows a run, or one where its moments are tied."""
    colours = _colours([record for run in runs for record in run.ratios])
    lines = []
    for run, label in zip(runs, labels(runs), strict=True):
        tied = all(row["mean"] == row["var"] for record in run.ratios for row in record["layers"])
        names = {"mean": "µ and σ²"} if tied else {"mean": "µ", "var": "σ²"}
        label = textwrap.fill(label, _LABEL, break_long_words=False)
        lines += [(f"{label}\nratio of {name}", run.ratios, moment) for moment, name in names.items()]
    figure, axes = _group_panels(len(lines), columns)
    for row, (label, moments, moment) in zip(axes, lines, strict=True):
        by_group, parts = _by_group(moments, moment), list(by_part(moments[-1]["layers"]))
        if len(parts) == 1:  # beside runs of several
            by_group[parts[0]] = by_group["all"]
        _draw_groups(row, columns, moments, by_group, colours)
        _share_scale(row, moment, ())
        row[0].set_ylabel(label)
    legend_above(figure, _scope_keys(colours))
    return figure


# ---- what is drawn ---------------------------------------------------------------------------------------------------


def _by_layer(moments: Sequence[Record], what: str) -> list[Series]:
    """Of each layer of the last moment; None where an earlier one does not have the layer."""
    by_name = [{row["layer"]: row for row in moment["layers"]} for moment in moments]
    of_layers = [[rows.get(row["layer"]) for rows in by_name] for row in moments[-1]["layers"]]
    if what == _DIVERGENCE:
        return [{what: [row and divergence(row["mean"], row["var"]) for row in rows]} for rows in of_layers]
    return [_transposed([row[what] if row else {} for row in rows]) for rows in of_layers]


def _by_group(moments: Sequence[Record], what: str) -> dict[str, Series]:
    """Of each range of receptive fields and each part that has a layer, and of all, averaged over the layers."""
    if what == _DIVERGENCE:
        found = [
            _divergences((row, divergence(row["mean"], row["var"])) for row in moment["layers"]) for moment in moments
        ]
        return {name: {what: [values.get(name) for values in found]} for name in found[-1]}
    means = [mean_by_part(moment["layers"]) | mean_by_range(moment["layers"]) for moment in moments]
    return {name: _transposed([mean[name][what] if name in mean else {} for mean in means]) for name in means[-1]}


def _divergences(pairs: Iterable[tuple[Record, float]]) -> dict[str, float]:
    """The average of the layers' divergences in each group; pairs are of a layer's row and its divergence."""
    rows = [row | {_DIVERGENCE: value} for row, value in pairs]
    parts = by_part(rows)
    of_parts = {name: statistics.fmean(row[_DIVERGENCE] for row in inside) for name, inside in parts.items()}
    of_ranges = divergence_by_range((row["receptive_field"], row[_DIVERGENCE]) for row in rows)
    return (of_parts if len(parts) > 1 else {}) | of_ranges


def _columns(runs: Sequence[Run]) -> list[str]:
    """The groups of layers that have a column: the ranges of receptive fields in which a run has a layer, or the parts
    where no layer has a receptive field. All layers are last.
    """
    rows = [row for run in runs for row in run.ratios[-1]["layers"]]
    found = mean_by_range(rows)
    is_traced = any(row["receptive_field"] is not None for row in rows)
    return [name for name in RF_RANGES if name in found] if is_traced else _parts(runs)


def _parts(runs: Sequence[Run]) -> list[str]:
    """The parts of all runs that have several, and all layers."""
    return list(dict.fromkeys([*(part for run in runs for part in mean_by_part(run.ratios[-1]["layers"])), "all"]))


def _between(a: Run, b: Run) -> tuple[list[Record], dict[str, Series]]:
    """The moments that two runs share, and the divergence of their mean and variance ratios in each group.

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
            _divergences(
                (row, divergence(row[moment], other[moment]))
                for row, other in zip(x["layers"], y["layers"], strict=True)
            )
            for x, y in shared
        ]
        for moment in MOMENTS
    }
    groups = found["mean"][-1]
    series = {name: {m: [values.get(name) for values in found[m]] for m in MOMENTS} for name in groups}
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


def _note_layer(axis: Axes, row: Record, note: str) -> None:
    weight = "bold" if row["kernel_size"] == [3, 3] else "normal"
    text = f"{'■ ' * row['shortcut']}{note}"
    box = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.4}
    axis.text(0.96, 0.94, text, transform=axis.transAxes, ha="right", va="top", fontsize=6, fontweight=weight, bbox=box)


def _group_panels(num_rows: int, columns: Sequence[str]) -> tuple[Figure, Any]:
    """A figure with rows of panels, one for each group of layers."""
    figure = Figure(figsize=(PAGE, 0.75 + 1.0 * num_rows), layout="constrained")
    axes: np.ndarray = figure.subplots(num_rows, len(columns), sharex=True, sharey=True, squeeze=False)
    for axis, name in zip(axes[0], columns, strict=True):
        title = _group_title(name)
        axis.set_title(title, fontsize=fitting_size(title, (PAGE - 0.5) / len(columns), 8))
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    return figure, axes


def _draw_groups(
    axes: Iterable[Axes],
    columns: Sequence[str],
    moments: Sequence[Record],
    by_group: Mapping[str, Series],
    colours: Mapping[str, str],
) -> None:
    """A panel for each group; where a run has no layer of it the panel says so."""
    for axis, name in zip(axes, columns, strict=True):
        _draw(axis, moments, by_group.get(name, {}), colours)
        if name not in by_group:
            axis.text(
                0.5, 0.5, "no such layer", transform=axis.transAxes, ha="center", va="center", color="0.4", size=6
            )


def _group_title(name: str) -> str:
    if name == "all":
        return "all layers"
    return f"RF {name.replace('-', '–')}" if name in RF_RANGES else name


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
