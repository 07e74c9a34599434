"""Figures of one run, from its records: the ratios of its layers, and its training curves."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from normlab.dynamics.ratios import MOMENTS, average
from normlab.report.style import COLOURS, SPARE_COLOURS

_TITLES = {"mean": "mean µ", "var": "variance σ²"}
_HATCH = "////"
_LINES = ("-", "--", "-.", ":")  # tell apart lines that coincide


def ratio_figure(records: Sequence[dict[str, Any]]) -> Figure:
    """Ratios of a run: by layer at its last record (as seed 000, Fig. 9), and over training, averaged over the layers.

    records are the lines of ratios.jsonl (see normlab.dynamics.ratios); there must be at least one.
    """
    last = records[-1]
    layers = last["layers"]
    scopes = list(dict.fromkeys(scope for moment in MOMENTS for row in layers for scope in row[moment]))
    colours = _colours(scopes)

    figure = Figure(figsize=(min(max(9.0, 0.22 * len(layers) + 3), 18.0), 8.0), layout="constrained")
    axes = figure.subplot_mosaic([["mean"] * 2, ["var"] * 2, ["mean over epochs", "var over epochs"]])
    for moment in MOMENTS:
        _draw_layers(axes[moment], layers, moment, colours)
        axes[moment].set_title(f"Ratios of the {_TITLES[moment]}, epoch {last['epoch']:g}", loc="left")
        _draw_history(axes[f"{moment} over epochs"], records, moment, colours)
        axes[f"{moment} over epochs"].set_title(f"{_TITLES[moment]}: average of all layers", loc="left")
    axes["var"].set_xlabel("layers in network order, by receptive field in pixels")
    figure.legend(handles=_legend(layers, colours), loc="outside upper center", ncols=5, frameon=False)
    return figure


def training_figure(metrics: Iterable[dict[str, Any]]) -> Figure:
    """Loss, and top-1 in per cent, over epochs.

    metrics are the lines of metrics.jsonl: epoch (a fraction inside one), and any of "<split>/loss" and "<split>/top1".
    A loss that is not finite leaves a gap.
    """
    rows = list(metrics)
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    for axis, quantity, label in zip(figure.subplots(1, 2), ("loss", "top1"), ("loss", "top-1 (%)"), strict=True):
        keys = sorted({key for row in rows for key in row if key.endswith(f"/{quantity}")})
        for key in keys:
            points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
            epochs, values = zip(*points, strict=True) if points else ((), ())
            _draw_line(axis, epochs, values, label=key.removesuffix(f"/{quantity}"))
        if keys:
            axis.legend(frameon=False)
        axis.set(xlabel="epoch", ylabel=label)
    return figure


def _colours(scopes: Iterable[str]) -> dict[str, str]:
    """A colour for each scope: its family's ("en" of "en32") if free, else a spare one."""
    chosen: dict[str, str] = {}
    spare = itertools.cycle(SPARE_COLOURS)
    for scope in scopes:
        family = COLOURS.get(scope.rstrip("0123456789"))
        chosen[scope] = family if family and family not in chosen.values() else next(spare)
    return chosen


def _draw_layers(axis: Axes, layers: Sequence[dict[str, Any]], moment: str, colours: dict[str, str]) -> None:
    positions = range(len(layers))
    bottom = [0.0] * len(layers)
    for scope, colour in colours.items():
        heights = [row[moment].get(scope, 0.0) for row in layers]
        bars = axis.bar(positions, heights, 0.85, bottom, color=colour, edgecolor="white", linewidth=0)
        for bar, row in zip(bars, layers, strict=True):
            if row["kernel_size"] == [3, 3]:
                bar.set_hatch(_HATCH)
        bottom = [b + height for b, height in zip(bottom, heights, strict=True)]
    for x, row in zip(positions, layers, strict=True):
        if row["shortcut"]:
            axis.plot(x, 1.05, "ks", markersize=5)
    many = len(layers) > 24
    axis.set_xticks(
        positions,
        [str(row["receptive_field"]) for row in layers],
        rotation=90 if many else 0,
        fontsize=8 if many else 10,
    )
    axis.set(xlim=(-0.6, len(layers) - 0.4), ylim=(0, 1.1), yticks=(0, 0.5, 1), ylabel="ratio")
    axis.spines[["top", "right"]].set_visible(False)


def _draw_history(axis: Axes, records: Sequence[dict[str, Any]], moment: str, colours: dict[str, str]) -> None:
    epochs = [record["epoch"] for record in records]
    averages = [average(record["layers"])[moment] for record in records]
    for scope, line in zip(averages[-1], itertools.cycle(_LINES)):
        ratios = [ratio[scope] for ratio in averages]
        _draw_line(axis, epochs, ratios, color=colours[scope], linestyle=line)
    axis.set(ylim=(0, 1.02), xlabel="epoch", ylabel="ratio")


def _draw_line(axis: Axes, x: Sequence[float], y: Sequence[float], **style: Any) -> None:
    axis.plot(x, y, linewidth=1.8, marker="o" if len(x) <= 30 else None, markersize=3.5, **style)
    axis.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    axis.grid(alpha=0.3)


def _legend(layers: Sequence[dict[str, Any]], colours: dict[str, str]) -> list[Patch | Line2D]:
    handles: list[Patch | Line2D] = [Patch(color=colour, label=scope.upper()) for scope, colour in colours.items()]
    if any(row["kernel_size"] == [3, 3] for row in layers):
        handles.append(Patch(facecolor="grey", edgecolor="white", hatch=_HATCH, label="after a 3×3 convolution"))
    if any(row["shortcut"] for row in layers):
        handles.append(Line2D([], [], color="black", marker="s", linestyle="none", label="on a shortcut"))
    return handles
