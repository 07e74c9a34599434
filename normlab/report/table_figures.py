"""Figures of a table: one named in its YAML is a function of the results. No torch here."""

import itertools
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from normlab.report.results import Results
from normlab.report.style import COLOURS, SPARE_COLOURS
from normlab.report.table import Table

Values = Mapping[tuple[str, str], tuple[float | None, float | None]]  # (row, column) -> mean (None: diverged), std

_MARKERS = ("o", "s", "D", "^", "v")
_MOMENTS = {"mean": "mean µ", "var": "variance σ²"}
_SETTINGS = "GPUs × samples per GPU"


def accuracy(results: Results, *, groups: Mapping[str, Sequence[str]], reference: Sequence[str]) -> Figure:
    """The metric of each row by column, ours beside the paper's, with standard deviations (seed 001, Fig. 1b).

    Args:
        results: of a table.
        groups: what columns have in common -> these columns; a line joins them.
        reference: (row, column) whose value is a dashed line, as Fig. 1b draws an ideal BN.
    """
    entries = results.entries.items()
    ours = {cell: (entry.mean, entry.std) for cell, entry in entries if entry.mean is not None or entry.diverged}
    papers = {cell: (entry.printed, None) for cell, entry in entries}
    seeds = f"{len(results.seeds)} seed{'s' * (len(results.seeds) != 1)}"
    figure = Figure(figsize=(12.0, 4.8), layout="constrained")
    panels: list[tuple[Values, str]] = [
        (ours, f"Measured: {results.subject}, {seeds}"),
        (papers, f"Paper: {results.paper_subject}"),
    ]
    for axis, (values, title) in zip(figure.subplots(1, 2), panels, strict=True):
        _draw_curves(axis, results.table, values, groups)
        ideal, _ = values.get((reference[0], reference[1]), (None, None))
        if ideal is not None:
            label = f"{results.table.rows[reference[0]].label} at {reference[1]}"
            axis.axhline(ideal, color="grey", linestyle="--", linewidth=1.2, label=label)
        axis.set_title(title, loc="left")
        axis.set(xlabel=_SETTINGS, ylabel=results.metric)
        axis.grid(axis="y", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


def ratios(results: Results, *, row: str) -> Figure:
    """Ratios of a row's switchable layers by column, averaged over layers and seeds (seed 001, Fig. 4).

    Args:
        results: of a table.
        row: whose ratios.
    """
    columns = list(results.table.columns)
    figure = Figure(figsize=(12.0, 4.8), layout="constrained")
    legend: dict[str, Patch] = {}
    for axis, (moment, title) in zip(figure.subplots(1, 2), _MOMENTS.items(), strict=True):
        bottom = [0.0] * len(columns)
        for scope, heights in _average_ratios(results, row, moment).items():
            colour = COLOURS.get(scope, SPARE_COLOURS[0])
            bars = axis.bar(columns, heights, 0.85, bottom, color=colour)
            texts = [f"{height:.2f}" if height > 0.05 else "" for height in heights]
            axis.bar_label(bars, texts, label_type="center", color="white", fontsize=9, fontweight="bold")
            bottom = [b + height for b, height in zip(bottom, heights, strict=True)]
            legend[scope] = Patch(color=colour, label=scope.upper())
        axis.set_title(f"{title} of {results.table.rows[row].label}: {results.subject}", loc="left")
        axis.set(ylim=(0, 1), yticks=(0, 0.5, 1), ylabel="ratio, average of all layers", xlabel=_SETTINGS)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=list(legend.values()), loc="outside upper center", ncols=max(1, len(legend)), frameon=False)
    return figure


def _draw_curves(axis: Axes, table: Table, values: Values, groups: Mapping[str, Sequence[str]]) -> None:
    """A line a row, broken between groups of columns, and a cross on the floor where a row diverged."""
    positions = _positions(groups)
    floor = axis.get_xaxis_transform()
    looks = zip(table.rows.items(), _colours(table), itertools.cycle(_MARKERS), strict=False)
    for i, ((row, line), colour, marker) in enumerate(looks):
        aside = 0.12 * (i - (len(table.rows) - 1) / 2)  # so that error bars do not hide each other
        axis.plot([], [], color=colour, marker=marker, label=line.label)
        for columns in groups.values():
            found = {positions[column] + aside: values[row, column] for column in columns if (row, column) in values}
            points = [(x, mean, std or 0.0) for x, (mean, std) in found.items() if mean is not None]
            if points:
                x, means, stds = zip(*points, strict=True)
                axis.errorbar(x, means, stds, color=colour, marker=marker, linewidth=1.8, capsize=3)
            for diverged in (x for x, (mean, _) in found.items() if mean is None):
                axis.plot(diverged, 0.03, "x", color=colour, markersize=10, markeredgewidth=2.5, transform=floor)
                axis.annotate("diverged", (diverged, 0.06), xycoords=floor, ha="center", fontsize=9)
    axis.set_xticks(list(positions.values()), list(positions))


def _positions(groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Columns along the axis, with room between the groups."""
    columns = [(column, 0.5 * g) for g, group in enumerate(groups.values()) for column in group]
    return {column: i + room for i, (column, room) in enumerate(columns)}


def _colours(table: Table) -> list[str]:
    """Of the rows: the scope's of that name, else a spare one."""
    spare = itertools.cycle(SPARE_COLOURS)
    return [COLOURS.get(row) or next(spare) for row in table.rows]


def _average_ratios(results: Results, row: str, moment: str) -> dict[str, list[float]]:
    """Scope -> its ratio at each column, averaged over seeds; 0 where no run has it."""
    averages = {}
    for quantity, values in results.measured.items():
        if quantity.startswith(f"ratio.{moment}."):
            cells = [
                [v for (r, c, _), v in values.items() if (r, c) == (row, column)] for column in results.table.columns
            ]
            averages[quantity.rpartition(".")[2]] = [statistics.fmean(cell) if cell else 0.0 for cell in cells]
    return averages
