"""Interactive charts: plotly's figures as data, which the pages draw.

Texts in plotly's figures are a small markup of their own, and names may be anyone's: `_text` takes its meaning away.
"""

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from normlab.dynamics.ratios import MOMENTS, RF_RANGES, average, mean_by_part, mean_by_range, switchable
from normlab.errors import plain
from normlab.figures.style import MOMENT_NAMES, norm_colours, scope_colours
from normlab.report.results import Results
from normlab.site.shown import ShownRun
from normlab.tasks.metrics import info_of

_MOST_POINTS = 2000  # of a line; of more updates, evenly spaced ones are drawn
_MOST_CHARTS = 12
_GREY = "#b8b8b8"
_TRAIN, _VAL, _ESTIMATED = "#0072B2", "#D55E00", "#009E73"
_SPLITS = {  # prefix of a measure -> what it is called, its colour
    "train": ("training", _TRAIN),
    "val": ("validation", _VAL),
    "val_batch_average": ("validation, batch average", _ESTIMATED),
}


@dataclass(frozen=True)
class Chart:
    """A chart of a page.

    Attributes:
        id: of the chart within the page, and what two runs are compared by.
        title: above it.
        figure: of plotly.
        overlay: whether those of two runs are drawn into one.
        note: what a reader must know.
    """

    id: str
    title: str
    figure: go.Figure
    overlay: bool = True
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        found = json.loads(self.figure.to_json())  # numbers that are none have become null
        return {"id": self.id, "title": self.title, "note": self.note, "overlay": self.overlay} | {
            "data": found["data"],
            "layout": found["layout"],
        }


def charts_of_run(run: ShownRun) -> list[Chart]:
    """Curves of training, then ratios."""
    return [*_curves(run), *_ratio_charts(run)]


def chart_of_table(results: Results) -> Chart:
    """Every measured cell with its spread, and the paper's beside it: points, since columns need have no order."""
    table = results.table
    norms = {record["row"]: record["norm"] for record in results.records}
    colours = norm_colours([norms.get(row, row) for row in table.rows])
    columns = list(table.columns)
    labels = [_text(table.columns[column].label) for column in columns]
    data = []
    for (row, line), colour in zip(table.rows.items(), colours, strict=True):
        entries = [results.entries[row, column] for column in columns]
        name = _text(line.label)
        measured = [entry.mean for entry in entries]
        spreads = [entry.std or 0.0 for entry in entries]
        look = {"color": colour, "size": 8}
        data.append(
            go.Scatter(
                x=labels, y=measured, error_y={"type": "data", "array": spreads, "thickness": 1}, mode="markers",
                marker=look, name=name, legendgroup=row, visible=True if any(measured) else "legendonly",
            )
        )  # fmt: skip
        if results.is_printed(row):
            printed = [entry.printed for entry in entries]
            hollow = look | {"symbol": "diamond-open"}
            data.append(
                go.Scatter(x=labels, y=printed, mode="markers", marker=hollow, name=f"{name}, paper", legendgroup=row)
            )
    shown = [value for trace in data for value in trace.y if value is not None]
    low, high = min(shown, default=0.0), max(shown, default=1.0)
    room = 0.08 * (high - low or 1.0)
    axis = {"title": _text(results.metric), "range": [low - room, high + room]}
    figure = _figure(data, xaxis={"type": "category"}, yaxis=axis, scattermode="group")
    return Chart("cells", "Every cell: measured ● with its standard deviation over seeds, and the paper's ◇", figure)


# ---- training --------------------------------------------------------------------------------------------------------


def _curves(run: ShownRun) -> list[Chart]:
    """A chart for each quantity: the loss and what the run is known by first; values by class have none."""
    measured = {key for row in run.epochs for key in row if key.partition("/")[0] in _SPLITS}
    quantities = {key.partition("/")[2] for key in measured} | {
        key.partition("/")[2] for row in run.updates[:1] for key in row if key.startswith("batch/")
    }
    first = [name for name in ("loss", run.headline) if name in quantities]
    others = sorted(name for name in quantities if name not in first and "." not in name)
    return [_curve(run, name) for name in [*first, *others][:_MOST_CHARTS]]


def _curve(run: ShownRun, quantity: str) -> Chart:
    data, note = [], ""
    updates = [row for row in run.updates if _is_number(row.get(f"batch/{quantity}"))]
    if updates:
        step = math.ceil(len(updates) / _MOST_POINTS)
        note = f"Of {len(updates):,} updates every {step}th is drawn." if step > 1 else ""
        data.append(
            _line([(r["epoch"], r[f"batch/{quantity}"]) for r in updates[::step]], "each update", _GREY, width=1)
        )
    for split, (name, colour) in _SPLITS.items():
        points = [(row["epoch"], row[key]) for row in run.epochs if _is_number(row.get(key := f"{split}/{quantity}"))]
        if points:
            data.append(_line(points, name, colour, markers=len(points) <= 40))
    info = info_of(quantity, run.known)
    label = info.label if info else {"lr": "learning rate"}.get(quantity, quantity)
    figure = _figure(data, xaxis={"title": run.clock}, yaxis={"title": _text(label)}, hovermode="x unified")
    if quantity in ("loss", "lr"):
        figure.update_layout(updatemenus=[_scales()])
    return Chart(f"curve-{quantity}", label[:1].upper() + label[1:], figure, note=note)


def _scales() -> dict[str, Any]:
    """Buttons for a linear and a logarithmic axis."""
    kinds = ("linear", "log")
    buttons = [{"label": kind, "method": "relayout", "args": [{"yaxis.type": kind}]} for kind in kinds]
    return {"type": "buttons", "direction": "right", "buttons": buttons} | _ABOVE


# ---- ratios ----------------------------------------------------------------------------------------------------------


def _ratio_charts(run: ShownRun) -> list[Chart]:
    moments = run.moments
    if not moments or not switchable(moments[-1]["layers"]):
        return []
    found = [_last_ratios(moments, run.clock)]
    return [*_averages(moments), _map(moments), *found] if len(moments) > 1 else found


def _averages(moments: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Of all layers over training, or of those of a range of receptive fields or a part, which a menu chooses."""
    groups = [{"all": average(m["layers"])} | mean_by_part(m["layers"]) | mean_by_range(m["layers"]) for m in moments]
    names = ["all", *(name for name in groups[-1] if name != "all")]
    epochs = [moment["epoch"] for moment in moments]
    colours = _scope_colours(moments)
    charts = []
    for which in MOMENTS:
        data, owners = [], []
        for name in names:
            for scope in groups[-1][name][which]:
                values = [found[name][which].get(scope) if name in found else None for found in groups]
                trace = _line(
                    list(zip(epochs, values, strict=True)), scope.upper(), colours[scope], markers=len(epochs) <= 40
                )
                data.append(trace.update(visible=name == "all"))
                owners.append(name)
        axes = {"xaxis": {"title": "epoch"}, "yaxis": {"title": "ratio", "range": [-0.02, 1.02]}}
        figure = _figure(data, **axes, hovermode="x unified")
        if len(names) > 1:
            figure.update_layout(updatemenus=[_menu({_group(n): [owner == n for owner in owners] for n in names})])
        title = f"Ratios of the {MOMENT_NAMES[which]}, averaged over layers"
        charts.append(Chart(f"ratios-{which}", title, figure))
    return charts


def _group(name: str) -> str:
    if name == "all":
        return "all layers"
    return f"receptive field {name} pixels" if name in RF_RANGES else name


def _map(moments: Sequence[Mapping[str, Any]]) -> Chart:
    """Every layer's ratio of one scope over training, as a colour; a menu chooses moment and scope."""
    layers = moments[-1]["layers"]
    numbers = list(range(1, len(layers) + 1))
    by_name = [{row["layer"]: row for row in moment["layers"]} for moment in moments]
    texts = [[_described(row)] * len(moments) for row in layers]
    kinds = [(which, scope) for which in MOMENTS for scope in _scopes(layers, which)]
    data = []
    for which, scope in kinds:
        values = [
            [rows[layer["layer"]][which].get(scope) if layer["layer"] in rows else None for rows in by_name]
            for layer in layers
        ]
        data.append(
            go.Heatmap(
                x=[moment["epoch"] for moment in moments], y=numbers, z=values, text=texts, zmin=0, zmax=1,
                colorscale="Viridis", colorbar={"title": "ratio", "thickness": 12}, visible=(which, scope) == kinds[0],
                hovertemplate="%{text}<br>epoch %{x}: %{z:.3f}<extra></extra>",
            )
        )  # fmt: skip
    choices = {f"{MOMENT_NAMES[w]}: {s.upper()}": [(w, s) == kind for kind in kinds] for w, s in kinds}
    figure = _figure(
        data, xaxis={"title": "epoch"}, yaxis={"title": "layer in network order", "autorange": "reversed"},
        height=max(380, 150 + 8 * len(layers)), updatemenus=[_menu(choices)],
    )  # fmt: skip
    return Chart("ratio-map", "Ratios of every layer over training", figure, overlay=False)


def _last_ratios(moments: Sequence[Mapping[str, Any]], clock: str) -> Chart:
    """Every layer's ratios at the last moment, stacked; a menu chooses mean or variance."""
    layers, colours = moments[-1]["layers"], _scope_colours(moments)
    numbers, texts = list(range(1, len(layers) + 1)), [_described(row) for row in layers]
    kinds = [(which, scope) for which in MOMENTS for scope in _scopes(layers, which)]
    data = [
        go.Bar(
            x=numbers, y=[row[which].get(scope, 0.0) for row in layers], customdata=texts, name=scope.upper(),
            marker={"color": colours[scope]}, visible=which == MOMENTS[0],
            hovertemplate="%{customdata}<br>" + _text(scope.upper()) + " %{y:.3f}<extra></extra>",
        )
        for which, scope in kinds
    ]  # fmt: skip
    choices = {MOMENT_NAMES[moment]: [which == moment for which, _ in kinds] for moment in MOMENTS}
    figure = _figure(
        data, barmode="stack", bargap=0.1, updatemenus=[_menu(choices)],
        xaxis={"title": "layer in network order"}, yaxis={"title": "ratio", "range": [0, 1]},
    )  # fmt: skip
    return Chart("ratios-last", f"Ratios of every layer after {clock} {moments[-1]['epoch']:g}", figure, overlay=False)


def _scopes(layers: Sequence[Mapping[str, Any]], which: str) -> list[str]:
    return list(dict.fromkeys(scope for row in layers for scope in row[which]))


def _scope_colours(moments: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    layers = moments[-1]["layers"]
    return scope_colours(scope for which in MOMENTS for scope in _scopes(layers, which))


def _described(row: Mapping[str, Any]) -> str:
    """conv2.norm, receptive field 43, behind a 3×3 convolution, on a shortcut"""
    parts = [str(row["layer"]) or "layer"]
    parts += [f"receptive field {row['receptive_field']}"] * (row["receptive_field"] is not None)
    parts += ["behind a 3×3 convolution"] * (row["kernel_size"] == [3, 3]) + ["on a shortcut"] * bool(row["shortcut"])
    return _text(", ".join(parts))


# ---- plotly ----------------------------------------------------------------------------------------------------------

_ABOVE: dict[str, Any] = {
    "x": 0,
    "y": 1.02,
    "xanchor": "left",
    "yanchor": "bottom",
    "pad": {"b": 4},
    "showactive": True,
}


def _menu(choices: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    """A menu that chooses which traces are seen."""
    buttons = [{"label": _text(n), "method": "restyle", "args": ["visible", list(v)]} for n, v in choices.items()]
    return {"type": "dropdown", "buttons": buttons} | _ABOVE


def _line(
    points: Sequence[tuple[float, float | None]], name: str, colour: str, *, width: float = 2, markers: bool = False
) -> go.Scatter:
    x, y = [x for x, _ in points], [y for _, y in points]
    mode = "lines+markers" if markers else "lines"
    return go.Scatter(x=x, y=y, name=_text(name), mode=mode, line={"color": colour, "width": width}, marker={"size": 5})


def _figure(data: Sequence[Any], **layout: Any) -> go.Figure:
    """One whose look, but for what is given, is that of all (static/site.js)."""
    return go.Figure(list(data), layout={"template": {}} | layout)


def _text(text: str) -> str:
    """As it is read, whoever wrote it."""
    return html.escape(plain(str(text)), quote=False)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
