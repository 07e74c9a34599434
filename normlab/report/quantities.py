"""What tests of claims ask of runs: a number of each run by the quantity's name, and the ratios of its layers.

metric                what the cell shows; a diverged run counts as guessing
diverged              1 of a run that diverged, else 0
ratio.mean.bn         the BN ratio of the mean, averaged over the layers; ratio.mean.bn.<49 over those of such a
                      receptive field in pixels (Distinct, Fig. 4)
first.mean.bn         the same of the first layer alone
depth.mean.bn         how much it rises from the first layer to the last, of a line fitted through the layers
divergence            between mean and variance ratios, averaged over the layers (Distinct, Sec. 4.1.1);
                      divergence.<49 over those of such a receptive field
differing             share of layers whose mean and variance choose different scopes, 0 to 1, at the end;
                      differing@0.3 at 30% of the run (Distinct, Fig. 2)
changed@0.3@0.6       share of layers that change a choice between 30% and 60% of the run
learning              what runs are known by, in validation, averaged over the epochs: the faster a run learns, the
                      higher. Here and below it is that of moving averages, SN's too; its negative where lower is better
setbacks              by how much that fell from an epoch to the next, where it fell, summed over the run
area.style            area under the curve of a metric in validation over the updates, divided by these: its mean height
                      from the first evaluation to the last, by trapezoids. Its negative where lower is better: the
                      faster a run learns, the higher. Of what runs are known by, and of what the task keeps a curve
batch_average.learning  the three above under batch averages, of a run that measures them in each epoch
                      (record.estimators); also batch_average.setbacks, batch_average.area.style
train.loss            loss in training, of the last epoch
gap                   that in training minus that in validation, of the last epoch
early_lead            that in validation minus that in training, averaged over the first tenth of the run
fluctuation.bn_mean   how much the mean of BN varies over the last updates, averaged over the layers; also bn_std,
                      en_mean, en_std; .first of the first layer, .later averaged over the others (HN, Fig. 6)
apart.mean            distance of BN's mean from EN's, averaged over updates, layers and channels; also apart.std
moved.mean            how far the ratios of the mean have gone, to and fro, over the run; also moved.var
backbone.mean.bn      the BN ratio of the mean, averaged over the layers of the backbone at the end; also of decoder,
                      fpn, box and mask
start.moved.mean      the same, and start.backbone.mean.bn, of the run that this one began from; a classifier is all
                      backbone
taken.division        share of the squared gradient that the division of Weight Standardization takes, averaged over
                      layers and epochs; taken.centring: that removing the mean takes (WS, Fig. 4)
"""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any, TypeVar

from normlab.dynamics.ratios import (
    RF_RANGES,
    average,
    by_part,
    choice,
    divergence,
    divergence_by_range,
    mean_by_range,
    switchable,
)
from normlab.report.metrics import guessed
from normlab.report.records import Key, Record, key_of, scores
from normlab.report.table import Table
from normlab.tasks.metrics import MetricInfo, curves_of

T = TypeVar("T")
Layers = Sequence[dict[str, Any]]
Quantities = Mapping[str, Mapping[Key, float]]  # quantity -> of each run


@dataclass(frozen=True)
class Measured:
    """Of all runs of a table, or of the paper's (then only its metric)."""

    at_once: Quantities  # what most tests and figures ask for
    layers: Mapping[Key, Layers] = field(default_factory=dict)  # the ratios of each layer at the end
    asked: set[tuple[str, ...]] = field(default_factory=set)  # the (row, column) that was looked at
    others: Callable[[], Quantities] = dict  # made where one is asked for: they look at every layer and epoch
    runs: Mapping[Key, str] = field(default_factory=dict)  # the id of the run that a number is of
    _cells: dict[str, dict[tuple[str, ...], dict[int, float]]] = field(default_factory=dict)  # what `of` has looked up

    def of(self, quantity: str, cell: Sequence[str]) -> dict[int, float]:
        """Seed -> a quantity of a (row, column)."""
        self.asked.add(tuple(cell))
        return self._by_cell(quantity).get(tuple(cell), {})

    def _by_cell(self, quantity: str) -> dict[tuple[str, ...], dict[int, float]]:
        if quantity not in self._cells:
            known = self.at_once if quantity in self.at_once else self.others()
            self._cells[quantity] = _by_cell(known.get(quantity, {}))
        return self._cells[quantity]

    def all_diverged(self, cell: Sequence[str]) -> bool:
        """Whether no run of a (row, column) converged: its metric is guessing, and tells nothing of another such."""
        diverged = self.of("diverged", cell)
        return bool(diverged) and all(diverged.values())

    def are_same_runs(self, cell: Sequence[str], other: Sequence[str]) -> bool:
        """Whether two (row, column) are read off the same runs, seed by seed."""
        own = self._runs_by_cell.get(tuple(cell))
        return own is not None and own == self._runs_by_cell.get(tuple(other))

    @cached_property
    def _runs_by_cell(self) -> dict[tuple[str, ...], dict[int, str]]:
        return _by_cell(self.runs)

    def layers_of(self, cell: Sequence[str]) -> dict[int, Layers]:
        self.asked.add(tuple(cell))
        return self._layers_by_cell.get(tuple(cell), {})

    @cached_property
    def _layers_by_cell(self) -> dict[tuple[str, ...], dict[int, Layers]]:
        return _by_cell(self.layers)


def _by_cell(by_key: Mapping[Key, T]) -> dict[tuple[str, ...], dict[int, T]]:
    """(row, column) -> seed -> what is known of it."""
    found: dict[tuple[str, ...], dict[int, T]] = {}
    for (row, column, seed), value in by_key.items():
        found.setdefault((row, column), {})[seed] = value
    return found


def measured(records: Iterable[Record], table: Table, guessing: float | Mapping[str, float]) -> Measured:
    """Everything above, of the records of a table; `guessing` is what a diverged run counts as (see conf/scale)."""
    records = list(records)
    found = scores(records, table)
    at_once: dict[str, dict[Key, float]] = {
        "metric": {
            key: guessed(table.metric_of(key[0], key[1]), guessing, table.metrics) if score is None else score
            for key, score in found.items()
        },
        "diverged": {key: float(score is None) for key, score in found.items()},
    }
    finished = {key_of(record): record for record in records if record["status"] == "finished"}
    layers = {key: record["layers"] for key, record in finished.items()}
    at_once |= _by_quantity({key: _averages(record["ratios"] or {}) for key, record in finished.items()})
    runs = {key_of(record): record["id"] for record in records}
    return Measured(at_once, layers, others=cache(partial(_others, finished, table.metrics)), runs=runs)


def _others(finished: Mapping[Key, Record], metrics: Mapping[str, MetricInfo]) -> Quantities:
    return _by_quantity(
        {
            key: of_layers(run["layers"])
            | _of_choices(run)
            | _of_epochs(run, metrics)
            | _of_updates(run)
            | _of_start(run)
            for key, run in finished.items()
        }
    )


def _by_quantity(by_run: Mapping[Key, Mapping[str, float]]) -> dict[str, dict[Key, float]]:
    found: dict[str, dict[Key, float]] = {}
    for key, of_run in by_run.items():
        for name, value in of_run.items():
            found.setdefault(name, {})[key] = value
    return found


def of_layers(layers: Layers) -> dict[str, float]:
    """The quantities of one run's ratios at the end, layer by layer; none where no layer chooses."""
    if not layers or not switchable(layers):
        return {}
    found = {
        "divergence": statistics.fmean(divergence(row["mean"], row["var"]) for row in layers),
        "differing": statistics.fmean(choice(row["mean"]) != choice(row["var"]) for row in layers),
    }
    for moment, ratios in average(layers).items():
        for scope in ratios:
            along = [row[moment].get(scope, 0.0) for row in layers]
            found[f"depth.{moment}.{scope}"] = _rise(along)
            found[f"first.{moment}.{scope}"] = along[0]
    traced = [row for row in layers if row.get("receptive_field") is not None]
    if traced:
        for name, moments in mean_by_range(traced).items():
            if name in RF_RANGES[:-1]:
                found |= {f"{quantity}.{name}": value for quantity, value in _averages(moments).items()}
        pairs = [(row["receptive_field"], divergence(row["mean"], row["var"])) for row in traced]
        by_range = divergence_by_range(pairs)
        found |= {f"divergence.{name}": by_range[name] for name in RF_RANGES[:-1] if name in by_range}
    return found


def _rise(along: Sequence[float]) -> float:
    """From the first to the last, of the line that fits best (least squares)."""
    if len(along) < 2:
        return 0.0
    places = [i / (len(along) - 1) - 0.5 for i in range(len(along))]
    return math.fsum(p * value for p, value in zip(places, along, strict=True)) / math.fsum(p * p for p in places)


def divergence_between(some: Layers, others: Layers, moment: str) -> float:
    """Of two runs of one network: D between the ratios of a layer, averaged over the layers (Distinct, Fig. 5)."""
    return statistics.fmean(divergence(a[moment], b[moment]) for a, b in zip(some, others, strict=True))


def _averages(ratios: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {f"ratio.{moment}.{scope}": value for moment in ratios for scope, value in ratios[moment].items()}


def _of_choices(record: Record) -> dict[str, float]:
    choices = record.get("choices", {})
    found = {f"differing@{at}": statistics.fmean(m != v for m, v in layers) for at, layers in choices.items()}
    for (earlier, before), (later, after) in itertools.combinations(choices.items(), 2):
        changed = statistics.fmean(a != b for a, b in zip(before, after, strict=True))
        found[f"changed@{earlier}@{later}"] = changed
    return found


def _of_epochs(record: Record, metrics: Mapping[str, MetricInfo]) -> dict[str, float]:
    """Turned so that higher is better, whatever the metric is."""
    epochs = record.get("epochs_of", {})
    if not epochs:
        return {}
    headline = record["headline"]["metric"]
    sign = _sign(headline, metrics)
    train, val = ([sign * v for v in epochs.get(f"{split}/{headline}", ())] for split in ("train", "val"))
    found = {"train.loss": epochs["train/loss"][-1]}
    measured = [sign * v for v in epochs.get(f"val_batch_average/{headline}", ())]
    for prefix, along in (("", val), ("batch_average.", measured)):
        if along:
            found[f"{prefix}learning"] = statistics.fmean(along)
            found[f"{prefix}setbacks"] = math.fsum(max(0.0, a - b) for a, b in itertools.pairwise(along))
    if train and val:
        first = max(1, len(val) // 10)
        found["gap"] = train[-1] - val[-1]
        found["early_lead"] = statistics.fmean(v - t for v, t in zip(val[:first], train[:first], strict=True))
    return found | _areas(epochs, metrics)


def _areas(epochs: Mapping[str, Sequence[float]], metrics: Mapping[str, MetricInfo]) -> dict[str, float]:
    """Of each curve: nothing where it has one evaluation, or a record of before says not after which updates."""
    steps = epochs.get("step", ())
    if len(steps) < 2:
        return {}
    return {
        f"{prefix}area.{name}": _sign(name, metrics) * mean_height(steps, epochs[f"{split}/{name}"])
        for prefix, split in (("", "val"), ("batch_average.", "val_batch_average"))
        for name in curves_of(metrics)
        if f"{split}/{name}" in epochs
    }


def mean_height(x: Sequence[float], y: Sequence[float]) -> float:
    """The area under a curve by trapezoids, divided by its length along x."""
    pairs = zip(itertools.pairwise(x), itertools.pairwise(y), strict=True)
    return math.fsum((b - a) * (low + high) / 2 for (a, b), (low, high) in pairs) / (x[-1] - x[0])


def _sign(metric: str, metrics: Mapping[str, MetricInfo]) -> int:
    return -1 if metric in metrics and metrics[metric].better == "lower" else 1


def _of_start(record: Record) -> dict[str, float]:
    """How the ratios have moved, and where they stand in each part; the same of the run that this one began from."""
    found: dict[str, float] = {}
    for prefix, run in (("", record), ("start.", record.get("start") or {})):
        found |= {f"{prefix}moved.{moment}": way for moment, way in run.get("moved", {}).items()}
        for part, layers in by_part(run.get("layers") or ()).items():
            if switchable(layers):
                own = "backbone" if part == "other" else part
                found |= {f"{prefix}{own}.{k.partition('.')[2]}": v for k, v in _averages(average(layers)).items()}
    return found


def _of_updates(record: Record) -> dict[str, float]:
    found = {f"taken.{term}": share for term, share in record.get("taken", {}).items()}
    for name, along in record.get("fluctuations", {}).items():
        what, _, moment = name.partition("_")
        quantity = f"apart.{moment}" if what == "apart" else f"fluctuation.{name}"
        found[quantity] = statistics.fmean(along)
        if what != "apart" and len(along) > 1:
            found |= {f"{quantity}.first": along[0], f"{quantity}.later": statistics.fmean(along[1:])}
    return found
