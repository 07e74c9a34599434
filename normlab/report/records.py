"""What was measured of a table: records.jsonl, a line per run, from which every report is made.

A record is a run's summary.json (id is the hash of its config) with `row`, `column`, `finished` (time of day, UTC) and
`layers`, the ratios of each switchable layer at the end.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from normlab.engine.record import RunFolder
from normlab.errors import UserError
from normlab.reading import RECORD, STEP, read_jsonl
from normlab.report.table import Cell, Table
from normlab.writing import write_text

Record = dict[str, Any]
Key = tuple[str, str, int]  # row, column, seed
Measured = Mapping[str, Mapping[Key, float]]  # quantity -> what each run measured of it


def table_folder(table: Table, scale: str, results: Path) -> Path:
    """Where a table's records and report are: results/sn_table2-digits."""
    return results / f"{table.name}-{scale}"


def collect(cells: Sequence[Cell], folders: Sequence[RunFolder], into: Path) -> list[Record]:
    """Copy what the finished and diverged runs measured, a folder for each cell, to records.jsonl in `into`."""
    runs = zip(cells, folders, strict=True)
    records = [_record(cell, run) for cell, run in runs if run.status()["status"] in ("finished", "diverged")]
    into.mkdir(parents=True, exist_ok=True)
    write_text(into / "records.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    return records


def read_records(folder: Path) -> list[Record]:
    """Raises UserError if nothing was collected there."""
    records = read_jsonl(folder / "records.jsonl", RECORD)
    if not records:
        raise UserError(f"{folder}/records.jsonl: there are no records; `normlab reproduce TABLE` makes them")
    return records


def scores(records: Iterable[Record], metric: str) -> dict[Key, float | None]:
    """The metric of each run, under its headline's estimator; None where it diverged."""
    return {(r["row"], r["column"], r["seed"]): _score(r, metric) for r in records}


def _score(record: Record, metric: str) -> float | None:
    estimator = record["headline"]["estimator"]
    if record["status"] != "finished":
        return None
    if metric not in record["metrics"].get(estimator, {}):
        run = f"{record['row']} {record['column']} seed {record['seed']}"
        raise UserError(f"records.jsonl: {run} has no {metric} under {estimator}; it is damaged, or of another table")
    return record["metrics"][estimator][metric]


def measured(records: Iterable[Record], metric: str, guessing: float) -> Measured:
    """What tests ask of the runs: "metric", where a diverged run counts as guessing, and "ratio.mean.bn" and the like.

    Ratios are averages over the layers of a finished run.
    """
    records = list(records)
    quantities: dict[str, dict[Key, float]] = {
        "metric": {key: guessing if score is None else score for key, score in scores(records, metric).items()}
    }
    for record in records:
        if record["status"] != "finished" or not record["ratios"]:
            continue
        for moment, ratios in record["ratios"].items():
            for scope, ratio in ratios.items():
                of_ratio = quantities.setdefault(f"ratio.{moment}.{scope}", {})
                of_ratio[record["row"], record["column"], record["seed"]] = ratio
    return quantities


def _record(cell: Cell, run: RunFolder) -> Record:
    summary = run.summary()
    last = read_jsonl(run.ratios, STEP)[-1:] if summary["ratios"] else []
    written = datetime.fromtimestamp(run.summary_file.stat().st_mtime, UTC)
    return summary | {
        "row": cell.row,
        "column": cell.column,
        "finished": written.isoformat(timespec="seconds"),
        "layers": [{key: layer[key] for key in ("layer", "mean", "var")} for row in last for layer in row["layers"]],
    }
