"""Figures of a table: one named in its YAML is a function of the results. No torch here."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle

from normlab.dynamics.ratios import MOMENTS
from normlab.errors import unknown
from normlab.figures.bars import stacked
from normlab.figures.style import (
    MARKERS,
    MOMENT_NAMES,
    NORM_COLOURS,
    PAGE,
    at_print_size,
    draw_mean,
    legend_above,
    norm_colours,
    scope_colours,
    show_end,
)
from normlab.report.results import Results
from normlab.report.table import Line
from normlab.tasks.metrics import curves_of

Cell = tuple[str, str]  # row, column
Values = Mapping[Cell, tuple[float | None, float | None]]  # mean (None: diverged), std

_DASH = "–"  # as the papers print a run that failed
_BELOW = " ↓"  # behind a number below the scale of colours
_DARK = 0.65  # of the scale of colours: beyond it numbers are white


@at_print_size
def accuracy(
    results: Results,
    *,
    along: Literal["columns", "rows"] = "columns",
    groups: Mapping[str, Sequence[str]] | None = None,
    reference: Sequence[str] | None = None,
    xlabel: str = "GPUs × samples per GPU",
) -> Figure:
    """The metric by batch setting, ours beside the paper's, with standard deviations.

    As SN, Fig. 1b, and, along rows, HN, Fig. 4.

    Args:
        results: of a table.
        along: what the horizontal axis has; there is a line for each of the others.
        groups: what places on the axis have in common -> these places; a line joins them. null: one line joins all.
        reference: (row, column) whose value is a dashed line, as Fig. 1b draws an ideal BN. null: none.
        xlabel: of the horizontal axis.
    """
    table = results.table
    places, lines = (table.columns, table.rows) if along == "columns" else (table.rows, table.columns)
    groups = groups or {"": list(places)}
    for place in (place for group in groups.values() for place in group):
        if place not in places:
            raise unknown(f"{table.name}: groups:", place, places)
    figure = Figure(figsize=(PAGE, 3.1), layout="constrained")
    axes = figure.subplots(1, 2)
    colours = _colours(results, list(lines), "row" if along == "columns" else "column")
    for axis, (values, title) in zip(axes, _panels(results), strict=True):
        turned = values if along == "columns" else {(c, r): v for (r, c), v in values.items()}
        _draw_curves(axis, turned, lines, groups, colours)
        axis.set_xticks(axis.get_xticks(), [places[place].label for group in groups.values() for place in group])
        ideal, _ = values.get((reference[0], reference[1]), (None, None)) if reference else (None, None)
        if reference and ideal is not None:
            label = f"{table.rows[reference[0]].label} at {table.columns[reference[1]].label}"
            axis.axhline(ideal, color="grey", linestyle="--", linewidth=1.0, label=label)
        axis.set_title(title, loc="left", fontsize=7)
        axis.set_xlabel(xlabel)
        axis.grid(axis="y", alpha=0.3, linewidth=0.5)
    axes[0].set_ylabel(results.metric)
    legend_above(figure, axes[1].get_legend_handles_labels()[0])
    return figure


@at_print_size
def ratios(
    results: Results, *, row: str, columns: Sequence[str] = (), xlabel: str = "GPUs × samples per GPU"
) -> Figure:
    """Ratios of a row's switchable layers by column, averaged over layers and seeds (SN, Fig. 4).

    Args:
        results: of a table.
        row: whose ratios.
        columns: those that have a bar; none named: all.
        xlabel: of the horizontal axis.
    """
    table = results.table
    if row not in table.rows:
        raise unknown(f"{table.name}: row", row, table.rows)
    for column in columns:
        if column not in table.columns:
            raise unknown(f"{table.name}: column", column, table.columns)
    columns = columns or list(table.columns)
    labels = [table.columns[column].label for column in columns]
    averages = {moment: _average_ratios(results, row, columns, moment) for moment in MOMENTS}
    colours = scope_colours(dict.fromkeys(scope for of_moment in averages.values() for scope in of_moment))
    figure = Figure(figsize=(PAGE, 2.9), layout="constrained")
    for axis, moment in zip(figure.subplots(1, 2), MOMENTS, strict=True):
        stacked(axis, labels, averages[moment], colours)
        title = f"{MOMENT_NAMES[moment]} of {table.rows[row].label}: {results.subject}"
        axis.set_title(title, loc="left", fontsize=7)
        axis.set(ylabel="ratio, average of all layers", xlabel=xlabel)
    if colours:
        legend_above(figure, [Patch(color=colour, label=scope.upper()) for scope, colour in colours.items()])
    return figure


@at_print_size
def heat_map(results: Results) -> Figure:
    """Every cell's metric as a colour, ours beside the paper's; redder is higher (HN, Figs. 2 and 3).

    Cells on the diagonal, whose row and column have the same label but for the first word ("mean BN", "std BN"), have a
    frame. The scale begins at Tukey's lower fence: a cell below it has the palest colour and an arrow, and the bar says
    where the scale begins. A dash: diverged, or not printed; an empty cell was not run.

    Args:
        results: of a table.
    """
    table = results.table
    rows, columns = list(table.rows), list(table.columns)
    figure = Figure(figsize=(PAGE, 1.3 + 0.36 * len(rows)), layout="constrained")
    for axis, (values, title) in zip(figure.subplots(1, 2), _panels(results), strict=True):
        shown = np.array([[_number(values.get((r, c))) for c in columns] for r in rows])
        low, high = _scale(shown[np.isfinite(shown)])
        image = _draw_heat(axis, shown, low, high, title)
        for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
            text = f"{shown[i, j]:.{table.decimals}f}"
            text = text if np.isfinite(shown[i, j]) else _DASH if (row, column) in values else ""
            _write(
                axis, i, j, text + _BELOW * bool(shown[i, j] < low), is_dark=shown[i, j] > low + _DARK * (high - low)
            )
            if _last_words(table.rows[row]) == _last_words(table.columns[column]):
                axis.add_patch(Rectangle((j - 0.47, i - 0.45), 0.94, 0.9, fill=False, linewidth=1.0))
        axis.set_xticks(range(len(columns)), [_last_words(table.columns[c]) for c in columns], fontsize=6)
        axis.set_yticks(range(len(rows)), [_last_words(table.rows[r]) for r in rows], fontsize=6)
        axis.set(xlabel=_first_word(table.columns), ylabel=_first_word(table.rows))
        _add_bar(figure, image, axis, _of_bar(results, shown, low))
    return figure


@at_print_size
def heat_maps(results: Results, *, panels: Mapping[str, Sequence[str]]) -> Figure:
    """The metric of some rows by the columns as a colour, a panel for each title; all panels have one scale.

    An empty cell was not run, or diverged. The scale begins at Tukey's lower fence, as in heat_map.

    Args:
        results: of a table.
        panels: title -> names of rows, from top to bottom; what their labels have in common is not repeated.
    """
    table, columns = results.table, list(results.table.columns)
    entries = {
        title: np.array([[_number((results.entries[r, c].mean, None)) for c in columns] for r in rows], float)
        for title, rows in panels.items()
    }
    known = np.concatenate([shown.ravel() for shown in entries.values()])
    low, high = _scale(known[np.isfinite(known)])
    rows = max(map(len, panels.values()))
    figure = Figure(figsize=(PAGE, 1.1 + 0.34 * rows), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, shown) in zip(axes, entries.items(), strict=True):
        image = _draw_heat(axis, shown, low, high, title)
        for (i, j), value in np.ndenumerate(shown):
            text = f"{value:.{table.decimals}f}" if np.isfinite(value) else ""
            _write(axis, i, j, text + _BELOW * bool(value < low), is_dark=value > low + _DARK * (high - low))
        labels = [_without(title, table.rows[row].label) for row in panels[title]]
        axis.set_xticks(range(len(columns)), [table.columns[c].label for c in columns], fontsize=6)
        axis.set_yticks(range(len(labels)), labels, fontsize=6)
    _add_bar(figure, image, list(axes), _of_bar(results, known, low))
    return figure


def _draw_heat(axis: Axes, shown: np.ndarray, low: float, high: float, title: str) -> AxesImage:
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.set_title(title, loc="left", fontsize=7)
    return axis.imshow(shown, cmap="YlOrRd", vmin=low, vmax=high, aspect="auto")


def _write(axis: Axes, row: int, column: int, text: str, *, is_dark: bool) -> None:
    axis.text(column, row, text, ha="center", va="center", fontsize=6, color="white" if is_dark else "black")


def _of_bar(results: Results, shown: np.ndarray, low: float) -> str:
    """What a bar of colours says: the metric, and which cells lie below it."""
    number = int(np.sum(shown < low))
    below = f"; {number} cell{'s' * (number != 1)} below {low:.{results.table.decimals}f} marked {_BELOW.strip()}"
    return results.metric + below * (number > 0)


def _add_bar(figure: Figure, image: AxesImage, axes: Any, label: str) -> None:
    """The scale of colours."""
    is_cut = _BELOW.strip() in label
    bar = figure.colorbar(image, ax=axes, location="bottom", extend="min" if is_cut else "neither", aspect=40)
    bar.set_label(label, fontsize=7)
    bar.outline.set_visible(False)


def _without(title: str, label: str) -> str:
    return label.removeprefix(title).strip() or label


@at_print_size
def learning(
    results: Results,
    *,
    panels: Mapping[str, Sequence[str]],
    quantity: str = "metric",
    along: Literal["epoch", "iteration"] = "epoch",
) -> Figure:
    """A metric in validation, or the training loss, over training (SN, Figs. 5 and 6; WS, Fig. 6).

    A line is the mean over seeds, of all evaluations that each of them has, and a band their standard deviation to
    either side; below, the last third at a scale of its own. A loss in training is a mean over the updates since the
    evaluation before.

    Args:
        results: of a table.
        panels: title -> rows; of each, the first of its columns.
        quantity: loss, metric (what runs are known by), or a metric that has a curve.
        along: what the horizontal axis counts; iterations are updates.
    """
    table, headline = results.table, next(iter(results.table.metrics))
    for row in (row for rows in panels.values() for row in rows):
        if row not in table.rows:
            raise unknown(f"{table.name}: row", row, table.rows)
    known = {"loss": "train/loss", "metric": f"val/{headline}"} | {m: f"val/{m}" for m in curves_of(table.metrics)}
    if quantity not in known:
        raise unknown(f"{table.name}: quantity", quantity, known)
    key = known[quantity]
    label = "training loss" if quantity == "loss" else table.metrics[key.partition("/")[2]].label
    figure = Figure(figsize=(PAGE, 4.4), layout="constrained")
    of_row: dict[str, list[Mapping[str, Sequence[float]]]] = {}
    for record in results.records:
        needed = {key, "step"} if along == "iteration" else {key}  # older records do not say after which updates
        if record["column"] == next(iter(table.columns)) and needed <= record.get("epochs_of", {}).keys():
            of_row.setdefault(record["row"], []).append(record["epochs_of"])
    columns = zip(figure.subplots(2, len(panels), squeeze=False).T, panels.items(), strict=True)
    for (whole, end), (title, rows) in columns:
        for row, colour in zip(rows, _colours(results, rows, "row"), strict=True):
            curves = [found[key] for found in of_row.get(row, [])]
            length = min(map(len, curves), default=0)
            places = of_row[row][0]["step"][:length] if length and along == "iteration" else range(1, length + 1)
            for axis in (whole, end):
                cut = [curve[:length] for curve in curves]
                draw_mean(axis, list(places), cut, color=colour, label=table.rows[row].label)
        for axis in (whole, end):
            axis.set(xlabel=along, ylabel=label)
        show_end(end)
        whole.set_title(title, loc="left", fontsize=7)
        whole.legend(fontsize=6, frameon=False)
    return figure


@at_print_size
def bars(results: Results, *, rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """A bar for each row, beside each other for each column, ours and the paper's (WS, Fig. 1).

    An axis begins below its lowest bar by as much as the bars differ, so that their differences are seen. What diverged
    or was not run has no bar, nor has what the paper does not print.

    Args:
        results: of a table.
        rows, columns: those that are shown.
    """
    table = results.table
    for known, kind, wanted in ((table.rows, "row", rows), (table.columns, "column", columns)):
        for name in wanted:
            if name not in known:
                raise unknown(f"{table.name}: {kind}", name, known)
    figure = Figure(figsize=(PAGE, 2.6), layout="constrained")
    colours = _colours(results, rows, "row")
    for axis, (values, title) in zip(figure.subplots(1, 2), _panels(results), strict=True):
        width, heights = 0.8 / len(rows), []
        for i, (row, colour) in enumerate(zip(rows, colours, strict=True)):
            found = {j: values.get((row, column), (None, None)) for j, column in enumerate(columns)}
            known_at = {j: (mean, std or 0.0) for j, (mean, std) in found.items() if mean is not None}
            means, stds = [mean for mean, _ in known_at.values()], [std for _, std in known_at.values()]
            places = [j + (i - (len(rows) - 1) / 2) * width for j in known_at]
            axis.bar(places, means, 0.9 * width, yerr=stds, color=colour, capsize=2, error_kw={"linewidth": 0.8})
            heights += means
        if heights:
            low, high = min(heights), max(heights)
            axis.set_ylim(max(0.0, low - (high - low or high)), high + 0.3 * (high - low or high))
        axis.set_xticks(range(len(columns)), [table.columns[column].label for column in columns])
        axis.set_title(title, loc="left", fontsize=7)
        axis.grid(axis="y", alpha=0.3, linewidth=0.5)
        axis.set_axisbelow(True)
    labels = [table.rows[row].label for row in rows]
    legend_above(figure, [Patch(color=colour, label=label) for colour, label in zip(colours, labels, strict=True)])
    return figure


def _panels(results: Results) -> list[tuple[Values, str]]:
    """Ours and the paper's, with a title each; of ours only cells that were run."""
    entries = results.entries.items()
    ours = {cell: (entry.mean, entry.std) for cell, entry in entries if entry.mean is not None or entry.diverged}
    papers = {cell: (entry.printed, None) for cell, entry in entries}
    seeds = f"{len(results.seeds)} seed{'s' * (len(results.seeds) != 1)}"
    return [
        (ours, f"Measured: {results.subject}, {seeds}"),
        (papers, f"Paper: {results.paper_subject}"),
    ]


def _draw_curves(
    axis: Axes,
    values: Values,
    lines: Mapping[str, Line],
    groups: Mapping[str, Sequence[str]],
    colours: Sequence[str],
) -> None:
    """A line each, broken between groups of places, and a cross on the floor where one diverged."""
    positions = _positions(groups)
    floor = axis.get_xaxis_transform()
    crosses: dict[str, list[float]] = {}  # by place
    step = min(0.12, 0.4 / len(lines))  # apart, so that error bars do not hide each other, and near their place
    for i, ((name, line), colour, marker) in enumerate(
        zip(lines.items(), colours, itertools.cycle(MARKERS), strict=False)
    ):
        aside = step * (i - (len(lines) - 1) / 2)
        axis.plot([], [], color=colour, marker=marker, markersize=4, label=line.label)
        for places in groups.values():
            found = {place: values[name, place] for place in places if (name, place) in values}
            points = [
                (positions[place] + aside, mean, std or 0.0) for place, (mean, std) in found.items() if mean is not None
            ]
            if points:
                x, means, stds = zip(*points, strict=True)
                axis.errorbar(x, means, stds, color=colour, marker=marker, markersize=4, capsize=2)
            for place in (place for place, (mean, _) in found.items() if mean is None):
                at_x = positions[place] + aside
                axis.plot(at_x, 0.03, "x", color=colour, markersize=7, markeredgewidth=2, transform=floor)
                crosses.setdefault(place, []).append(at_x)
    for at in crosses.values():  # a word for all of a place, which would hide each other
        axis.annotate("diverged", (sum(at) / len(at), 0.06), xycoords=floor, ha="center", fontsize=6)
    axis.set_xticks(list(positions.values()))


def _colours(results: Results, names: Sequence[str], of: Literal["row", "column"]) -> list[str]:
    """Of lines: those of the normalizers that they are called by, or else that their runs have, where it is one."""
    norms: dict[str, set[str]] = {}
    for record in results.records:
        norms.setdefault(record[of], set()).add(record["norm"])
    is_known = {name: name in NORM_COLOURS or len(norms.get(name, ())) != 1 for name in names}
    return norm_colours([name if is_known[name] else next(iter(norms[name])) for name in names])


def _positions(groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Places along the axis, with room between the groups."""
    places = [(place, 0.5 * g) for g, group in enumerate(groups.values()) for place in group]
    return {place: i + room for i, (place, room) in enumerate(places)}


def _average_ratios(results: Results, row: str, columns: Sequence[str], moment: str) -> dict[str, list[float]]:
    """Scope -> its ratio at each column, averaged over layers and seeds; 0 where no run has it."""
    averages = {}
    for quantity in results.measured.at_once:
        if quantity.startswith(f"ratio.{moment}.") and quantity.count(".") == 2:
            cells = [results.measured.of(quantity, (row, column)) for column in columns]
            averages[quantity.rpartition(".")[2]] = [statistics.fmean(c.values()) if c else 0.0 for c in cells]
    return averages


def _number(value: tuple[float | None, float | None] | None) -> float:
    return np.nan if value is None or value[0] is None else value[0]


def _scale(values: np.ndarray) -> tuple[float, float]:
    if not len(values):
        return 0.0, 1.0
    lower, upper = np.quantile(values, [0.25, 0.75])
    low = max(values.min(), lower - 1.5 * (upper - lower))
    return low, values.max() if values.max() > low else low + 1


def _first_word(lines: Mapping[str, Line]) -> str:
    words = {line.label.partition(" ")[0] for line in lines.values() if " " in line.label}
    return words.pop() if len(words) == 1 else ""


def _last_words(line: Line) -> str:
    return line.label.partition(" ")[2] or line.label
