"""Curves of training: loss and accuracy of several runs, and the same weights under two estimators of statistics."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normlab.errors import UserError, nearest
from normlab.figures.style import PAGE, at_print_size, draw_mean, key_line, legend_above, norm_colours, show_end
from normlab.runs.records import NoRecordsError, Run, expect, labels
from normlab.tasks.metrics import MetricInfo, info_of, value_of

_SPLITS = {"train": "--", "val": "-"}
_ESTIMATORS = {"val": ("moving average", "--"), "val_batch_average": ("batch average", "-")}


@at_print_size
def learning_curves(
    runs: Sequence[Run],
    *,
    quantities: Sequence[str] = (),
    splits: Sequence[Literal["train", "val"]] = ("train", "val"),
    along: Literal["epoch", "iteration"] = "epoch",
) -> Figure:
    """Loss and accuracy over training, a colour a normalizer (SN, Figs. 2, 5; WS, Figs. 4-6; HN, Fig. 5); below, the
    last third at a scale of its own.

    Runs that differ in their seed alone are one line, their mean, with a band of a standard deviation. In training a
    value is the mean over the updates since the evaluation before, which is that of the last epoch unless
    evaluate_every says otherwise. A loss that is not finite leaves a gap.

    Args:
        runs: one or more.
        quantities: a panel each: loss, what the task measures (top1), or what is 100 less (error1). Empty: loss, and
            what runs are known by, as far as they were measured.
        splits: train (dashed), val (solid).
        along: what the horizontal axis counts; iterations are updates.
    """
    expect(runs, 1)
    if not splits:
        raise UserError("splits=[]: expected train, val or both")
    known = {key.partition("/")[2] for run in runs for row in run.epochs for key in row if "/" in key}
    metrics = _metrics(runs)
    known |= {name for name, info in metrics.items() if info.complement in known}
    quantities = quantities or [name for name in ("loss", *list(metrics)[:1]) if name in known] or sorted(known)
    for quantity in quantities:
        if quantity not in known:
            raise UserError(f"quantities={quantity}: no run has measured it; {nearest(quantity, known)}")
    groups = _by_seed(runs)
    firsts = [group[0] for group in groups]
    names = labels(firsts, [key for key in firsts[0].settings if key != "seed"])
    colours = norm_colours([run.settings["norm"] for run in firsts])
    figure = Figure(figsize=(PAGE, 4.6), layout="constrained")
    panels = figure.subplots(2, len(quantities), squeeze=False)
    for column, quantity in zip(panels.T, quantities, strict=True):
        for axis in column:
            for group, colour in zip(groups, colours, strict=True):
                for split in splits:
                    _draw(axis, group, split, quantity, along, color=colour, linestyle=_SPLITS[split])
            axis.set(xlabel=along, ylabel=_label(quantity, metrics))
        show_end(column[1])
    counts = [f" ({len(group)} seeds)" * (len(group) > 1) for group in groups]
    labelled = zip(colours, names, counts, strict=True)
    handles = [key_line(color=colour, label=name + count) for colour, name, count in labelled]
    handles += [key_line(color="grey", linestyle=_SPLITS[split], label=split) for split in splits]
    legend_above(figure, handles)
    return figure


@at_print_size
def estimators(runs: Sequence[Run], *, quantity: str | None = None) -> Figure:
    """Validation over epochs under the moving and the batch average, from one set of weights (SN, Fig. 8).

    Args:
        runs: one or more, of which one has measured both; the others, such as BN, have their moving average drawn.
        quantity: of validation; null: what runs are known by.
    """
    expect(runs, 1)
    metrics = _metrics(runs)
    quantity = quantity or next(iter(metrics), "loss")
    if not any(f"val_batch_average/{quantity}" in row for run in runs for row in run.epochs):
        raise NoRecordsError(
            f"{', '.join(run.name for run in runs)}: metrics.jsonl has no val_batch_average/{quantity}: "
            "record.estimators=true makes a run measure the batch average at each epoch, if its norm stores statistics"
        )
    colours = norm_colours([run.settings["norm"] for run in runs])
    figure = Figure(figsize=(PAGE / 2, 2.9), layout="constrained")
    axis = figure.subplots()
    handles = []
    for run, name, colour in zip(runs, labels(runs), colours, strict=True):
        for prefix, (estimator, line) in _ESTIMATORS.items():
            if any(f"{prefix}/{quantity}" in row for row in run.epochs):
                _draw(axis, [run], prefix, quantity, "epoch", color=colour, linestyle=line)
                handles.append(key_line(color=colour, linestyle=line, label=f"{name}, {estimator}"))
    axis.set(xlabel="epoch", ylabel=f"validation {_label(quantity, metrics)}")
    legend_above(figure, handles, columns=1)
    return figure


def _metrics(runs: Sequence[Run]) -> dict[str, MetricInfo]:
    return {name: info for run in reversed(runs) for name, info in run.metrics.items()}


def _label(quantity: str, metrics: Mapping[str, MetricInfo]) -> str:
    info = info_of(quantity, metrics)
    return info.label if info else quantity


def _by_seed(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs that differ in their seed alone, together."""
    found: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        found.setdefault(tuple(value for key, value in run.settings.items() if key != "seed"), []).append(run)
    return list(found.values())


def _draw(
    axis: Axes, runs: Sequence[Run], split: str, quantity: str, along: Literal["epoch", "iteration"], **style: str
) -> None:
    """A line of one run, or the mean of several where each has a value."""
    curves = [_curve(run, split, quantity, along) for run in runs]
    shared = [at for at in curves[0] if all(at in curve for curve in curves)]
    draw_mean(axis, shared, [[curve[at] for at in shared] for curve in curves], **style)


def _curve(run: Run, split: str, quantity: str, along: Literal["epoch", "iteration"]) -> dict[float, float]:
    """Epoch or iteration -> value; not a number where it is not finite."""
    prefix, place = f"{split}/", {"epoch": "epoch", "iteration": "step"}[along]
    measured = [
        (row[place], {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix) and v is not None})
        for row in run.epochs
    ]
    points = [(at, value_of(values, quantity, run.metrics)) for at, values in measured]
    return {at: value if math.isfinite(value) else math.nan for at, value in points if value is not None}
