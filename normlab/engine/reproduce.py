"""`normlab reproduce TABLE`: the runs of a paper's table that are missing, then its report from their records."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from normlab.config import load
from normlab.engine.record import RunFolder
from normlab.engine.sweep import num_jobs, sweep
from normlab.report.records import collect, read_records, table_folder
from normlab.report.render import report
from normlab.report.table import Cell, Table, cells, printed


def reproduce(
    table: Table, scale: str, seeds: Sequence[int], jobs: int, extra: Sequence[str], results: Path, dry: bool = False
) -> int:
    """Run a table at a scale, and report; returns the exit status of the sweep.

    Args:
        table: which cells there are, and what the paper prints.
        scale: of the table's scales.
        seeds: each cell runs once with each.
        jobs: cells side by side; 0: as many as cores or GPUs allow.
        extra: overrides of every run, such as devices=2.
        results: where the table's records and report go.
        dry: stop after the plan.

    Raises:
        UserError: before anything runs, on what cannot work in any cell.
    """
    console = Console()
    printed(table)  # a wrong reference to a paper shows now, not after the runs
    planned = cells(table, scale, seeds, ["tracker=none", *extra])
    configs = [load(cell.overrides) for cell in planned]
    folders = [RunFolder.of(config) for config in configs]
    into = table_folder(table, scale, results)
    missing = [cell for cell, folder in zip(planned, folders, strict=True) if not folder.is_over]
    console.print(f"{table.title}: {table.scale(scale).title}")
    console.print(f"{len(planned)} runs, {len(missing)} of them missing{_expected(missing, into, num_jobs(jobs))}")
    if dry:
        return 0
    status = sweep(configs, jobs)
    if any(folder.is_over for folder in folders):
        collect(planned, folders, into)
        for path in report(table, scale, results, console):
            console.print(f"written: {path}", soft_wrap=True)
    return status


def _expected(missing: Sequence[Cell], into: Path, jobs: int) -> str:
    """How long the missing runs took when they were last recorded, if they were."""
    if not missing or not (into / "records.jsonl").is_file():
        return ""
    seconds: dict[tuple[str, str], list[float]] = {}
    for record in read_records(into):
        seconds.setdefault((record["row"], record["column"]), []).append(record["seconds"])
    if any((cell.row, cell.column) not in seconds for cell in missing):
        return ""
    total = sum(statistics.median(seconds[cell.row, cell.column]) for cell in missing)
    return f": about {total / jobs / 60:.0f} minutes with jobs={jobs}, going by the recorded runs"
