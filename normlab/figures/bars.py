"""Bars of ratios: of every layer at one moment, as hard choices, and averaged over the layers of runs or of blocks."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from normlab.dynamics.ratios import MOMENTS, average, by_part, choice, mean_by_block, mean_by_part, num_disagreeing
from normlab.errors import UserError
from normlab.figures.curves import NO_FIELD, ONE_PART, draw_averages, notes, what_notes_mean
from normlab.figures.style import (
    MOMENT_NAMES,
    PAGE,
    at_print_size,
    fitting_size,
    key_line,
    legend_above,
    scope_colours,
    text_width,
)
from normlab.runs.records import Record, Run, expect, labels, spelled

_HATCH = "/////"
_MOST_NUMBERED = 20  # bars: more have no room for numbers
_THIRDS = (0.3, 0.6, 0.9)  # of training: epochs 30, 60 and 90 of the papers' 100
_BARS = PAGE - 0.5  # inches that the bars of all layers span
_NAME, _NAME_HEIGHT = 7, 0.125  # of a part: points of its letters, inches of its line
_PARTS_ACROSS = 4  # small panels of parts below the panel of all layers


@at_print_size
def overview(runs: Sequence[Run]) -> Figure:
    """The ratios of one run: each layer at its last record, and the averages over training, of all layers and, where
    the model has several parts, of each part.
    """
    expect(runs, 1, 1)
    moments = runs[0].ratios
    layers = moments[-1]["layers"]
    colours = scope_colours(_scopes(layers))
    parts = list(mean_by_part(layers))
    lines = [parts[i : i + _PARTS_ACROSS] for i in range(0, len(parts), _PARTS_ACROSS)]
    mosaic: list[Any] = [["mean"] * 2, ["var"] * 2, ["mean over epochs", "var over epochs"]]
    if lines:
        mosaic.append([_small_panels(moment, lines) for moment in MOMENTS])
    figure = Figure(figsize=(PAGE, 5.4 + 2 * _names_height(layers) + 1.05 * len(lines)), layout="constrained")
    axes = figure.subplot_mosaic(mosaic, height_ratios=[1, 1, 0.9, 0.8 * len(lines)][: len(mosaic)])
    for moment in MOMENTS:
        title = f"Ratios of the {MOMENT_NAMES[moment]}, epoch {moments[-1]['epoch']:g}"
        _draw_layers(axes[moment], layers, moment, colours, title)
        history = axes[f"{moment} over epochs"]
        small = {part: axes[f"{moment} of {part}"] for part in parts}
        draw_averages({"all": history} | small, moments, moment, colours)
        history.set(xlabel="epoch", ylabel="ratio")
        history.set_title(f"{MOMENT_NAMES[moment]}: average of all layers", loc="left")
        for i, (part, axis) in enumerate(small.items()):
            axis.tick_params(labelleft=i % len(lines[0]) == 0, labelsize=6)
            room = _BARS / 2 / len(lines[0]) - 0.15
            axis.set_title(part, loc="left", pad=3, fontsize=fitting_size(part, room, _NAME))
    axes["var"].set_xlabel(_order_label(layers))
    legend_above(figure, _legend(layers, colours))
    return figure


def _small_panels(moment: str, lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """A panel for each part, in lines of equal length."""
    return [[f"{moment} of {part}" for part in line] + ["."] * (len(lines[0]) - len(line)) for line in lines]


@at_print_size
def layers(runs: Sequence[Run], *, epoch: Annotated[float, Ge(0)] | None = None) -> Figure:
    """Ratios of mean and variance in every layer at one moment (Distinct, Figs. 9 to 11 and 13; SN-TPAMI, Fig. 5).

    Args:
        runs: one or more, each with a panel for the mean and one for the variance.
        epoch: of the moment; the nearest recorded one is taken. null: the last.
    """
    expect(runs, 1)
    chosen = [_nearest(run, run.ratios[-1]["epoch"] if epoch is None else epoch) for run in runs]
    colours = scope_colours([scope for moment in chosen for scope in _scopes(moment["layers"])])
    height = 0.5 + 2.3 * len(runs) + sum(2 * _names_height(moment["layers"]) for moment in chosen)
    figure = Figure(figsize=(PAGE, height), layout="constrained")
    axes = figure.subplots(2 * len(runs), 1, squeeze=False)[:, 0]
    orders = [_order_label(moment["layers"]) for moment in chosen]
    for i, (label, moment, *pair) in enumerate(zip(labels(runs), chosen, axes[0::2], axes[1::2], strict=True)):
        for axis, which in zip(pair, MOMENTS, strict=True):
            title = f"{label}: {MOMENT_NAMES[which]}, epoch {moment['epoch']:g}"
            _draw_layers(axis, moment["layers"], which, colours, title)
        if i == len(runs) - 1 or len(set(orders)) > 1:
            pair[-1].set_xlabel(orders[i])
    legend_above(figure, _legend([row for moment in chosen for row in moment["layers"]], colours))
    return figure


@at_print_size
def hard_ratios(runs: Sequence[Run], *, epochs: Sequence[Annotated[float, Ge(0)]] = ()) -> Figure:
    """The scope of the largest ratio of mean and variance in every layer, at some epochs (Distinct, Fig. 2; SN-TPAMI,
    Fig. 8), and the share of layers in which mean and variance choose differently.

    A pale top is the scope that came second, as high as its share of both ratios: half the bar where all is open.

    Args:
        runs: one.
        epochs: of the moments; the nearest recorded ones are taken. Empty: at 30%, 60% and 90% of what is recorded.
    """
    expect(runs, 1, 1)
    last = runs[0].ratios[-1]["epoch"]
    moments = [_nearest(runs[0], epoch) for epoch in epochs or [share * last for share in _THIRDS]]
    colours = scope_colours([scope for moment in moments for scope in _scopes(moment["layers"])])
    height = 0.7 + sum(1.15 + _names_height(moment["layers"]) for moment in moments)
    figure = Figure(figsize=(PAGE, height), layout="constrained")
    axes = figure.subplots(len(moments), 1, squeeze=False)[:, 0]
    for axis, moment in zip(axes, moments, strict=True):
        rows = _grouped(moment["layers"])
        for bottom, which in enumerate(MOMENTS):
            chosen = [choice(row[which]) for row in rows]
            bars = axis.bar(_places(rows), 0.86, 0.86, bottom, color=[colours[scope] for scope in chosen], linewidth=0)
            _hatch(bars, rows)
            _draw_second(axis, rows, which, bottom + 0.86, colours)
        axis.set(ylim=(0, 2.3), yticks=(0.43, 1.43), yticklabels=("µ", "σ²"))
        axis.spines[["left", "bottom"]].set_visible(False)
        axis.tick_params(length=0)
        apart = num_disagreeing(rows)
        title = (
            f"epoch {moment['epoch']:g}: µ and σ² choose differently in {apart} of {len(rows)} layers "
            f"({apart / len(rows):.0%})"
        )
        _label_layers(axis, rows, 2.12, title)
    axes[-1].set_xlabel(_order_label(moments[-1]["layers"]))
    second = Patch(color="grey", alpha=0.45, label="came second")
    legend_above(figure, [*_legend([row for moment in moments for row in moment["layers"]], colours), second])
    return figure


@at_print_size
def averages(
    runs: Sequence[Run],
    *,
    by: Literal["run", "norm", "model", "data", "batch", "task", "block", "part"] = "run",
    block_depth: Annotated[int, Ge(1)] = 1,
) -> Figure:
    """Ratios at the end of training, averaged over layers: by batch setting, task or block (SN, Figs. 1c, 3, 4).

    Args:
        runs: one or more. Runs that agree in `by`, such as those of several seeds, are averaged.
        by: what tells the bars apart. task: and where a model has several parts, each of them (SN, Fig. 1c).
            block: stages of the network, in network order. part: the model's parts, where it has several, and all
            layers.
        block_depth: words of a layer's name that make its block: layer1 at 1, layer1.0 at 2.
    """
    expect(runs, 1)
    groups: dict[str, list[dict[str, dict[str, float]]]] = {}
    for run, label in zip(runs, labels(runs), strict=True):
        rows = run.ratios[-1]["layers"]
        if by == "block":
            found = mean_by_block(rows, block_depth)
        elif by == "part":
            found = mean_by_part(rows)
            if not found:
                raise UserError(f"by=part: {run.name}: {ONE_PART}; expected several, or by=block")
            found["all layers"] = average(rows)
        elif by == "task":
            task = run.settings["task"]
            parts = {f"{task}, {part}": found for part, found in mean_by_part(rows).items()}
            found = parts or {task: average(rows)}
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


def _draw_layers(axis: Axes, layers: Sequence[Record], moment: str, colours: Mapping[str, str], title: str) -> None:
    rows = _grouped(layers)
    places, bottom = _places(rows), [0.0] * len(rows)
    for scope, colour in colours.items():
        heights = [row[moment].get(scope, 0.0) for row in rows]
        bars = axis.bar(places, heights, 0.86, bottom, color=colour, linewidth=0)
        _hatch(bars, rows)
        bottom = [b + height for b, height in zip(bottom, heights, strict=True)]
    _label_layers(axis, rows, 1.06, title)
    axis.set(ylim=(0, 1.12), yticks=(0, 0.5, 1), ylabel="ratio")


def _draw_second(axis: Axes, rows: Sequence[Record], which: str, top: float, colours: Mapping[str, str]) -> None:
    """How near a choice was, at the top of its bar."""
    for place, row in zip(_places(rows), rows, strict=True):
        first = choice(row[which])
        others = {scope: ratio for scope, ratio in row[which].items() if scope != first}
        if not others:
            continue
        second = choice(others)
        height = 0.86 * others[second] / ((others[second] + row[which][first]) or 1.0)
        axis.bar(place, -height, 0.86, top, color="white", linewidth=0)
        axis.bar(place, -height, 0.86, top, color=colours[second], alpha=0.45, linewidth=0)


def _hatch(bars: Any, rows: Sequence[Record]) -> None:
    for bar, row in zip(bars, rows, strict=True):
        if row["kernel_size"] == [3, 3]:
            bar.set(hatch=_HATCH, edgecolor="white")


def _label_layers(axis: Axes, rows: Sequence[Record], height: float, title: str) -> None:
    """The receptive field below each layer, or its number where none has one; a square above those on a shortcut, and
    the names of several parts above theirs.
    """
    places = _places(rows)
    shortcuts = [x for x, row in zip(places, rows, strict=True) if row["shortcut"]]
    axis.plot(shortcuts, [height] * len(shortcuts), "ks", markersize=3)
    many = len(rows) > 24
    axis.set_xticks(places, notes(rows), rotation=90 if many else 0, fontsize=6 if many else 7)
    for label in axis.get_xticklabels():
        if label.get_text() == NO_FIELD:
            label.set_rotation(0)
    axis.set_xlim(-0.6, places[-1] + 0.6)
    names = _part_names(rows)
    across = axis.get_xaxis_transform()
    for name, first, last, centre, line in names:
        axis.plot([first - 0.43, last + 0.43], [1, 1], color="0.4", linewidth=0.8, transform=across, clip_on=False)
        axis.annotate(
            name,
            (centre, 1),
            (0, 2 + 72 * _NAME_HEIGHT * line),
            xycoords=across,
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=_NAME,
        )
    axis.set_title(title, loc="left", pad=6 + 72 * _names_height(rows))


def _order_label(rows: Sequence[Record]) -> str:
    """Of the axis on which the layers stand."""
    meant = what_notes_mean(rows)
    return f"layers in network order{meant and ', by '}{meant}"


def _grouped(layers: Sequence[Record]) -> list[Record]:
    """Part by part, each in network order."""
    return [row for inside in by_part(layers).values() for row in inside]


def _places(rows: Sequence[Record]) -> list[float]:
    """Where the layers stand on the axis: at 0, 1, 2 ..., with a gap between parts."""
    gap = min(1.0, max(0.4, len(rows) / 60))
    sizes = [len(inside) for inside in by_part(rows).values()]
    starts = [k for k, size in enumerate(sizes) for _ in range(size)]
    return [x + gap * k for x, k in enumerate(starts)]


def _part_names(rows: Sequence[Record]) -> list[tuple[str, float, float, float, int]]:
    """Name, first and last place, place of the name, and in which line it stands so that none meets another.

    Nothing where the model has one part.
    """
    parts, places = by_part(rows), iter(_places(rows))
    if len(parts) == 1:
        return []
    spans = {name: [next(places) for _ in inside] for name, inside in parts.items()}
    end = max(xs[-1] for xs in spans.values()) + 0.6
    found: list[tuple[str, float, float, float, int]] = []
    taken: list[float] = []  # of each line, up to where
    for name, xs in spans.items():
        half = text_width(name, _NAME) / 2 * (end + 0.6) / _BARS
        centre = max(min((xs[0] + xs[-1]) / 2, end - half), half - 0.6)
        line = next((i for i, right in enumerate(taken) if right <= centre - half), len(taken))
        taken[line : line + 1] = [centre + half]
        found.append((name, xs[0], xs[-1], centre, line))
    return found


def _names_height(layers: Sequence[Record]) -> float:
    """Inches above the bars that the names of parts take."""
    lines = max((line for *_, line in _part_names(_grouped(layers))), default=-1) + 1
    return _NAME_HEIGHT * lines


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
