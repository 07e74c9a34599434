"""What a sweep came to: a table of means and spreads over seeds, by what was swept, and results.csv with every cell."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from normlab.config import Config, parse
from normlab.console import PlainConsole
from normlab.errors import DiskFullError, plain
from normlab.runs.folder import RunFolder
from normlab.runs.records import metrics_of_run
from normlab.writing import write_text

SEED = "seed"
MOST_COLUMNS = 10  # of values beside each other; more are rows


@dataclass(frozen=True)
class Outcome:
    """Of a cell: what it has of each swept key, its run, and what that measured."""

    swept: Mapping[str, str]
    seed: str
    run: Path
    status: str
    metric: str
    metrics: Mapping[str, float]  # under the statistics that the run is known by; none before its end


def outcomes(words: Sequence[Sequence[str]], cells: Sequence[Config]) -> list[Outcome]:
    """Of the cells of a sweep, each with the words that it was given by."""
    values = [{parse(word).get_key_element().lstrip("+~"): word.partition("=")[2] for word in own} for own in words]
    keys = list(dict.fromkeys(key for own in values for key in own))
    swept = [key for key in keys if key != SEED and len({own.get(key, "") for own in values}) > 1]
    found = []
    for config, own in zip(cells, values, strict=True):
        folder = RunFolder.of(config)
        status = folder.status()["status"]
        summary = folder.summary() if status in ("finished", "diverged") else {"headline": {}, "metrics": {}}
        headline = summary["headline"]
        measured = summary["metrics"].get(headline.get("estimator"), {}) if status == "finished" else {}
        cell = {key: own.get(key, "") for key in swept}
        found.append(Outcome(cell, own.get(SEED, ""), folder.path, status, str(headline.get("metric", "")), measured))
    return found


def show(words: Sequence[Sequence[str]], cells: Sequence[Config], place: Path) -> None:
    """Print the table of a sweep that has been run, and write its cells to results.csv in `place`."""
    found = outcomes(words, cells)
    if not any(cell.metrics for cell in found):
        return
    console = PlainConsole()
    for part in table(found):
        console.print(part, soft_wrap=isinstance(part, str))
    file = place / "results.csv"
    try:
        place.mkdir(parents=True, exist_ok=True)
        write_text(file, as_csv(found))
    except (OSError, DiskFullError) as error:  # the runs are whole: the table is made of them again at any time
        console.print(f"{file} was not written: {error}", soft_wrap=True)
    else:
        console.print(f"every cell: {file}", soft_wrap=True)


def table(found: Sequence[Outcome]) -> tuple[str, Table]:
    """A title, and means ± standard deviations over seeds; columns are the values of the last swept key."""
    metric = next(cell.metric for cell in found if cell.metrics)
    info = metrics_of_run(RunFolder(next(cell.run for cell in found if cell.metrics))).get(metric)
    decimals = 2 if info is None else info.decimals
    *rows, last = list(found[0].swept) or [SEED]
    columns = list(dict.fromkeys(cell.swept.get(last, "") for cell in found))
    if len(columns) > MOST_COLUMNS or not rows:
        rows, last, columns = [*found[0].swept], "", [""]
    groups: dict[tuple[str, ...], dict[str, list[Outcome]]] = {}
    for cell in found:
        key = tuple(cell.swept[row] for row in rows)
        groups.setdefault(key, {}).setdefault(cell.swept.get(last, ""), []).append(cell)
    seeds = len({cell.seed for cell in found})
    over = f", mean ± standard deviation over {seeds} seeds" if seeds > 1 else ""
    name = metric if info is None else info.in_words
    heads = [f"{last}={column}" if last else metric for column in columns]
    shown = Table(*(rows or [""]), *map(plain, heads))
    for row, cells in groups.items():
        shown.add_row(*(row or ("",)), *(_spelled(cells.get(column, []), metric, decimals) for column in columns))
    return f"{name}{over}", shown


def as_csv(found: Sequence[Outcome]) -> str:
    """A line a cell: what was swept, the seed, the run, its status, its metrics."""
    metrics = list(dict.fromkeys(name for cell in found for name in cell.metrics))
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([*found[0].swept, SEED, "run", "status", *metrics])
    for cell in found:
        values = [cell.metrics.get(name, "") for name in metrics]
        writer.writerow([*cell.swept.values(), cell.seed, cell.run.name, cell.status, *values])
    return written.getvalue()


def _spelled(cells: Sequence[Outcome], metric: str, decimals: int) -> str:
    """98.2 ± 0.3; what has no number says why."""
    values = [cell.metrics[metric] for cell in cells if metric in cell.metrics]
    others = [cell.status for cell in cells if metric not in cell.metrics]
    parts = [f"{statistics.fmean(values):.{decimals}f}"] if values else []
    if len(values) > 1:
        parts.append(f"± {statistics.stdev(values):.{decimals}f}")
    if others:
        counts = ", ".join(f"{others.count(status)} {status}" for status in dict.fromkeys(others))
        parts.append(f"({counts})" if values else counts)
    return " ".join(parts) or "–"
