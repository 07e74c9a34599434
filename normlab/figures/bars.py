"""Bars of ratios: of every layer at one moment, as hard choices, and averaged over the layers of runs or of blocks."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from normlab.dynamics.ratios import MOMENTS, average, choice, mean_by_block, num_disagreeing
from normlab.figures.curves import draw_averages
from normlab.figures.style import MOMENT_NAMES, PAGE, at_print_size, key_line, legend_above, scope_colours
from normlab.runs.records import Record, Run, expect, labels, spelled

_HATCH = "/////"
_MOST_NUMBERED = 20  # bars: more have no room for numbers
_THIRDS = (0.3, 0.6, 0.9)  # of training: epochs 30, 60 and 90 of the papers' 100


@at_print_size
def overview(runs: Sequence[Run]) -> Figure:
    """The ratios of one run: each layer at its last record, and the averages of all layers over training."""
    expect(runs, 1, 1)
    moments = runs[0].ratios
    layers = moments[-1]["layers"]
    colours = scope_colours(_scopes(layers))
    figure = Figure(figsize=(PAGE, 5.4), layout="constrained")
    axes = figure.subplot_mosaic(
        [["mean"] * 2, ["var"] * 2, ["mean over epochs", "var over epochs"]], height_ratios=[1, 1, 0.9]
    )
    for moment in MOMENTS:
        _draw_layers(axes[moment], layers, moment, colours)
        axes[moment].set_title(f"Ratios of the {MOMENT_NAMES[moment]}, epoch {moments[-1]['epoch']:g}", loc="left")
        history = axes[f"{moment} over epochs"]
        draw_averages(history, moments, moment, colours)
        history.set(xlabel="epoch", ylabel="ratio")
        history.set_title(f"{MOMENT_NAMES[moment]}: average of all layers", loc="left")
    axes["var"].set_xlabel("layers in network order, by receptive field in pixels")
    legend_above(figure, _legend(layers, colours))
    return figure


@at_print_size
def layers(runs: Sequence[Run], *, epoch: Annotated[float, Ge(0)] | None = None) -> Figure:
    """Ratios of mean and variance in every layer at one moment (seed 000, Figs. 9 to 11 and 13; seed 002, Fig. 5).

    Args:
        runs: one or more, each with a panel for the mean and one for the variance.
        epoch: of the moment; the nearest recorded one is taken. null: the last.
    """
    expect(runs, 1)
    chosen = [_nearest(run, run.ratios[-1]["epoch"] if epoch is None else epoch) for run in runs]
    colours = scope_colours([scope for moment in chosen for scope in _scopes(moment["layers"])])
    figure = Figure(figsize=(PAGE, 0.5 + 2.3 * len(runs)), layout="constrained")
    axes = figure.subplots(2 * len(runs), 1, squeeze=False)[:, 0]
    panels = zip(runs, labels(runs), chosen, axes[0::2], axes[1::2], strict=True)
    for _, label, moment, *pair in panels:
        for axis, which in zip(pair, MOMENTS, strict=True):
            _draw_layers(axis, moment["layers"], which, colours)
            axis.set_title(f"{label}: {MOMENT_NAMES[which]}, epoch {moment['epoch']:g}", loc="left")
    axes[-1].set_xlabel("layers in network order, by receptive field in pixels")
    legend_above(figure, _legend([row for moment in chosen for row in moment["layers"]], colours))
    return figure


@at_print_size
def hard_ratios(runs: Sequence[Run], *, epochs: Sequence[Annotated[float, Ge(0)]] = ()) -> Figure:
    """The scope of the largest ratio of mean and variance in every layer, at some epochs (seed 000, Fig. 2; seed 002,
    Fig. 8), and the share of layers in which mean and variance choose differently.

    Args:
        runs: one.
        epochs: of the moments; the nearest recorded ones are taken. Empty: at 30%, 60% and 90% of what is recorded.
    """
    expect(runs, 1, 1)
    last = runs[0].ratios[-1]["epoch"]
    moments = [_nearest(runs[0], epoch) for epoch in epochs or [share * last for share in _THIRDS]]
    colours = scope_colours([scope for moment in moments for scope in _scopes(moment["layers"])])
    figure = Figure(figsize=(PAGE, 0.7 + 1.15 * len(moments)), layout="constrained")
    axes = figure.subplots(len(moments), 1, squeeze=False)[:, 0]
    for axis, moment in zip(axes, moments, strict=True):
        rows = moment["layers"]
        for height, which in enumerate(MOMENTS):
            chosen = [choice(row[which]) for row in rows]
            bars = axis.bar(
                range(len(rows)), 0.86, 0.86, height, color=[colours[scope] for scope in chosen], linewidth=0
            )
            _hatch(bars, rows)
        _label_layers(axis, rows, 2.12)
        axis.set(ylim=(0, 2.3), yticks=(0.43, 1.43), yticklabels=("µ", "σ²"))
        axis.spines[["left", "bottom"]].set_visible(False)
        axis.tick_params(length=0)
        apart = num_disagreeing(rows)
        axis.set_title(
            f"epoch {moment['epoch']:g}: µ and σ² choose differently in {apart} of {len(rows)} layers "
            f"({apart / len(rows):.0%})",
            loc="left",
        )
    axes[-1].set_xlabel("layers in network order, by receptive field in pixels")
    legend_above(figure, _legend([row for moment in moments for row in moment["layers"]], colours))
    return figure


@at_print_size
def averages(
    runs: Sequence[Run],
    *,
    by: Literal["run", "norm", "model", "data", "batch", "block"] = "run",
    block_depth: Annotated[int, Ge(1)] = 1,
) -> Figure:
    """Ratios at the end of training, averaged over layers: by batch setting, task or block (seed 001, Figs. 1c, 3, 4).

    Args:
        runs: one or more. Runs that agree in `by`, such as those of several seeds, are averaged.
        by: what tells the bars apart. block: parts of the network, in network order.
        block_depth: words of a layer's name that make its block: layer1 at 1, layer1.0 at 2.
    """
    expect(runs, 1)
    groups: dict[str, list[dict[str, dict[str, float]]]] = {}
    for run, label in zip(runs, labels(runs), strict=True):
        rows = run.ratios[-1]["layers"]
        if by == "block":
            found = mean_by_block(rows, block_depth)
        else:
            found = {label if by == "run" else spelled(by, run.settings[by]): average(rows)}
        for name, ratios in found.items():
            groups.setdefault(name, []).append(ratios)
    scopes = {moment: _order({s for g in groups.values() for r in g for s in r[moment]}) for moment in MOMENTS}
    colours = scope_colours(_order({scope for of_moment in scopes.values() for scope in of_moment}))
    crowded = len(groups) > 8
    figure = Figure(figsize=(PAGE, 4.6 if crowded else 2.9), layout="constrained")
    panels = figure.subplots(2, 1) if crowded else figure.subplots(1, 2)
    for axis, moment in zip(panels, MOMENTS, strict=True):
        heights = {
            scope: [sum(r[moment].get(scope, 0.0) for r in group) / len(group) for group in groups.values()]
            for scope in scopes[moment]
        }
        stacked(axis, list(groups), heights, colours)
        axis.set_title(f"{MOMENT_NAMES[moment]}", loc="left")
        axis.set_ylabel("ratio, average of layers")
    legend_above(figure, [Patch(color=colour, label=scope.upper()) for scope, colour in colours.items()])
    return figure


def stacked(
    axis: Axes, names: Sequence[str], heights: Mapping[str, Sequence[float]], colours: Mapping[str, str]
) -> None:
    """A bar a name, stacked of the ratios of each scope, whose values stand in it where there is room."""
    bottom = [0.0] * len(names)
    for scope, values in heights.items():
        bars = axis.bar(range(len(names)), values, 0.85, bottom, color=colours[scope], linewidth=0)
        texts = [f"{value:.2f}" if value > 0.06 and len(names) <= _MOST_NUMBERED else "" for value in values]
        size = 7 if len(names) <= 6 else 6
        axis.bar_label(bars, texts, label_type="center", color="white", fontsize=size, fontweight="bold")
        bottom = [b + value for b, value in zip(bottom, values, strict=True)]
    slant = 90 if len(names) > _MOST_NUMBERED else 30 if max(map(len, names)) * len(names) > 44 else 0
    axis.set_xticks(range(len(names)), names, rotation=slant, ha="right" if slant == 30 else "center")
    axis.set(xlim=(-0.6, len(names) - 0.4), ylim=(0, 1), yticks=(0, 0.5, 1))


def _draw_layers(axis: Axes, rows: Sequence[Record], moment: str, colours: Mapping[str, str]) -> None:
    bottom = [0.0] * len(rows)
    for scope, colour in colours.items():
        heights = [row[moment].get(scope, 0.0) for row in rows]
        bars = axis.bar(range(len(rows)), heights, 0.86, bottom, color=colour, linewidth=0)
        _hatch(bars, rows)
        bottom = [b + height for b, height in zip(bottom, heights, strict=True)]
    _label_layers(axis, rows, 1.06)
    axis.set(ylim=(0, 1.12), yticks=(0, 0.5, 1), ylabel="ratio")


def _hatch(bars: Any, rows: Sequence[Record]) -> None:
    for bar, row in zip(bars, rows, strict=True):
        if row["kernel_size"] == [3, 3]:
            bar.set(hatch=_HATCH, edgecolor="white")


def _label_layers(axis: Axes, rows: Sequence[Record], height: float) -> None:
    """The receptive field below each layer, and a square above those on a shortcut."""
    shortcuts = [x for x, row in enumerate(rows) if row["shortcut"]]
    axis.plot(shortcuts, [height] * len(shortcuts), "ks", markersize=3)
    many = len(rows) > 24
    fields = ["–" if row["receptive_field"] is None else str(row["receptive_field"]) for row in rows]
    axis.set_xticks(range(len(rows)), fields, rotation=90 if many else 0, fontsize=6 if many else 7)
    axis.set_xlim(-0.6, len(rows) - 0.4)


def _legend(rows: Sequence[Record], colours: Mapping[str, str]) -> list[Patch | Line2D]:
    handles: list[Patch | Line2D] = [Patch(color=colour, label=scope.upper()) for scope, colour in colours.items()]
    if any(row["kernel_size"] == [3, 3] for row in rows):
        handles.append(Patch(facecolor="grey", edgecolor="white", hatch=_HATCH, label="after a 3×3 convolution"))
    if any(row["shortcut"] for row in rows):
        handles.append(key_line(color="black", marker="s", markersize=3, linestyle="none", label="on a shortcut"))
    return handles


def _scopes(rows: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(scope for moment in MOMENTS for row in rows for scope in row[moment]))


def _order(scopes: set[str]) -> list[str]:
    return sorted(scopes, key=lambda scope: (("in", "ln", "gn", "bn", "en").index(scope.rstrip("0123456789")), scope))


def _nearest(run: Run, epoch: float) -> Record:
    return min(run.ratios, key=lambda moment: abs(moment["epoch"] - epoch))
