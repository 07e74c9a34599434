"""How the statistics of BN and of EN move and fluctuate from step to step (seed 004, Figs. 6 and 7)."""

import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from normlab.errors import UserError
from normlab.figures.run import Record, Run, expect, labels
from normlab.figures.style import COLOURS, PAGE, at_print_size, key_line, legend_above

_LOOKS = {  # statistic -> its colour, line and whether a bar is hatched
    "bn_mean": (COLOURS["bn"], "-", False),
    "bn_std": (COLOURS["bn"], "--", True),
    "en_mean": (COLOURS["en"], "-", False),
    "en_std": (COLOURS["en"], "--", True),
}
_HATCH = "/////"


@at_print_size
def evolution(runs: Sequence[Run], *, neuron: int = 1, last: int = 200) -> Figure:
    """Mean and standard deviation of BN and of EN in every layer, step by step (seed 004, Fig. 7).

    Args:
        runs: one or more, such as two batch sizes: a column each; a row is a layer.
        neuron: whose BN statistics, from 1; EN's are those of the whole layer.
        last: steps, counted from the end of training.
    """
    expect(runs, 1)
    names = labels(runs)
    found = [_last(run, last) for run in runs]
    num_layers = _num_layers(runs, found)
    figure = Figure(figsize=(PAGE, 0.7 + 1.25 * num_layers), layout="constrained")
    axes = figure.subplots(num_layers, len(runs), squeeze=False, sharex="col", sharey="row")
    for column, (name, records, run) in enumerate(zip(names, found, runs, strict=True)):
        steps = [record["step"] for record in records]
        for row, axis in enumerate(axes[:, column]):
            for statistic, (colour, line, _) in _LOOKS.items():
                values = [_value(run, record["layers"][row], statistic, neuron) for record in records]
                axis.plot(steps, values, color=colour, linestyle=line, linewidth=0.8)
            axis.set_title(f"{name}: neuron {row + 1}-{neuron}", loc="left")
            axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
            axis.grid(alpha=0.3, linewidth=0.5)
        axis.set_xlabel("training step")
    legend_above(figure, [key_line(color=c, linestyle=line, label=_spelled(s)) for s, (c, line, _) in _LOOKS.items()])
    return figure


@at_print_size
def fluctuation(runs: Sequence[Run], *, neuron: int = 0, last: int = 200) -> Figure:
    """Standard deviation over the last steps of the statistics of BN and of EN, by layer (seed 004, Fig. 6).

    Args:
        runs: one or more, such as two batch sizes: a panel each.
        neuron: whose BN statistics, from 1; 0: the average over all neurons of the layer.
        last: steps, counted from the end of training; two or more.
    """
    expect(runs, 1)
    if last < 2:
        raise UserError(f"last={last}: expected 2 or more")
    found = [_last(run, last) for run in runs]
    num_layers = _num_layers(runs, found)
    figure = Figure(figsize=(PAGE, 2.9), layout="constrained")
    for axis, run, name, records in zip(
        figure.subplots(1, len(runs), squeeze=False, sharey=True)[0], runs, labels(runs), found, strict=True
    ):
        for i, (statistic, (colour, _, hatched)) in enumerate(_LOOKS.items()):
            heights = [
                _spread(run, [r["layers"][row] for r in records], statistic, neuron) for row in range(num_layers)
            ]
            at = [row + 0.2 * (i - 1.5) for row in range(num_layers)]
            axis.bar(at, heights, 0.18, color=colour, hatch=_HATCH if hatched else None, edgecolor="white", linewidth=0)
        ticks = [f"{row + 1}-{neuron}" if neuron else f"layer {row + 1}" for row in range(num_layers)]
        axis.set_xticks(range(num_layers), ticks)
        axis.set_title(f"{name}, last {len(records)} steps", loc="left")
    figure.axes[0].set_ylabel("standard deviation over steps")
    keys = [
        Patch(facecolor=colour, hatch=_HATCH if hatched else None, edgecolor="white", label=_spelled(statistic))
        for statistic, (colour, _, hatched) in _LOOKS.items()
    ]
    legend_above(figure, keys)
    return figure


def _last(run: Run, last: int) -> list[Record]:
    if last < 1:
        raise UserError(f"last={last}: expected 1 or more")
    return run.statistics[-last:]


def _num_layers(runs: Sequence[Run], found: Sequence[Sequence[Record]]) -> int:
    """Raises UserError unless the runs have as many layers each."""
    numbers = {len(record["layers"]) for records in found for record in records}
    if len(numbers) != 1:
        raise UserError(f"{', '.join(run.name for run in runs)}: their layers are not as many; expected one network")
    return numbers.pop()


def _value(run: Run, row: Record, statistic: str, neuron: int) -> float:
    value = row[statistic]
    if not isinstance(value, list):
        return value
    if not 1 <= neuron <= len(value):
        raise UserError(f"neuron={neuron}: {row['layer']} of {run.name} has neurons 1 to {len(value)}")
    return value[neuron - 1]


def _spread(run: Run, rows: Sequence[Record], statistic: str, neuron: int) -> float:
    """Standard deviation over the steps, of the sample (n - 1)."""
    if neuron or not isinstance(rows[0][statistic], list):
        return statistics.stdev(_value(run, row, statistic, neuron) for row in rows)
    of_neurons = zip(*(row[statistic] for row in rows), strict=True)
    return statistics.fmean(statistics.stdev(values) for values in of_neurons)


def _spelled(statistic: str) -> str:
    scope, _, what = statistic.partition("_")
    return f"{scope.upper()} {what}"
