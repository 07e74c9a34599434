"""What was measured of a table: records.jsonl, a line per cell and seed, from which every report is made.

A record is a run's summary.json (id is the hash of its config) with `row`, `column`, `finished` (time of day, UTC) and

layers        the ratios of each switchable layer at the end
choices       the scopes that each layer would keep if its ratios were hard, for mean and variance, at 30%, 60% and 90%
epochs_of     what was measured in each epoch, or up to each other evaluation on the way (evaluate_every), and after
              which update that was (step)
fluctuations  how much the statistics of BN and EN vary in each layer, and how far apart they are (record.statistics)
moved         how far the ratios of mean and variance have gone, to and fro, averaged over the layers
start         of the run that this one began from: id, made_by, and its layers and moved until then; null without one
taken         shares that Weight Standardization takes from the gradients (record.gradients)
changed       what the command set beyond the table and its scale, as [epochs=1]; only if it did

Cells of one run differ in what they read off it; a cell that measures statistics anew adds these to `metrics`.
"""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from numbers import Real
from pathlib import Path
from typing import Any

from normlab.config import BatchAverage
from normlab.dynamics import ratios
from normlab.dynamics.fluctuation import STATISTICS, apart, spread
from normlab.dynamics.ratios import MOMENTS, choice, switchable
from normlab.errors import UserError
from normlab.reading import ESTIMATE, RECORD, STEP, read_jsonl, read_metrics
from normlab.report.metrics import CHOICES_AT
from normlab.report.record_checks import check_records
from normlab.report.table import Cell, Origin, Table
from normlab.runs.folder import RunFolder
from normlab.runs.lock import locked
from normlab.runs.records import Run
from normlab.tasks.metrics import curves_of, value_of
from normlab.writing import seal, write_text

Record = dict[str, Any]
Key = tuple[str, str, int]  # row, column, seed
Ids = Mapping[Key, str]  # of the run that each cell's number is of

_PATIENCE = 60.0  # seconds, for another command that writes records of the table
_OF_LAYER = ("layer", "part", "receptive_field", *MOMENTS)


def table_folder(table: Table, scale: str, results: Path) -> Path:
    """Where a table's records and report are: results/sn_table2-digits."""
    return results / f"{table.name}-{scale}"


def collect(
    table: Table,
    cells: Sequence[Cell],
    folders: Sequence[RunFolder],
    ids: Ids,
    into: Path,
    changed: Sequence[str] = (),
    origins: Sequence[RunFolder | None] | None = None,
) -> list[Record]:
    """Write what the finished and diverged runs measured, a folder for each cell, to records.jsonl in `into`.

    What was recorded there before of other cells and seeds stays, if its run would still be the same (`ids`), or if
    another command has recorded it since this one was planned. `origins` are what the runs began from. `changed` is
    what was set beyond the table and its scale; each record keeps it, and reports say it on top. Raises UserError where
    records of other settings are.
    """
    runs = zip(cells, folders, origins or [None] * len(cells), strict=True)
    own = {"changed": list(changed)} if changed else {}
    over = ("finished", "diverged")
    found = [_record(table, cell, run, origin) for cell, run, origin in runs if run.status()["status"] in over]
    with locked(into, patience=_PATIENCE):
        check_changed(table, into, changed)
        before = {key_of(record): record for record in recorded(table, into)}
        kept = {key: record for key, record in before.items() if ids.get(key, record["id"]) == record["id"]}
        by_key = kept | {key_of(record): record | own for record in found if record}
        order = [*ids, *sorted(by_key.keys() - ids.keys(), key=lambda key: key[2])]
        records = [by_key[key] for key in order if key in by_key and key[0] in table.rows and key[1] in table.columns]
        write_text(into / "records.jsonl", "".join(f"{seal(json.dumps(record))}\n" for record in records))
    return records


def check_changed(table: Table, folder: Path, changed: Sequence[str]) -> None:
    """Raise UserError where records of other settings would be replaced."""
    for record in recorded(table, folder):
        if sorted(before := record.get("changed", [])) != sorted(changed):
            raise UserError(
                f"{folder} holds records of {' '.join(before) or 'the scale as it is'}, and this is "
                f"{' '.join(changed) or 'the scale as it is'}; results=FOLDER keeps them apart"
            )


def recorded_seeds(table: Table, scale: str, results: Path) -> set[int]:
    """Seeds that the records of a table have."""
    return {record["seed"] for record in recorded(table, table_folder(table, scale, results))}


def recorded(table: Table, folder: Path) -> list[Record]:
    """The records of a table in a folder, one of each cell and seed; none where there is no file.

    They may come from anyone. Raises UserError on what no run can have measured.
    """
    file = folder / "records.jsonl"
    records = read_jsonl(file, RECORD)
    check_records(records, file, table.metrics)
    return list({key_of(record): record for record in records}.values())


def scores(records: Iterable[Record], table: Table) -> dict[Key, float | None]:
    """What each cell shows of its run; None where it diverged, or the data have none of it.

    Raises UserError on records of another table.
    """
    return {key_of(record): _score(record, table) for record in records}


def estimates(run: RunFolder) -> list[dict[str, Any]]:
    """What `normlab estimate` measured of a run: its settings, and the metrics under them."""
    return read_jsonl(run.path / "estimates.jsonl", ESTIMATE, Real)


def estimate_of(run: RunFolder, settings: BatchAverage) -> dict[str, float] | None:
    """Metrics of a run under batch averages by these settings; None if they were not measured."""
    for row in estimates(run):
        measured = BatchAverage(row.pop("samples"), row.pop("variance"), row.pop("augment"))
        if estimator_name(measured) == estimator_name(settings):
            return row
    return None


def estimator_name(settings: BatchAverage) -> str:
    """Of statistics measured anew, in a record's metrics: 5000 samples, mean variance, augment=true."""
    samples = settings.num_samples or "all"
    return f"{samples} samples, {settings.variance} variance, augment={str(settings.augment).lower()}"


def key_of(record: Record) -> Key:
    """Which cell and seed a record is of."""
    return record["row"], record["column"], record["seed"]


def _score(record: Record, table: Table) -> float | None:
    row, column, seed = key_of(record)
    if row not in table.rows or column not in table.columns:
        raise UserError(f"records.jsonl: {table.name} has no cell {row} {column}; it is damaged, or of another table")
    if record["status"] != "finished":
        return None
    estimator = table.estimator_of(row, column) or record["headline"]["estimator"]
    name = estimator if isinstance(estimator, str) else estimator_name(estimator)
    metric = table.metric_of(row, column)
    value = value_of(record["metrics"].get(name, {}), metric, table.metrics)
    if value is None and not table.metrics[metric.rpartition("/")[2].partition(".")[0]].partial:
        run = f"{row} {column} seed {seed}"
        raise UserError(f"records.jsonl: {run} has no {metric} under {name}; it is damaged, or of another table")
    return value


def _record(table: Table, cell: Cell, run: RunFolder, origin: RunFolder | None) -> Record | None:
    """None where the run was not measured as the cell asks."""
    summary = run.summary()
    estimator = table.estimator_of(cell.row, cell.column)
    if isinstance(estimator, BatchAverage) and summary["status"] == "finished":
        measured = estimate_of(run, estimator)
        if measured is None:
            return None
        summary["metrics"] = summary["metrics"] | {estimator_name(estimator): measured}
    rows = _moments(run, summary)
    written = datetime.fromtimestamp(run.summary_file.stat().st_mtime, UTC)
    return summary | {
        "row": cell.row,
        "column": cell.column,
        "finished": written.isoformat(timespec="seconds"),
        "layers": _layers(rows),
        "moved": ratios.moved([row["layers"] for row in rows]) if rows else {},
        "start": None if origin is None else _start(origin, table.start_of(cell.row, cell.column)),
        "choices": _choices(rows, summary["updates"]),
        "epochs_of": _epochs(run, table),
        "fluctuations": _fluctuations(run),
        "taken": _taken(run),
    }


def _moments(run: RunFolder, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    return read_jsonl(run.whole(run.ratios), STEP) if summary["ratios"] else []


def _layers(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: layer[key] for key in _OF_LAYER if key in layer} for row in rows[-1:] for layer in row["layers"]]


def _start(run: RunFolder, origin: Origin | None) -> Record:
    """Of the run that another began from, as far as that took it."""
    summary = run.summary()
    at = 1.0 if origin is None else origin.at
    rows = [row for row in _moments(run, summary) if row["step"] <= at * summary["updates"] + 0.5]
    return {
        "id": summary["id"],
        "made_by": summary.get("made_by"),
        "layers": _layers(rows),
        "moved": ratios.moved([row["layers"] for row in rows]) if rows else {},
    }


def _choices(rows: Sequence[Mapping[str, Any]], updates: int) -> dict[str, list[list[str]]]:
    """Share of the run -> [scope of the mean, scope of the variance] of each switchable layer then."""
    found = {}
    for share in CHOICES_AT:
        reached = [row["layers"] for row in rows if row["step"] <= share * updates + 0.5]
        if reached and switchable(reached[-1]):
            found[f"{share:g}"] = [[choice(layer[moment]) for moment in MOMENTS] for layer in reached[-1]]
    return found


def _epochs(run: RunFolder, table: Table) -> dict[str, list[float]]:
    """Of each evaluation on the way the update, the loss, and each metric that has a curve, where it is measured."""
    rows = read_metrics(run.whole(run.metrics), holding='"train/loss"')
    curves = curves_of(table.metrics)
    wanted = ("step", "train/loss", *(f"{of}/{m}" for m in curves for of in ("train", "val", "val_batch_average")))
    return {
        metric: [round(row[metric], 4) for row in rows]
        for metric in wanted
        if rows and all(row.get(metric) is not None for row in rows)
    }


def _fluctuations(run: RunFolder) -> dict[str, list[float]]:
    """Statistic of BN or EN -> how much it varies in each layer; distance of BN's from EN's (HN, Sec. 4.6)."""
    if not run.statistics.is_file():
        return {}
    steps = Run.load(run).statistics
    layers = list(zip(*(step["layers"] for step in steps), strict=True))
    found = {name: [spread(rows, name) for rows in layers] for name in STATISTICS if len(steps) > 1}
    return found | {f"apart_{moment}": [apart(rows, moment) for rows in layers] for moment in ("mean", "std")}


def _taken(run: RunFolder) -> dict[str, float]:
    """Shares that Weight Standardization takes from gradients, averaged over layers and updates (WS, Fig. 4)."""
    if not run.gradients.is_file():
        return {}
    rows = [layer for step in Run.load(run).gradients for layer in step["layers"]]
    return {term: statistics.fmean(row[term] for row in rows) for term in ("division", "centring")}
