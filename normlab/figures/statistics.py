"""How the statistics of BN and of EN move and fluctuate from step to step (HN, Figs. 6 and 7)."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from annotated_types import Ge
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from normlab.dynamics.fluctuation import spread
from normlab.errors import UserError
from normlab.figures.style import COLOURS, PAGE, at_print_size, key_line, legend_above
from normlab.runs.records import Record, Run, expect, labels

_LOOKS = {  # statistic -> its colour, line and whether a bar is hatched
    "bn_mean": (COLOURS["bn"], "-", False),
    "bn_std": (COLOURS["bn"], "--", True),
    "en_mean": (COLOURS["en"], "-", False),
    "en_std": (COLOURS["en"], "--", True),
}
_HATCH = "/////"
_MOST_BELOW = 8  # layers that have rows of their own
_MOST_BESIDE = 12  # layers on an axis in half a page


@at_print_size
def evolution(
    runs: Sequence[Run],
    *,
    neuron: Annotated[int, Ge(1)] = 1,
    layers: Sequence[Annotated[int, Ge(1)]] = (),
    last: Annotated[int, Ge(1)] = 200,
) -> Figure:
    """Mean and standard deviation of BN and of EN in some layers, step by step (HN, Fig. 7).

    Args:
        runs: one or more, such as two batch sizes: a column each; a row is a layer.
        neuron: whose BN statistics, from 1; EN's are those of the whole layer.
        layers: from 1, in network order. Empty: all, or, of more than eight, six from the first to the last.
        last: steps, counted from the end of training.
    """
    expect(runs, 1)
    names = labels(runs)
    found = [run.statistics[-last:] for run in runs]
    num_layers = _num_layers(runs, found)
    layers = layers or _some(num_layers)
    for layer in layers:
        if not 1 <= layer <= num_layers:
            raise UserError(f"layers={layer}: expected layers from 1 to {num_layers}")
    figure = Figure(figsize=(PAGE, 0.7 + 1.25 * len(layers)), layout="constrained")
    axes = figure.subplots(len(layers), len(runs), squeeze=False, sharex="col", sharey="row")
    for column, (name, records, run) in enumerate(zip(names, found, runs, strict=True)):
        steps = [record["step"] for record in records]
        for layer, axis in zip(layers, axes[:, column], strict=True):
            for statistic, (colour, line, _) in _LOOKS.items():
                values = [_value(run, record["layers"][layer - 1], statistic, neuron) for record in records]
                axis.plot(steps, values, color=colour, linestyle=line, linewidth=0.8)
            axis.set_title(f"{name}: neuron {layer}-{neuron}", loc="left")
            axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
            axis.grid(alpha=0.3, linewidth=0.5)
        axis.set_xlabel("training step")
    legend_above(figure, [key_line(color=c, linestyle=line, label=_spelled(s)) for s, (c, line, _) in _LOOKS.items()])
    return figure


@at_print_size
def fluctuation(runs: Sequence[Run], *, neuron: Annotated[int, Ge(0)] = 0, last: Annotated[int, Ge(2)] = 200) -> Figure:
    """Standard deviation over the last steps of the statistics of BN and of EN, by layer (HN, Fig. 6).

    Args:
        runs: one or more, such as two batch sizes: a panel each.
        neuron: whose BN statistics, from 1; 0: the average over all neurons of the layer.
        last: steps, counted from the end of training; two or more.
    """
    expect(runs, 1)
    found = [run.statistics[-last:] for run in runs]
    num_layers = _num_layers(runs, found)
    many = num_layers > _MOST_BESIDE
    figure = Figure(figsize=(PAGE, 0.5 + 2.4 * (len(runs) if many else 1)), layout="constrained")
    grid = (len(runs), 1) if many else (1, len(runs))
    panels = figure.subplots(*grid, squeeze=False, sharey=True).flat
    for axis, run, name, records in zip(panels, runs, labels(runs), found, strict=True):
        of_layers = [[record["layers"][row] for record in records] for row in range(num_layers)]
        heights = {what: [_spread(run, rows, what, neuron) for rows in of_layers] for what in _LOOKS}
        (_draw_points if many else _draw_bars)(axis, heights)
        names = [f"{row + 1}-{neuron}" if neuron else f"{row + 1}" for row in range(num_layers)]
        axis.set_xticks(range(num_layers), names, rotation=90 if many else 0, fontsize=6 if many else 7)
        axis.set_xlim(-0.6, num_layers - 0.4)
        axis.set_title(f"{name}, last {len(records)} steps", loc="left")
        axis.set_xlabel("neuron" if neuron else "layer in network order")
    figure.axes[0].set_ylabel("standard deviation over steps")
    keys: list[Any] = [
        key_line(color=colour, linestyle=line, marker="o", markersize=2.5, label=_spelled(statistic))
        if many
        else Patch(facecolor=colour, hatch=_HATCH if hatched else None, edgecolor="white", label=_spelled(statistic))
        for statistic, (colour, line, hatched) in _LOOKS.items()
    ]
    legend_above(figure, keys)
    return figure


def _draw_bars(axis: Axes, heights: Mapping[str, Sequence[float]]) -> None:
    for i, (statistic, (colour, _, hatched)) in enumerate(_LOOKS.items()):
        at = [row + 0.2 * (i - 1.5) for row in range(len(heights[statistic]))]
        hatch = _HATCH if hatched else None
        axis.bar(at, heights[statistic], 0.18, color=colour, hatch=hatch, edgecolor="white", linewidth=0)


def _draw_points(axis: Axes, heights: Mapping[str, Sequence[float]]) -> None:
    """Of many layers, whose values are apart by orders of magnitude."""
    for statistic, (colour, line, _) in _LOOKS.items():
        values = heights[statistic]
        axis.plot(range(len(values)), values, color=colour, linestyle=line, linewidth=0.8, marker="o", markersize=2.5)
    axis.set_yscale("log")
    axis.grid(alpha=0.3, linewidth=0.5)


def _num_layers(runs: Sequence[Run], found: Sequence[Sequence[Record]]) -> int:
    """Raises UserError unless the runs have as many layers each."""
    numbers = {len(record["layers"]) for records in found for record in records}
    if len(numbers) != 1:
        raise UserError(f"{', '.join(run.name for run in runs)}: their layers are not as many; expected one network")
    return numbers.pop()


def _some(num_layers: int) -> list[int]:
    """All layers, or six of them, evenly spread."""
    if num_layers <= _MOST_BELOW:
        return list(range(1, num_layers + 1))
    return [1 + round(i * (num_layers - 1) / 5) for i in range(6)]


def _value(run: Run, row: Record, statistic: str, neuron: int) -> float:
    value = row[statistic]
    if not isinstance(value, list):
        return value
    if not 1 <= neuron <= len(value):
        raise UserError(f"neuron={neuron}: {row['layer']} of {run.name} has neurons 1 to {len(value)}")
    return value[neuron - 1]


def _spread(run: Run, rows: Sequence[Record], statistic: str, neuron: int) -> float:
    """Standard deviation over the steps, of the sample (n - 1)."""
    if neuron:
        return statistics.stdev(_value(run, row, statistic, neuron) for row in rows)
    return spread(rows, statistic)


def _spelled(statistic: str) -> str:
    scope, _, what = statistic.partition("_")
    return f"{scope.upper()} {what}"
